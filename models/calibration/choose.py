"""Which calibration the data support, with the reasons in words."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from models.calibration import marc, temperature
from models.calibration.affine import balanced_weights, item_nll, require_held_out
from models.calibration.errors import CalibrationError, FitFailed
from models.calibration.prior import Ledger, total_variation
from models.calibration.types import Calibration, ClassPrior, DebiasedLogits, FitReport, FloatArray, IntArray, LogitSet

Fit = Callable[[LogitSet, Ledger], tuple[Calibration, FitReport]]

CANDIDATES = ("closed-form", "bcts", "marc")  # from the simplest to the richest
METHODS = ("temperature", *CANDIDATES, "vector-scaling")
FOLDS = 5
MIN_PER_CLASS = 2  # examples, so that no fold leaves a class without any
MIN_ITEMS = 50  # fewer do not tell the error of the comparison itself
MIN_TO_DOUBT = 10  # examples: fewer do not tell their own noise
DOUBT = 3.0  # standard errors by which another implied prior must be better before the ledger is doubted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choice:
    """The chosen calibration; `balanced_nll` holds each candidate's out-of-fold class-balanced NLL (nats)."""

    calibration: Calibration
    report: FitReport
    balanced_nll: dict[str, float]
    reason: str


def fit_named(method: str, row_norms: ArrayLike | None = None) -> Fit:
    """The fit behind a method's name.

    Raises: CalibrationError for another name.
    """
    fits: dict[str, Fit] = {
        "temperature": temperature.fit_temperature,
        "closed-form": temperature.fit_closed_form,
        "bcts": temperature.fit_bcts,
        "vector-scaling": temperature.fit_vector_scaling,
        "marc": lambda logit_set, ledger: marc.fit_held_out(logit_set, ledger, row_norms),
    }
    if method not in fits:
        raise CalibrationError(f"the calibration methods are {', '.join(METHODS)}; got {method!r}.")
    return fits[method]


def choose(logit_set: LogitSet, ledger: Ledger, row_norms: ArrayLike | None = None) -> Choice:
    """The simplest of closed form, BCTS and MARC whose cross-validated class-balanced NLL is within one standard error
    of the best; the error is that of the paired difference. Too few examples to compare on leave the closed form.

    The report warns where the examples speak against the ledger: a prior taken out twice, or never, is the commonest
    wrong answer of the field.

    Raises: LeakedSplit for training data, NotEnoughData, ShapeMismatch, FitFailed.
    """
    choice = _choose(logit_set, ledger, row_norms)
    report = replace(choice.report, warnings=choice.report.warnings + _doubts(logit_set, ledger))
    return replace(choice, calibration=with_warnings(choice.calibration, report), report=report)


def _choose(logit_set: LogitSet, ledger: Ledger, row_norms: ArrayLike | None) -> Choice:
    require_held_out(logit_set)
    fewest = int(logit_set.class_counts.min())
    if fewest < MIN_PER_CLASS or logit_set.labels.size < MIN_ITEMS:
        calibration, report = fit_named("closed-form")(logit_set, ledger)
        reason = (
            f"closed-form: the calibration set has {logit_set.labels.size} examples and a class with {fewest}; fits "
            f"with parameters for each class are compared on {MIN_ITEMS} or more, {MIN_PER_CLASS} of every class."
        )
        return Choice(calibration=_signed(calibration, reason), report=report, balanced_nll={}, reason=reason)
    weights = balanced_weights(logit_set)
    losses = {}
    for method in CANDIDATES:
        with suppress(FitFailed):  # a candidate that cannot be fitted is none; the closed form always can
            losses[method] = item_nll(out_of_fold(fit_named(method, row_norms), logit_set, ledger).values, logit_set)
    scores = {method: float(weights @ loss) for method, loss in losses.items()}
    best = min(scores, key=scores.__getitem__)
    chosen, gap, error = best, 0.0, 0.0
    for method in losses:
        mean, spread = _mean_and_error(losses[method] - losses[best], weights)
        if mean <= spread:
            chosen, gap, error = method, mean, spread
            break
    calibration, report = fit_named(chosen, row_norms)(logit_set, ledger)
    few = temperature.few_examples(logit_set)  # said to a person who names a method; here the comparison has answered
    report = replace(report, warnings=tuple(warning for warning in report.warnings if warning not in few))
    table = ", ".join(f"{method} {score:.4f}" for method, score in scores.items())
    why = (
        "the best"
        if chosen == best
        else f"the simplest within one standard error ({error:.4f}) of {best}, {gap:.4f} behind"
    )
    reason = f"{chosen}: {why} by class-balanced NLL over {num_folds(logit_set)} folds ({table})."
    return Choice(calibration=_signed(calibration, reason), report=report, balanced_nll=scores, reason=reason)


def _mean_and_error(differences: FloatArray, weights: FloatArray) -> tuple[float, float]:
    """The weighted mean of paired differences and its standard error; the weights sum to 1."""
    mean = float(weights @ differences)
    return mean, float(np.sqrt(np.sum((weights * (differences - mean)) ** 2)))


def _doubts(logit_set: LogitSet, ledger: Ledger) -> tuple[str, ...]:
    """A warning where another implied prior than the ledger's explains the labelled examples better, beyond noise."""

    def debiased(implied_prior: ClassPrior) -> FloatArray:
        fitted, _ = temperature.fit_closed_form(logit_set, replace(ledger, implied_prior=implied_prior))
        return fitted.debias(logit_set.raw).values

    num_items, num_classes = logit_set.labels.size, logit_set.num_classes
    if num_items < MIN_TO_DOUBT or not logit_set.class_counts.all():
        return ()
    weights = balanced_weights(logit_set)
    by_ledger = debiased(ledger.implied_prior)
    hits = int((by_ledger.argmax(axis=1) == logit_set.labels).sum())
    chance = num_items / num_classes
    if hits <= chance + DOUBT * np.sqrt(chance):
        wrong = f"the labels fit the logits no better than chance: {hits} of {num_items} examples are right"
        return (f"{wrong}. Check that both are of the same examples, and the order of the classes.",)
    here = item_nll(by_ledger, logit_set)
    others = {
        "a uniform implied prior, as of training that debiases,": ClassPrior.uniform(num_classes),
        "an implied prior like the training counts, as of plain cross-entropy,": ledger.training_prior,
    }
    for said, prior in others.items():
        gain, error = _mean_and_error(here - item_nll(debiased(prior), logit_set), weights)
        if gain > DOUBT * error and total_variation(prior, ledger.implied_prior) > 0:
            against = f"the labelled examples speak against the training that was said ({ledger.trained_with})"
            by = f"class-balanced NLL lower by {gain:.3f}, standard error {error:.3f}"
            return (f"{against}: {said} explains them better ({by}). Check the training counts and trained_with.",)
    return ()


def with_warnings(calibration: Calibration, report: FitReport) -> Calibration:
    """The calibration with the warnings of its fit in its provenance, so that they travel with it."""
    if not report.warnings:
        return calibration
    return replace(calibration, provenance={**calibration.provenance, "warnings": list(report.warnings)})


def was_chosen(calibration: Calibration) -> bool:
    """Whether the data chose the method (`choose`) rather than a person."""
    return "chosen" in calibration.provenance


def _signed(calibration: Calibration, reason: str) -> Calibration:
    return replace(calibration, provenance={**calibration.provenance, "chosen": reason})


def out_of_fold(fit: Fit, logit_set: LogitSet, ledger: Ledger) -> DebiasedLogits:
    """Debiased logits `(N, C)` under a uniform implied prior, each row from a fit that did not see it; nor did a ledger
    that was measured."""
    uniform = ClassPrior.uniform(logit_set.num_classes)
    debiased = np.empty_like(logit_set.logits)
    folds = folds_of(logit_set.labels, num_folds(logit_set))
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        seen = logit_set.subset(outside)
        calibration, _ = fit(seen, ledger.measured_anew(seen))
        debiased[inside] = calibration.debias(logit_set.subset(inside).raw).adjust(uniform).values
    return DebiasedLogits(debiased, uniform)


def num_folds(logit_set: LogitSet) -> int:
    """5, or as many as there are examples when there are fewer."""
    return min(FOLDS, int(logit_set.labels.size))


def folds_of(labels: IntArray, folds: int) -> IntArray:
    """Fold of each item `(N,)`: classes spread evenly, the same split every time."""
    order = np.random.default_rng(0).permutation(labels.size)
    by_class = order[np.argsort(labels[order], kind="stable")]
    assigned = np.empty(labels.size, dtype=np.int64)
    assigned[by_class] = np.arange(labels.size) % folds
    return assigned
