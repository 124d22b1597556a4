"""The documented tables are those that the committed results give."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import calibration_implied, calibration_priors_table, calibration_pull, calibration_speed
from benchmarks.calibration import read_implied, read_methods, read_pull
from benchmarks.calibration_methods import NAMES, as_markdown

ROOT = Path(__file__).parents[2]


def test_all_methods_at_all_sizes():
    assert as_markdown(read_methods()) in (ROOT / "docs" / "calibration-methods.md").read_text()


@pytest.mark.parametrize("network", ["cross entropy", "balanced softmax"])
def test_the_methods_with_twenty_images_a_class(network):
    row = next(row for row in read_methods() if row["network"] == network and row["per_class"] == 20)
    table = as_markdown([row]).partition("\n\n")[2]
    assert table in (ROOT / "docs" / "calibration.md").read_text()


def test_the_implied_prior():
    documented = (ROOT / "docs" / "calibration.md").read_text()
    assert calibration_implied.as_markdown(read_implied()) in documented
    assert calibration_implied.natural_as_markdown(read_implied()) in documented


def test_the_strength_of_the_pull():
    assert (
        calibration_pull.as_markdown(read_pull())
        in (ROOT / "docs" / "decisions" / "0002-fits-and-choice.md").read_text()
    )


def test_how_often_the_shift_test_is_wrong():
    rows = calibration_priors_table.read_rows()
    assert calibration_priors_table.levels_in_short(rows) in (ROOT / "docs" / "label-shift.md").read_text()
    for row in rows:
        if row["command"] == "levels" and row["repetitions"] >= 200:  # a standard error at 1 % is .7 points
            assert row["found_at"]["0.01"] <= 0.03


def test_speed():
    assert calibration_speed.as_markdown() in (ROOT / "docs" / "calibration.md").read_text()


def test_choose_is_never_significantly_behind_a_method_and_never_below_raw():
    for row in read_methods():
        for method, (_, _, high) in row["choose_minus"].items():
            assert high >= 0, f"{row['network']}, {row['per_class']} a class: behind {NAMES[method]}"
        assert row["figures"]["choose"]["balanced_accuracy"] >= row["figures"]["raw"]["balanced_accuracy"]


def test_the_pictures_are_drawn_from_the_committed_results(tmp_path):
    code = f"import benchmarks.calibration_figures as f, pathlib; f.OUT = pathlib.Path({str(tmp_path)!r}); f.main()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, timeout=120)
    for path in sorted((ROOT / "docs" / "figures").glob("*.svg")):
        assert (tmp_path / path.name).read_text() == path.read_text(), path.name
