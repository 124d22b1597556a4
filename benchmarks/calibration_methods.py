"""Every post-hoc method on the logits of one trained network, for calibration sets of several sizes."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.optimize import minimize

from models.calibration.choose import choose, fit_named
from models.calibration.errors import CalibrationError, FitFailed
from models.calibration.marc_paper import class_weights, fit_paper, published_scores
from models.calibration.metrics import evaluate
from models.calibration.prior import Ledger
from models.calibration.reliability import reliability
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import ClassPrior, FloatArray, IntArray, LogitSet, softmax
from training.run_folder import Run, read_classifier, read_logits

DRAWS = 5  # calibration sets of a size; the largest is drawn once, because it is all there is
TAUS = np.arange(0.0, 2.01, 0.1)
NAMES = {
    "raw": "raw",
    "logit-adjustment": "logit adjustment, tau 1",
    "temperature": "temperature only",
    "tau-norm": "tau-normalisation, tau by accuracy",
    "lws": "LWS, training set",
    "marc-paper": "MARC as published, training set",
    "marc-paper-t": "the same + held-out temperature",
    "closed-form": "closed form",
    "bcts": "BCTS",
    "vector-scaling": "vector scaling",
    "marc": "MARC, held-out",
    "choose": "`choose`",
}
DRAWN = ("raw", "closed-form", "marc-paper", "choose")  # whose reliability diagrams stand in the docs
Scores = Callable[[LogitSet], FloatArray]


def compare(run: Run, per_class: int, *, two_fold: bool = False) -> dict[str, Any]:
    """One row of the results: figures of every method, averaged over the draws, and `choose` against each.

    With two_fold the calibration data are one half of the test images and the figures those of the other, both ways.
    """
    test = run.test_set
    fixed = _on_the_training_set(run)
    rounds = list(_rounds(run, per_class, two_fold))
    scored: dict[str, list[FloatArray]] = {name: [] for name in NAMES}
    methods, failed = [], set()
    for calibration_set, seen, _ in rounds:
        for name, scores in (fixed | _on_held_out(run, calibration_set)).items():
            try:
                scored[name].append(scores(seen))
            except (FitFailed, CalibrationError) as error:
                failed.add(f"{name}: {error}")
        methods.append(choose(calibration_set, run.ledger, run.row_norms).calibration.method)
    labels = [seen.labels for _, seen, _ in rounds]
    complete = {name: each for name, each in scored.items() if len(each) == len(rounds)}
    right = {
        name: _by_image(rounds, [s.argmax(axis=1) == y for s, y in zip(each, labels, strict=True)], test.labels.size)
        for name, each in complete.items()
    }
    return {
        "per_class": per_class,
        "rounds": len(rounds),
        "two_fold": two_fold,
        "chosen": {method: methods.count(method) for method in sorted(set(methods))},
        "figures": {name: _mean_figures(each, labels, run.ledger.class_counts) for name, each in complete.items()},
        "choose_minus": {name: _difference(right["choose"], right[name], test.labels) for name in complete},
        "reliability": {
            name: [
                [round(point.confidence, 4), round(point.accuracy.value, 4), round(point.share, 4)]
                for point in reliability(complete[name][0], labels[0])
                if point.confidence is not None and point.accuracy.value is not None
            ]
            for name in DRAWN
            if name in complete
        },
        "failed": sorted(failed),
    }


def _rounds(run: Run, per_class: int, two_fold: bool) -> Iterator[tuple[LogitSet, LogitSet, IntArray]]:
    """Calibration set, test images, and which test images these are."""
    everything = np.arange(run.test_set.labels.size)
    if two_fold:
        half = drawn(run.test_set.labels, per_class, seed=0)
        other = np.setdiff1d(everything, half)
        for fit_on, score in ((half, other), (other, half)):
            yield _as_calibration(run.test_set.subset(fit_on)), run.test_set.subset(score), score
        return
    available = int(run.calibration_set.class_counts.min())
    for seed in range(DRAWS if per_class < available else 1):
        rows = drawn(run.calibration_set.labels, per_class, seed)
        yield run.calibration_set.subset(rows), run.test_set, everything


def _as_calibration(logit_set: LogitSet) -> LogitSet:
    return LogitSet(logits=logit_set.logits, labels=logit_set.labels, split="calibration", drawn="half of the test set")


def drawn(labels: IntArray, per_class: int, seed: int) -> IntArray:
    order = np.random.default_rng(seed).permutation(labels.size)
    chosen = [order[labels[order] == label][:per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))


def _on_the_training_set(run: Run) -> dict[str, Scores]:
    """Methods that need no held-out images."""
    uniform = ClassPrior.uniform(run.test_set.num_classes)
    seen = read_logits(run.folder, "train")
    published, _ = fit_paper(seen, run.ledger.class_counts, run.row_norms)
    plain = closed_form_without_data(run.ledger)
    weight_scales = _learned_weight_scales(seen, run.ledger, _bias(run))
    return {
        "raw": lambda given: given.raw.scores(),
        "logit-adjustment": lambda given: plain.debias(given.raw).adjust(uniform).scores(),
        "marc-paper": lambda given: published_scores(published, given.raw),
        "lws": lambda given: softmax(weight_scales * (given.logits - _bias(run)) + _bias(run)),
    }


def _on_held_out(run: Run, calibration_set: LogitSet) -> dict[str, Scores]:
    uniform = ClassPrior.uniform(run.test_set.num_classes)

    def named(method: str) -> Scores:
        def scores(given: LogitSet) -> FloatArray:
            calibration, _ = fit_named(method, run.row_norms)(calibration_set, run.ledger)
            debiased = calibration.debias(given.raw)
            return debiased.scores() if method == "temperature" else debiased.adjust(uniform).scores()

        return scores

    def published_with_temperature(given: LogitSet) -> FloatArray:
        seen = read_logits(run.folder, "train")
        calibration, _ = fit_paper(seen, run.ledger.class_counts, run.row_norms, held_out=calibration_set)
        return calibration.debias(given.raw).adjust(uniform).scores()

    def chosen(given: LogitSet) -> FloatArray:
        calibration = choose(calibration_set, run.ledger, run.row_norms).calibration
        return calibration.debias(given.raw).adjust(uniform).scores()

    methods = ("temperature", "closed-form", "bcts", "vector-scaling", "marc")
    return {method: named(method) for method in methods} | {
        "marc-paper-t": published_with_temperature,
        "tau-norm": lambda given: _tau_normalised(run, given, _best_tau(run, calibration_set)),
        "choose": chosen,
    }


def _bias(run: Run) -> FloatArray:
    """The head's bias, centred as the logits are."""
    bias = read_classifier(run).head.bias.detach().double().numpy()
    return np.asarray(bias - bias.mean())


def _tau_normalised(run: Run, given: LogitSet, tau: float) -> FloatArray:
    """Rows divided by ||W_j||^tau, without the bias (Kang et al., ICLR 2020). Centring costs nothing at tau 0 alone, so
    the logits are those of the rows of W minus their mean, as everywhere here."""
    return softmax((given.logits - _bias(run)) / np.asarray(run.row_norms) ** tau)


def _best_tau(run: Run, calibration_set: LogitSet) -> float:
    right = [
        (_tau_normalised(run, calibration_set, tau).argmax(axis=1) == calibration_set.labels).mean() for tau in TAUS
    ]
    return float(TAUS[int(np.argmax(right))])


def _learned_weight_scales(seen: LogitSet, ledger: Ledger, bias: FloatArray) -> FloatArray:
    """One scale for each row of W, at the minimum of the class-balanced NLL of the training set (Kang et al., 2020)."""
    without_bias, labels = seen.logits - bias, seen.labels
    items = class_weights(ledger.class_counts, 1.0)[labels]
    items /= items.sum()
    true_mean = np.bincount(labels, weights=items * without_bias[np.arange(labels.size), labels], minlength=bias.size)

    def objective(scale: FloatArray) -> tuple[float, FloatArray]:
        probs = scale * without_bias + bias
        picked = probs[np.arange(labels.size), labels].copy()
        largest = probs.max(axis=1)
        np.exp(probs - largest[:, None], out=probs)
        total = probs.sum(axis=1)
        loss = float(items @ (np.log(total) + largest - picked))
        return loss, np.einsum("n,nc,nc->c", items / total, probs, without_bias) - true_mean

    return np.asarray(minimize(objective, np.ones(bias.size), jac=True, method="L-BFGS-B").x)


def _mean_figures(scored: list[FloatArray], labels: list[IntArray], counts: IntArray) -> dict[str, float]:
    names = ("balanced_accuracy", "many", "medium", "few", "ece", "nll")
    uniform = ClassPrior.uniform(counts.size)
    found = []
    for scores, truth in zip(scored, labels, strict=True):
        metrics = evaluate(scores, truth, class_counts=counts, target=uniform, resamples=1)
        found.append([getattr(metrics, name).value for name in names])
    return {name: round(float(value), 5) for name, value in zip(names, np.mean(found, axis=0), strict=True)}


def _by_image(rounds: list[tuple[LogitSet, LogitSet, IntArray]], right: list[Any], num_images: int) -> FloatArray:
    """Whether each test image is right, `(draws, N)`; the halves of a two-fold split make one draw."""
    if all(rows.size == num_images for _, _, rows in rounds):
        return np.stack(right).astype(np.float64)
    together = np.empty((1, num_images))
    for (_, _, rows), values in zip(rounds, right, strict=True):
        together[0, rows] = values
    return together


def _difference(a: FloatArray, b: FloatArray, labels: IntArray) -> list[float]:
    """Accuracy of a minus that of b with a 95 % interval, over test images and over draws of the calibration set."""
    gained = (a - b).mean(axis=0)
    classes = np.unique(labels)
    within = np.array([gained[labels == label].var(ddof=1) / (labels == label).sum() for label in classes])
    draws = (a - b).mean(axis=1)
    variance = within.sum() / classes.size**2 + (draws.var(ddof=1) / draws.size if draws.size > 1 else 0.0)
    middle, reach = float(gained.mean()), 1.96 * float(np.sqrt(variance))
    return [round(value, 5) for value in (middle, middle - reach, middle + reach)]


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table for each network and size."""
    parts = []
    for row in rows:
        where = "half of the test set, two-fold" if row["two_fold"] else f"{row['rounds']} draws"
        chosen = ", ".join(f"{method} {times} times" for method, times in row["chosen"].items())
        parts.append(f"**{row['network']}, {row['per_class']} a class ({where}); `choose` took {chosen}**\n")
        parts.append("| method | accuracy | many | medium | few | ECE | NLL | `choose` minus it |")
        parts.append("| --- " * 8 + "|")
        for name, said in NAMES.items():
            if name not in row["figures"]:
                parts.append(f"| {said} | no minimum | | | | | | |")
                continue
            f = row["figures"][name]
            cells = [f"{100 * f[part]:.1f}" for part in ("balanced_accuracy", "many", "medium", "few", "ece")]
            middle, low, high = (100 * value for value in row["choose_minus"][name])
            gap = "" if name == "choose" else f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"
            parts.append(f"| {said} | {' | '.join(cells)} | {f['nll']:.3f} | {gap} |")
        parts.append("")
    return "\n".join(parts).rstrip()
