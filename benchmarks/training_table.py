"""The accuracy table, from the rows that `benchmarks/training.py table` has added."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from models.calibration.metrics_detail import paired_difference
from models.calibration.types import IntArray

RESULTS = Path(__file__).resolve().parent / "results" / "training.jsonl"
TEST_IMAGES_A_CLASS = 100  # of CIFAR-100; the test labels are the classes in the order of the data file

# Recipe: what the table calls it, and the row that it must beat.
ROWS = {
    "ce": ("cross-entropy", None),
    "bs": ("Balanced Softmax", "ce"),
    "balms": ("Balanced Meta-Softmax", "ce"),
    "nbn_bs": ("NBN + Balanced Softmax", "bs"),
    "ce_cosine": ("cross-entropy, cosine head", "ce"),
    "cibl": ("CIBL, cosine head", "ce_cosine"),
    "cibl_nbn_bs": ("CIBL + NBN + Balanced Softmax, cosine head", "nbn_bs"),
}
FITS = {
    "raw": "raw",
    "closed-form": "closed form",
    "marc-paper-as-published": "MARC as published",
    "marc-paper": "the same + held-out temperature",
    "marc": "MARC, held-out",
    "choose": "`choose`",
}
# Top-1 accuracy with the published budget, best epoch on the test images (MARC, table 2; BALMS: the same value).
PUBLISHED = {"ce": {"raw": 45.3, "marc-paper-as-published": 50.8}, "bs": {"raw": 50.3}, "balms": {"raw": 50.8}}


def read_results() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines() if line.strip()]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """The short budget with seed 0, and beside it the published one: its target, and ours over the seeds there are."""
    short = {_key(row): row for row in rows if row["seed"] == 0 and row["recipe"].endswith("_short")}
    lines = ["| | calibration | accuracy | many | medium | few | ECE | NLL | published budget: target | ours |"]
    lines.append("| --- " * 10 + "|")
    for key, (title, _) in ROWS.items():
        for fit, said in FITS.items():
            cells = _cells(short.get(key), fit)
            target = PUBLISHED.get(key, {}).get(fit)
            ours = _over_seeds([row for row in rows if row["recipe"] == f"cifar100_lt_r100_{key}"], fit)
            lines.append(f"| {title} | {said} | {' | '.join(cells)} | {target or ''} | {ours if target else ''} |")
    return "\n".join([*lines, "", *_differences(short)])


def _key(row: dict[str, Any]) -> str:
    return str(row["recipe"]).removeprefix("cifar100_lt_r100_").removesuffix("_short")


def _over_seeds(rows: list[dict[str, Any]], fit: str) -> str:
    values = [100 * row["figures"][fit]["accuracy"][0] for row in rows]
    if not values:
        return "open"
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread} ({len(values)} seeds)"


def _cells(row: dict[str, Any] | None, fit: str) -> list[str]:
    if row is None:
        return ["open"] * 6
    figures = row["figures"][fit]
    shares = [f"{100 * round(figures[name][0], 6):.1f}" for name in ("accuracy", "many", "medium", "few", "ece")]
    return [*shares, f"{figures['nll'][0]:.3f}"]


def _differences(short: dict[str, dict[str, Any]]) -> list[str]:
    """Class-balanced accuracy, paired image by image: each method against its baseline, each calibration against
    raw."""
    lines = ["| what | against | difference in points | 95 % interval |", "| --- | --- | --- | --- |"]
    pairs = [((key, "raw"), (base, "raw")) for key, (_, base) in ROWS.items() if base is not None]
    pairs += [((key, fit), (key, "raw")) for key in ROWS for fit in ("marc-paper-as-published", "marc", "choose")]
    for (key, fit), (base, base_fit) in pairs:
        if key in short and base in short:
            after, before = correct(short[key], fit), correct(short[base], base_fit)
            gap = paired_difference(before, after, _labels(len(after)))
            assert None not in (gap.value, gap.low, gap.high)
            what = f"{ROWS[key][0]}, {FITS[fit]}" if fit != "raw" else ROWS[key][0]
            against = FITS["raw"] if key == base else ROWS[base][0]
            lines.append(
                f"| {what} | {against} | {100 * gap.value:+.1f} | {100 * gap.low:+.1f} to {100 * gap.high:+.1f} |"
            )
    return lines


def correct(row: dict[str, Any], fit: str) -> np.ndarray:
    """Which test images are right, `(N,)`."""
    packed = np.frombuffer(base64.b64decode(row["correct"][fit]), dtype=np.uint8)
    return np.unpackbits(packed)[: TEST_IMAGES_A_CLASS * len(row["class_counts"])].astype(bool)


def _labels(num: int) -> IntArray:
    return np.repeat(np.arange(num // TEST_IMAGES_A_CLASS), TEST_IMAGES_A_CLASS).astype(np.int64)
