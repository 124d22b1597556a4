"""Which calibration the data support, with the reasons in words."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from models.calibration import marc, temperature
from models.calibration.affine import balanced_weights, require_held_out
from models.calibration.errors import CalibrationError
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, FitReport, FloatArray, IntArray, LogitSet, log_softmax

Fit = Callable[[LogitSet, Ledger], tuple[Calibration, FitReport]]

METHODS = ("closed-form", "bcts", "marc")  # from the simplest to the richest
MIN_PER_CLASS = 5  # fewer labelled examples of a class do not carry parameters of its own
FOLDS = 5


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
        "closed-form": temperature.fit_closed_form,
        "bcts": temperature.fit_bcts,
        "marc": lambda logit_set, ledger: marc.fit_held_out(logit_set, ledger, row_norms),
    }
    if method not in fits:
        raise CalibrationError(f"the calibration methods are {', '.join(METHODS)}; got {method!r}.")
    return fits[method]


def choose(logit_set: LogitSet, ledger: Ledger, row_norms: ArrayLike | None = None) -> Choice:
    """The simplest of closed form, BCTS and MARC whose cross-validated class-balanced NLL is within one standard error
    of the best; the error is that of the paired difference. Per-class fits need 5 examples of every class.

    Raises: LeakedSplit for training data, NotEnoughData, ShapeMismatch, FitFailed.
    """
    require_held_out(logit_set)
    fewest = int(logit_set.class_counts.min())
    if fewest < MIN_PER_CLASS:
        calibration, report = fit_named("closed-form")(logit_set, ledger)
        reason = (
            f"closed-form: the calibration set has a class with {fewest} examples; fits with parameters of their own "
            f"for each class need at least {MIN_PER_CLASS} of every class."
        )
        return Choice(calibration=_signed(calibration, reason), report=report, balanced_nll={}, reason=reason)
    weights = balanced_weights(logit_set)
    losses = {
        method: _item_nll(out_of_fold(fit_named(method, row_norms), logit_set, ledger), logit_set) for method in METHODS
    }
    scores = {method: float(weights @ loss) for method, loss in losses.items()}
    best = min(METHODS, key=scores.__getitem__)
    chosen, gap, error = best, 0.0, 0.0
    for method in METHODS:
        difference = losses[method] - losses[best]
        mean = float(weights @ difference)
        spread = float(np.sqrt(np.sum((weights * (difference - mean)) ** 2)))
        if mean <= spread:
            chosen, gap, error = method, mean, spread
            break
    calibration, report = fit_named(chosen, row_norms)(logit_set, ledger)
    table = ", ".join(f"{method} {score:.4f}" for method, score in scores.items())
    why = (
        "the best"
        if chosen == best
        else f"the simplest within one standard error ({error:.4f}) of {best}, {gap:.4f} behind"
    )
    reason = f"{chosen}: {why} by class-balanced NLL over {num_folds(logit_set)} folds ({table})."
    return Choice(calibration=_signed(calibration, reason), report=report, balanced_nll=scores, reason=reason)


def was_chosen(calibration: Calibration) -> bool:
    """Whether the data chose the method (`choose`) rather than a person."""
    return "chosen" in calibration.provenance


def _signed(calibration: Calibration, reason: str) -> Calibration:
    return replace(calibration, provenance={**calibration.provenance, "chosen": reason})


def out_of_fold(fit: Fit, logit_set: LogitSet, ledger: Ledger) -> FloatArray:
    """Debiased logits `(N, C)`, each row from a fit that did not see it.

    Valid as one array because every fit here leaves the same implied prior, the uniform one.
    """
    debiased = np.empty_like(logit_set.logits)
    folds = _folds(logit_set.labels, num_folds(logit_set))
    for fold in np.unique(folds):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        calibration, _ = fit(logit_set.subset(outside), ledger)
        debiased[inside] = calibration.debias(logit_set.subset(inside).raw).values
    return debiased


def num_folds(logit_set: LogitSet) -> int:
    """5, or as many as there are examples when there are fewer."""
    return min(FOLDS, int(logit_set.labels.size))


def _folds(labels: IntArray, folds: int) -> IntArray:
    """Fold of each item `(N,)`: classes spread evenly, the same split every time."""
    order = np.random.default_rng(0).permutation(labels.size)
    by_class = order[np.argsort(labels[order], kind="stable")]
    assigned = np.empty(labels.size, dtype=np.int64)
    assigned[by_class] = np.arange(labels.size) % folds
    return assigned


def _item_nll(debiased: FloatArray, logit_set: LogitSet) -> FloatArray:
    return -log_softmax(debiased)[np.arange(logit_set.labels.size), logit_set.labels]
