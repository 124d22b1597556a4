"""The pictures of docs/calibration.md, drawn from the committed results: `make figures`."""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.calibration_methods import NAMES

RESULTS = Path(__file__).resolve().parent / "results"
OUT = Path(__file__).resolve().parent.parent / "docs" / "figures"
LINES = {
    "raw": ("raw", "0.6", ":"),
    "closed-form": ("closed form", "#0072b2", "-"),
    "bcts": ("BCTS", "#e69f00", "-"),
    "marc": ("MARC, held-out", "#009e73", "-"),
    "marc-paper": ("MARC as published", "#cc79a7", ":"),
    "marc-paper-t": ("MARC as published + temperature", "#cc79a7", "-"),
    "choose": ("choose", "black", "--"),
}


def by_size(rows: list[dict[str, Any]]) -> None:
    """What more held-out images buy: accuracy, few-shot accuracy and NLL of each method."""
    panels = {"balanced_accuracy": "accuracy, %", "few": "few-shot accuracy, %", "nll": "NLL, nats"}
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    sizes = [row["per_class"] for row in rows]
    for axis, (name, title) in zip(axes, panels.items(), strict=True):
        for method, (label, colour, style) in LINES.items():
            factor = 1 if name == "nll" else 100
            values = [factor * row["figures"][method][name] for row in rows]
            if method != "raw" or name == "few":  # raw is far below in accuracy and far above in NLL
                axis.plot(sizes, values, style, color=colour, label=label)
        axis.set(xscale="log", xlabel="held-out images a class", title=title)
        axis.set_xticks(sizes, map(str, sizes))
        axis.minorticks_off()
    handles, labels = axes[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    _save(figure, "calibration_by_size")


def reliability(row: dict[str, Any]) -> None:
    """Accuracy against confidence; the area of a point is the share of images."""
    shown = row["reliability"]
    figure, axes = plt.subplots(1, len(shown), figsize=(10, 2.9), layout="constrained", sharey=True)
    for axis, (method, points) in zip(axes, shown.items(), strict=True):
        confidence, accuracy, share = np.array(points).T
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        axis.plot(confidence, accuracy, color="#0072b2")
        axis.scatter(confidence, accuracy, s=400 * share, color="#0072b2")
        ece = 100 * row["figures"][method]["ece"]
        axis.set(title=f"{NAMES[method].split(',')[0].strip('`')}: ECE {ece:.1f} %", xlabel="confidence")
        axis.set_aspect("equal")
    axes[0].set_ylabel("accuracy")
    _save(figure, "calibration_reliability")


def laws(rows: list[dict[str, Any]]) -> None:
    """How near estimators of the class law come, for one of our networks."""
    wanted = "cifar100_lt_resnet32_cross-entropy"
    table = [row for row in rows if row["command"] == "table" and row["data"] == wanted]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for axis, law in zip(axes, ("long-tailed", "reversed"), strict=True):
        _law(axis, [row for row in table if row["law"] == law])
        axis.set(title=f"traffic {law}", xlabel="items of traffic", xscale="log", ylim=(0, None))
        axis.minorticks_off()
    axes[0].set_ylabel("total variation to the true law")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    _save(figure, "label_shift")


def _law(axis: Axes, rows: list[dict[str, Any]]) -> None:
    sizes = sorted({row["items"] for row in rows})
    for method, colour in {"MAP-EM": "black", "BBSE": "#e69f00", "EMQ": "#0072b2", "PACC": "#009e73"}.items():
        means = [np.mean([row["tv"][method] for row in rows if row["items"] == size]) for size in sizes]
        label = {"MAP-EM": "MAP-EM (ours)", "BBSE": "BBSE (ours)"}.get(method, f"{method} (QuaPy)")
        axis.plot(sizes, means, "o-", color=colour, label=label)
    axis.set_xticks(sizes, map(str, sizes))


def _save(figure: plt.Figure, name: str) -> None:
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    print(OUT / f"{name}.svg")


def main() -> None:
    plt.rcParams |= {"svg.hashsalt": "equipoise", "svg.fonttype": "none", "axes.spines.top": False}
    plt.rcParams |= {"axes.spines.right": False, "font.size": 9, "axes.titlesize": 10}
    methods = [json.loads(line) for line in (RESULTS / "calibration_methods.jsonl").read_text().splitlines()]
    cross_entropy = [row for row in methods if row["network"] == "cross entropy"]
    by_size(cross_entropy)
    reliability(next(row for row in cross_entropy if row["per_class"] == 20))
    laws([json.loads(line) for line in (RESULTS / "calibration_priors.jsonl").read_text().splitlines()])


if __name__ == "__main__":
    main()
