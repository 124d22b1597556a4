"""The figures of docs/service.md are those of the committed run."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks/results/service_state.json").read_text())
DOCUMENT = (ROOT / "docs/service.md").read_text()


def row(start: str) -> list[str]:
    """The cells of a table's row after its first, which begins so."""
    found = re.search(rf"^\| {re.escape(start)}[^|]*\|(.*)\|$", DOCUMENT, flags=re.MULTILINE)
    assert found is not None, start
    return [cell.strip() for cell in found[1].split("|")]


def shown(values: dict[str, Any]) -> list[str]:
    return [str(values[name]) for name in ("p50", "p99", "max")]


def test_the_uploads_took_as_long_as_the_page_says() -> None:
    uploads = RESULTS["alternating uploads"]
    assert uploads["uploads"] == 200
    assert uploads["answers refused"] == 0
    assert row("an upload, until") == shown(uploads["seconds an upload takes"])
    assert row("from then until") == shown(uploads["seconds until it is live in the other process"])


def test_a_change_was_live_in_the_other_process_within_a_second() -> None:
    assert RESULTS["alternating uploads"]["seconds until it is live in the other process"]["max"] < 1


def test_the_outage_was_as_the_page_says() -> None:
    outage = RESULTS["database stopped"]
    assert row("for, seconds") == [str(outage["seconds stopped"])]
    assert row("answers a second") == [f"{outage['answers a second before']}, {outage['answers a second meanwhile']}"]
    assert row("answers refused") == [str(outage["answers refused"])] == ["0"]
    assert row("an upload meanwhile") == [str(outage["an upload meanwhile"])] == ["503"]
    assert row("until both servers said") == [str(outage["seconds until both say degraded"])]
    assert row("until both were well") == [str(outage["seconds until both are well again"])]
