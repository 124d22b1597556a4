"""The benchmark of prediction sets: coverage and size at 90 %, on logits of long-tailed and of balanced training.

    python benchmarks/calibration_sets.py table --logits FOLDER --probs FOLDER [--splits 10]
    python benchmarks/calibration_sets.py show

`table` measures all rows again (a few minutes) and writes benchmarks/results/calibration_sets.jsonl; `show` prints
them as tables. FOLDER of logits holds {ce,bs}_{train,calibration,test}.npz with `logits` and `labels` of a
ResNet-32 on CIFAR-100-LT (training counts from the labels of `train`); that of probs holds npz files of softmax
outputs, `probs` and `labels`, of classifiers trained on balanced data. The first split of the long-tailed heads is the
held-out set against the test set; the others draw as many examples a class at random from both.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from models.calibration.choose import fit_named, out_of_fold
from models.calibration.prior import Ledger
from models.calibration.sets import BoolArray, conformity, evaluate_sets, fit_sets
from models.calibration.types import Calibration, ClassPrior, DebiasedLogits, FloatArray, IntArray, LogitSet, softmax

RESULTS = Path(__file__).resolve().parent / "results" / "calibration_sets.jsonl"
COVERAGE = 0.9
METHODS = ("closed-form", "bcts", "marc")
HEADS = {"ce": "cross-entropy", "bs": "balanced-softmax"}
THIRD_PARTY = ("cifar100_wideresnet_16_4", "cifar10_wideresnet_16_4", "cifar100_lenet5")
FIGURES = ("coverage", "macro_coverage", "few", "classes_under_half", "mean_size", "median_size", "singletons")
TITLES = ("coverage", "macro", "few", "classes < 50 %", "mean size", "median", "one class")


@dataclass(frozen=True, kw_only=True)
class Split:
    """Examples to find the thresholds on, and others to measure the sets on."""

    model: str
    law: str
    fitting: LogitSet
    measuring: LogitSet
    ledger: Ledger
    groups: IntArray  # training counts, for many, medium and few

    def calibrated(self, method: str = "closed-form") -> tuple[Calibration, DebiasedLogits]:
        """The calibration, and the debiased logits of the fitting examples out of fold."""
        fit = fit_named(method)
        calibration, _ = fit(self.fitting, self.ledger)
        return calibration, out_of_fold(fit, self.fitting, self.ledger)


def table(args: argparse.Namespace) -> None:
    cells: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for seed in range(args.splits):
        for key, figures in [*long_tailed(args.logits, seed), *third_party(args.probs, seed)]:
            cells.setdefault(key, []).append(figures)
        print(f"split {seed + 1} of {args.splits}", flush=True)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w") as file:
        for key, runs in cells.items():
            row = dict(zip(("part", "model", "law", "target", "method"), key, strict=True)) | {"splits": len(runs)}
            row["figures"] = {name: spread([run[name] for run in runs]) for name in runs[0]}
            file.write(json.dumps(row) + "\n")


def spread(values: list[float]) -> list[float]:
    """Mean and standard deviation over the splits."""
    return [round(float(np.mean(values)), 5), round(float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, 5)]


def long_tailed(folder: Path, seed: int) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    for head, rule in HEADS.items():
        parts = {name: np.load(folder / f"{head}_{name}.npz") for name in ("train", "calibration", "test")}
        drawn = np.bincount(parts["train"]["labels"])
        counts = drawn // np.gcd.reduce(drawn)  # every image was seen as often through its augmentation
        logits = np.concatenate([parts[name]["logits"] for name in ("calibration", "test")])
        labels = np.concatenate([parts[name]["labels"] for name in ("calibration", "test")])
        held_out = parts["calibration"]["labels"].size
        order = np.arange(labels.size) if seed == 0 else stratified(labels, 20, np.random.default_rng(seed))
        split = Split(
            model=head,
            law="balanced, 20 a class",
            fitting=labelled(logits, labels, order[:held_out]),
            measuring=labelled(logits, labels, order[held_out:]),
            ledger=Ledger.by_rule(rule, counts),
            groups=counts,
        )
        targets = {"uniform": ClassPrior.uniform(counts.size), "training": split.ledger.training_prior}
        targets["reversed"] = ClassPrior.from_weights(counts[::-1])
        for name, target in targets.items():
            yield from compared("long-tailed", split, name, target)
        yield from reused(split)


def third_party(folder: Path, seed: int) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    for model in THIRD_PARTY:
        with np.load(folder / f"{model}.npz") as file:
            logits, labels = np.log(file["probs"].astype(np.float64)), file["labels"].astype(np.int64)
        rng = np.random.default_rng(seed)
        num_classes, per_class = logits.shape[1], 50
        tail = 100.0 ** (-rng.permutation(num_classes) / (num_classes - 1))  # which classes are rare differs by split
        order = stratified(labels, per_class, rng)
        balanced, measuring = np.split(order, [per_class * num_classes])
        kept = np.concatenate(
            [rows[: max(1, round(per_class * tail[c]))] for c, rows in enumerate(by_class(labels, balanced))]
        )
        targets = {
            "uniform": ClassPrior.uniform(num_classes),
            "long-tailed": ClassPrior.from_weights(tail),
            "reversed": ClassPrior.from_weights(1 / tail),
            "Dirichlet(.5)": ClassPrior.from_weights(rng.dirichlet(np.full(num_classes, 0.5))),
        }
        for law, rows in (("balanced, 50 a class", balanced), ("long-tailed, 50 to 1 a class", kept)):
            split = Split(
                model=model,
                law=law,
                fitting=labelled(logits, labels, rows),
                measuring=labelled(logits, labels, measuring),
                ledger=Ledger.by_rule("balanced-sampling", np.full(num_classes, 500)),
                groups=np.round(500 * tail).astype(np.int64),
            )
            for name, target in targets.items():
                yield from compared("balanced", split, name, target)


def stratified(labels: IntArray, per_class: int, rng: np.random.Generator) -> IntArray:
    """All rows, `per_class` random ones of each class first."""
    groups = by_class(labels, rng.permutation(labels.size))
    return np.concatenate([rows[:per_class] for rows in groups] + [rows[per_class:] for rows in groups])


def by_class(labels: IntArray, rows: IntArray) -> list[IntArray]:
    return [rows[labels[rows] == c] for c in range(int(labels.max()) + 1)]


def labelled(logits: FloatArray, labels: IntArray, rows: IntArray) -> LogitSet:
    return LogitSet(logits=logits[rows], labels=labels[rows], split="calibration")


def compared(
    part: str, split: Split, name: str, target: ClassPrior
) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """The ways to make sets, on the same examples."""

    def row(method: str, sets: BoolArray) -> tuple[tuple[str, ...], dict[str, float]]:
        return (part, split.model, split.law, name, method), figures_of(sets, split, target)

    for by_class_too, title in ((False, "softmax, one threshold"), (True, "softmax, class-wise")):
        yield row(title, plain_sets(split, by_class_too))
    calibration, out = split.calibrated()
    debiased = calibration.debias(split.measuring.raw)
    counts = split.fitting.class_counts
    own_law = ClassPrior.from_weights(counts) if counts.all() else None
    if own_law is not None and not np.allclose(own_law.probs, target.probs):
        unweighted = fit_sets(split.fitting, out, target=own_law, coverage=COVERAGE)
        yield row("debiased, one, not weighted", unweighted.predict(debiased.adjust(own_law)))
    adjusted = debiased.adjust(target)
    for share in (0.0, 0.5, 0.9, 1.0):
        rule = fit_sets(split.fitting, out, target=target, coverage=COVERAGE, interpolation=share)
        key, figures = row(f"debiased, interpolation {share:g}", rule.predict(adjusted))
        if not share:
            bare = figures_of(conformity(adjusted) >= rule.thresholds, split, target)
            figures |= {"top_adds_coverage": figures["coverage"] - bare["coverage"], "empty_without_top": bare["empty"]}
            figures["effective_items"] = rule.provenance["effective_items"]
        yield key, figures


def plain_sets(split: Split, by_class_too: bool) -> BoolArray:
    """Split conformal sets of the raw softmax: no prior, no weights, empty sets allowed."""
    labels = split.fitting.labels
    found = softmax(split.fitting.logits)[np.arange(labels.size), labels]
    groups = [found[labels == c] for c in range(split.fitting.num_classes)] if by_class_too else [found]
    thresholds = [quantile(group) for group in groups]
    return np.asarray(softmax(split.measuring.logits) >= thresholds)


def quantile(found: FloatArray) -> float:
    lost = found.size - int(np.ceil(COVERAGE * (found.size + 1) - 1e-9))
    return float(np.sort(found)[lost]) if lost >= 0 else 0.0


def reused(split: Split) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """What it costs to find the thresholds on the examples that the calibration was fitted on."""
    uniform = ClassPrior.uniform(split.fitting.num_classes)
    rows = np.concatenate([np.arange(start, split.fitting.labels.size, 2) for start in (0, 1)])
    first, second = (split.fitting.subset(half) for half in np.split(rows, 2))
    for method in METHODS:
        calibration, out = split.calibrated(method)
        half, _ = fit_named(method)(first, split.ledger)
        ways = {
            "the same examples": (calibration, split.fitting, calibration.debias(split.fitting.raw)),
            "out of fold": (calibration, split.fitting, out),
            "one half each": (half, second, half.debias(second.raw)),
        }
        for way, (used, examples, debiased) in ways.items():
            for share in (0.0, 1.0):
                rule = fit_sets(examples, debiased, target=uniform, coverage=COVERAGE, interpolation=share)
                sets = rule.predict(used.debias(split.measuring.raw).adjust(uniform))
                key = ("reuse", split.model, method, way, f"interpolation {share:g}")
                yield key, figures_of(sets, split, uniform)


def figures_of(sets: BoolArray, split: Split, target: ClassPrior) -> dict[str, float]:
    found = evaluate_sets(sets, split.measuring.labels, class_counts=split.groups, target=target, resamples=1)
    named = {name: getattr(found, name) for name in (*FIGURES, "empty")}
    return {name: float(value if isinstance(value, float | int) else value.value) for name, value in named.items()}


def show(_: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    print(as_markdown(rows))


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    heading = ""
    for row in rows_by_heading(rows):
        if row["heading"] != heading:
            heading = row["heading"]
            lines += ["", f"**{heading}**", "", f"| | {' | '.join(TITLES)} |", "| --- " * (len(TITLES) + 1) + "|"]
        figures = row["figures"]
        cells = [f"{figures[name][0]:.3f}" for name in FIGURES]
        cells[0] += f" ± {figures['coverage'][1]:.3f}"
        cells[4] = f"{figures['mean_size'][0]:.1f} ± {figures['mean_size'][1]:.1f}"
        cells[5] = f"{figures['median_size'][0]:.1f}"
        lines.append(f"| {row['label']} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def rows_by_heading(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of one table together."""
    named = []
    for row in rows:
        if row["part"] == "reuse":
            heading = f"{row['model']}: where the thresholds come from, uniform target"
            label = f"{row['law']}, {row['target']}, {row['method']}"
        else:
            heading = f"{row['model']}: calibration examples {row['law']}; target {row['target']}"
            label = row["method"]
        named.append(row | {"heading": f"{heading} ({row['splits']} splits)", "label": label})
    order = list(dict.fromkeys(row["heading"] for row in named))
    return sorted(named, key=lambda row: order.index(row["heading"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measure = commands.add_parser("table")
    measure.add_argument("--logits", type=Path, required=True)
    measure.add_argument("--probs", type=Path, required=True)
    measure.add_argument("--splits", type=int, default=10)
    measure.set_defaults(run=table)
    commands.add_parser("show").set_defaults(run=show)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
