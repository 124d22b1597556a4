"""A stranger's way with a classifier of their own, as docs/bring-your-own.md tells it."""

import re
from collections.abc import Callable

from tests.docs.walking import DOCS, FIGURE, Walk

SLACK = 0.05  # another processor or library trains the network to slightly other figures
DOCUMENT = (DOCS / "bring-your-own.md").read_text()


def test_every_block_of_the_walk_through_does_what_it_shows(make_walk: Callable[..., Walk]) -> None:
    came = make_walk(8000, 8001).run(DOCUMENT, slack=SLACK)
    balanced, in_the_field = came["python measure.py"], came["python measure.py field.csv"]
    raw, closed_form = _figures(balanced[0])
    marc = _figures(balanced[1])[1]
    assert closed_form["accuracy"] > raw["accuracy"] + 5
    assert closed_form["rare"] > raw["rare"] + 10
    assert marc["nll"] < closed_form["nll"] < raw["nll"]
    uniform, adjusted, mistaken, undone = (_figures(each)[1] for each in in_the_field)
    assert adjusted["nll"] < uniform["nll"]
    assert adjusted["nll"] < mistaken["nll"]
    assert undone == adjusted


def test_its_table_of_what_is_gained_repeats_the_figures_of_the_run() -> None:
    rows = re.findall(rf"^\| .* \| ({FIGURE}) \| ({FIGURE}) \| ({FIGURE}) \|$", DOCUMENT, flags=re.MULTILINE)
    shown = [tuple(each.values()) for each in _figures(DOCUMENT)]
    assert len(rows) == 3
    for row in rows:
        assert tuple(float(figure) for figure in row) in shown


def _figures(text: str) -> list[dict[str, float]]:
    found = re.findall(rf"accuracy ({FIGURE}), of digits 5 to 9 ({FIGURE}), NLL ({FIGURE})", text)
    return [dict(zip(("accuracy", "rare", "nll"), map(float, row), strict=True)) for row in found]
