"""What estimates of the implied prior are worth: accuracy of the closed form with r from few held-out images."""

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.calibration_methods import drawn
from models.calibration.choose import choose
from models.calibration.implied_prior import estimate_implied_prior, measure_implied_prior
from models.calibration.metrics import evaluate
from models.calibration.prior import Ledger
from models.calibration.temperature import closed_form_without_data, fit_closed_form
from models.calibration.types import ClassPrior
from training.run_folder import Run

SIZES = (1, 2, 5, 10, 20)
DRAWS = 3
NATURAL = (100, 300)
NAMES = ("rule", "fixed point", "estimate")


def compare(run: Run) -> dict[str, Any]:
    """Accuracy on the test images by source of r and by held-out images a class, the mean over draws."""
    ledger = run.ledger
    rule = ledger
    if ledger.source != "rule":
        rule = Ledger.by_rule(
            ledger.trained_with, ledger.class_counts, loss_counts=ledger.loss_counts, tau=ledger.tau, rates=ledger.rates
        )
    accuracy: dict[str, list[float]] = {name: [] for name in NAMES}
    for per_class in SIZES:
        draws = DRAWS if per_class < run.calibration_set.class_counts.min() else 1
        found = np.zeros((draws, len(NAMES)))
        for seed in range(draws):
            given = run.calibration_set.subset(drawn(run.calibration_set.labels, per_class, seed))
            sources: tuple[ClassPrior, ...] = (
                rule.implied_prior,
                measure_implied_prior(given),
                estimate_implied_prior(given, rule.implied_prior)[1],
            )
            for column, prior in enumerate(sources):
                calibration, _ = fit_closed_form(given, replace(ledger, implied_prior=prior))
                decided = calibration.debias(run.test_set.raw).values.argmax(axis=1)
                found[seed, column] = (decided == run.test_set.labels).mean()
        for name, value in zip(NAMES, found.mean(axis=0), strict=True):
            accuracy[name].append(round(float(value), 5))
    title = ledger.trained_with.replace("-", " ") + (", cosine head" if np.ptp(run.row_norms) == 0 else "")
    row = {"title": title, "source": ledger.source, "sizes": list(SIZES), "accuracy": accuracy}
    return row | {"natural": {str(size): _natural(run, size) for size in (0, *NATURAL)}}


def _natural(run: Run, size: int) -> list[float]:
    """Accuracy, ECE and NLL on the test images, and the share of classes without an example, means over draws, of what
    `choose` makes of a sample that follows the training law, so that many classes lack one. 0 is no example."""
    found = []
    uniform = ClassPrior.uniform(run.test_set.num_classes)
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        labels = rng.choice(uniform.num_classes, size, p=run.ledger.training_prior.probs)
        rows = [rng.choice(np.flatnonzero(run.calibration_set.labels == label)) for label in labels]
        given = run.calibration_set.subset(np.unique(np.asarray(rows, dtype=np.int64)))
        calibration = choose(given, run.ledger).calibration if size else closed_form_without_data(run.ledger)
        scored = calibration.debias(run.test_set.raw).adjust(uniform)
        metrics = evaluate(
            scored, run.test_set.labels, class_counts=run.ledger.class_counts, target=uniform, resamples=1
        )
        absent = float((given.class_counts == 0).mean())
        found.append([metrics.accuracy.value, metrics.ece.value, metrics.nll.value, absent])
    return [round(float(value), 5) for value in np.mean(found, axis=0)]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| k | " + " | ".join(map(str, SIZES)) + " |", "| --- " * (len(SIZES) + 1) + "|"]
    for row in rows:
        for name, values in row["accuracy"].items():
            said = f"{row['title']}: {name}" if name == "rule" else name
            lines.append(f"| {said} | " + " | ".join(f"{100 * value:.1f}" for value in values) + " |")
    return "\n".join(lines)


def natural_as_markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | labelled images | classes without one | accuracy | ECE | NLL |", "| --- " * 6 + "|"]
    for row in rows:
        for size, (accuracy, ece, nll, absent) in row["natural"].items():
            figures = f"{100 * accuracy:.1f} | {100 * ece:.1f} | {nll:.3f}"
            lines.append(f"| {row['title']} | {size} | {100 * absent:.0f} % | {figures} |")
    return "\n".join(lines)
