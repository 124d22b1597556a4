import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.training_table import ROWS, as_markdown, correct, read_results

ROOT = Path(__file__).parents[2]


@pytest.fixture
def row() -> dict:
    return copy.deepcopy(next(row for row in read_results() if row["recipe"] == "cifar100_lt_r100_ce_short"))


def test_the_documented_table_is_the_one_that_the_committed_results_give():
    assert as_markdown(read_results()) in (ROOT / "docs" / "results.md").read_text()


def test_a_row_without_a_result_is_open():
    table = as_markdown([])
    assert table.count("| open | open | open | open | open | open |") == 6 * len(ROWS)
    assert "| 45.3 | open |" in table


def test_the_figures_agree_with_the_images_that_were_right(row):
    for fit, figures in row["figures"].items():
        assert np.mean(correct(row, fit)) == pytest.approx(figures["accuracy"][0])


def test_seeds_of_the_published_budget_are_shown_as_mean_and_deviation(row):
    seeds = []
    for seed, accuracy in enumerate((0.44, 0.46)):
        made = copy.deepcopy(row) | {"recipe": "cifar100_lt_r100_ce", "seed": seed}
        made["figures"]["raw"]["accuracy"][0] = accuracy
        seeds.append(made)
    assert "| 45.3 | 45.0 ± 1.4 (2 seeds) |" in as_markdown(seeds)


def test_a_row_compared_with_itself_differs_by_nothing(row):
    again = copy.deepcopy(row) | {"recipe": "cifar100_lt_r100_bs_short"}
    assert "| Balanced Softmax | cross-entropy | +0.0 | +0.0 to +0.0 |" in as_markdown([row, again])


def test_the_command_prints_the_table_and_skips_what_is_done(tmp_path):
    command = [sys.executable, "benchmarks/training.py"]
    shown = subprocess.run([*command, "show"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == as_markdown(read_results())
    first = json.loads((ROOT / "benchmarks" / "results" / "training.jsonl").read_text().splitlines()[0])
    data = tmp_path / f"{first['data']}.npz"
    options = ["--data", str(data), "--runs", str(tmp_path), "--only", first["recipe"]]
    done = subprocess.run([*command, "table", *options], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "done already" in done.stdout
