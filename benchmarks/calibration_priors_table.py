"""The tables of label shift, from the rows that `benchmarks/calibration_priors.py` has written."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

RESULTS = Path(__file__).resolve().parent / "results" / "calibration_priors.jsonl"
OURS = "MAP-EM"


def read_rows() -> list[dict[str, Any]]:
    if not RESULTS.exists():
        return []
    return [json.loads(line) for line in RESULTS.read_text().splitlines() if line.strip()]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    return "\n\n".join([_table(rows), gain_as_markdown(rows), _levels(rows), _speed(rows)])


def _table(rows: list[dict[str, Any]]) -> str:
    cells: dict[tuple[Any, ...], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        if row["command"] == "table":
            cells[row["data"], row["items"], row["law"]].append(row["tv"])
    if not cells:
        return ""
    methods = list(dict.fromkeys(method for cell in cells.values() for tv in cell for method in tv))
    lines = [
        f"| data | N | law | {' | '.join(methods)} | {OURS} minus best other |",
        "| --- " * (len(methods) + 4) + "|",
    ]
    verdicts: dict[str, int] = defaultdict(int)
    for (data, items, law), cell in cells.items():
        means = {method: float(np.mean([tv[method] for tv in cell])) for method in methods if method in cell[0]}
        best = min((method for method in means if method != OURS), key=means.__getitem__)
        low, high = paired_interval([tv[OURS] - tv[best] for tv in cell])
        verdict = "worse" if low > 0 else "better" if high < 0 else "alike"
        verdicts[verdict] += 1
        shown = " | ".join(f"{means[method]:.3f}" if method in means else "" for method in methods)
        gap = f"{means[OURS] - means[best]:+.3f} ({low:+.3f} to {high:+.3f}), {verdict}"
        lines.append(f"| {data} | {items} | {law} | {shown} | {gap} |")
    counted = ", ".join(f"{verdict} in {number}" for verdict, number in sorted(verdicts.items()))
    return "\n".join([*lines, "", f"Against the best of the others in each cell, {OURS} is {counted} of {len(cells)}."])


def gain_as_markdown(rows: list[dict[str, Any]]) -> str:
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        if row["command"] == "gain":
            found[row["data"], row["law"]].append(row["accuracy"])
    lines = [
        "| data | law of the traffic | present prior | estimate, ungated | proposed | true law |",
        "| --- " * 6 + "|",
    ]
    for (data, law), accuracies in found.items():
        means = [np.mean([each[name] for each in accuracies]) for name in ("present", "estimate", "proposed", "true")]
        lines.append(f"| {data} | {law} | " + " | ".join(f"{100 * mean:.1f}" for mean in means) + " |")
    return "\n".join(lines)


def paired_interval(differences: list[float]) -> tuple[float, float]:
    """95 % for the mean of paired differences, by Student's t over the repetitions."""
    values = np.asarray(differences)
    half = student.ppf(0.975, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return float(values.mean() - half), float(values.mean() + half)


def _levels(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| classes | per class | spread | law | p < .01 | p < .05 | p < .5 | class intervals | TV bound | accepted |",
        "| --- " * 10 + "|",
    ]
    for row in (row for row in rows if row["command"] == "levels"):
        found, held = row["found_at"], (row["covered"], row["within"])
        lines.append(
            f"| {row['classes']} | {row['calibration_per_class']} | {row['spread']} | {row['law']} | "
            f"{found['0.01']:.3f} | {found['0.05']:.3f} | {found['0.5']:.2f} | {held[0]:.2f} | {held[1]:.2f} | "
            f"{row['recommended']:.3f} |"
        )
    return "\n".join(lines) if len(lines) > 2 else ""


def _speed(rows: list[dict[str, Any]]) -> str:
    lines = ["| N x C | tolerance (L1) | ours, s | passes | EMQ, s | TV ours | TV EMQ |", "| --- " * 7 + "|"]
    for row in (row for row in rows if row["command"] == "speed"):
        for tolerance in ("tolerance 0.001", "tolerance 1e-05"):
            of = row[tolerance]
            lines.append(
                f"| {row['items']} x {row['classes']} | {tolerance.split()[1]} | {of['ours_seconds']} | "
                f"{of['ours_passes']} | {of['emq_seconds']} | {of['tv_ours']} | {of['tv_emq']} |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def levels_in_short(rows: list[dict[str, Any]]) -> str:
    """How often a shift is found where there is none, in percent, laws long-tailed / uniform / reversed."""
    found: dict[tuple[Any, ...], list[dict[str, float]]] = defaultdict(list)
    for row in rows:
        if row["command"] == "levels":
            found[row["classes"], row["calibration_per_class"], row["spread"]].append(row["found_at"])
    lines = ["| classes | calibration examples a class | classes are | at 1 % | at 5 % |", "| --- " * 5 + "|"]
    for (classes, examples, spread), laws in found.items():
        shares = [" / ".join(f"{100 * law[level]:.1f}" for law in laws) for level in ("0.01", "0.05")]
        apart = "overlapping" if spread < 1 else "apart"
        lines.append(f"| {classes} | {examples} | {apart} | {shares[0]} | {shares[1]} |")
    return "\n".join(lines)
