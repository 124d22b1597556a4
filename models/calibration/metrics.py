"""How good scores are: by many, medium and few, weighted to any class prior without resampling, with intervals."""

from dataclasses import dataclass

import numpy as np

from models.calibration.errors import ShapeMismatch
from models.calibration.intervals import Interval, absolute_sum_interval, item_draws, percentile_interval
from models.calibration.outcomes import (
    NUM_BINS,
    Binning,
    Outcomes,
    Scored,
    bins_of,
    checked_weights,
    class_gaps,
    outcomes,
    target_weights,
)
from models.calibration.types import ClassPrior, FloatArray, IntArray

__all__ = [
    "FEW_BELOW",
    "GROUPS",
    "MANY_ABOVE",
    "NUM_BINS",
    "Interval",
    "Metrics",
    "evaluate",
    "expected_calibration_error",
    "group_of_class",
    "risk_coverage_area",
    "target_weights",
]

MANY_ABOVE, FEW_BELOW = 100, 20  # training examples a class, as in OLTR and all that followed
GROUPS = ("many", "medium", "few")
RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Fractions in [0, 1], NLL in nats, Brier score in [0, 2].

    `balanced_accuracy`, `many`, `medium` and `few` weigh classes alike; all else is weighted to a prior. `items` says
    how many examples each figure of a group rests on. `class_wise_ece` has no interval: with fewer than about 20
    examples a class most of its value is noise, and no bootstrap can tell how much.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    many: Interval
    medium: Interval
    few: Interval
    ece: Interval
    ece_equal_mass: Interval
    class_wise_ece: float | None
    nll: Interval
    brier: Interval
    aurc: Interval
    items: dict[str, int]


def group_of_class(class_counts: IntArray) -> IntArray:
    """0 many, 1 medium, 2 few, for each class `(C,)`, by its training examples."""
    return np.where(class_counts > MANY_ABOVE, 0, np.where(class_counts < FEW_BELOW, 2, 1)).astype(np.int64)


def evaluate(
    scores: Scored, labels: IntArray, *, class_counts: IntArray, target: ClassPrior, resamples: int = RESAMPLES
) -> Metrics:
    """All figures of scores `(N, C)` on labelled examples, as if their classes followed `target`.

    An item of class y weighs target_y / m_y, with m the class counts of these examples: exact for label shift, and no
    example is drawn twice or thrown away. Classes without an example weigh nothing.

    The intervals are those of a bootstrap over items: percentiles, but for the two ECE (`absolute_sum_interval`), whose
    values noise makes too large: calibrated scores had .084, .027 and .012 on average with 200, 2,000 and 10,000 items.
    In simulations with these sizes, 10 and 100 classes and a true ECE between 0 and .27, their intervals held the true
    one in 93 to 99 of 100 samples; percentiles in none where it was 0.

    Args: scores, an array of probabilities, or logits by their type: then the NLL is exact where scores underflow; a
        score of exactly 0 costs 744 nats. class_counts `(C,)` of the *training* set, for the groups. resamples of the
        bootstrap, seed fixed, so that two calls on the same examples draw the same items.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for an array that holds no probabilities.
    """
    found = outcomes(scores, labels)
    _check_classes(scores, class_counts, target)
    to_target = target_weights(labels, target)
    to_classes = 1.0 / np.bincount(labels)[labels]
    group = group_of_class(class_counts)[labels]
    means = {
        "accuracy": (to_target, found.correct),
        "nll": (to_target, found.loss),
        "brier": (to_target, found.brier),
        "balanced_accuracy": (to_classes, found.correct),
        **{name: (to_classes * (group == index), found.correct) for index, name in enumerate(GROUPS)},
    }
    errors = {"ece": _bin_gaps(found, to_target, "width"), "ece_equal_mass": _bin_gaps(found, to_target, "mass")}
    intervals = _intervals(means, errors, found, to_target, resamples)
    items = {name: int((group == index).sum()) for index, name in enumerate(GROUPS)}
    mass = float(to_target.sum())
    class_wise = (
        float(np.abs(class_gaps(scores, labels, to_target)).sum()) / mass / target.num_classes if mass else None
    )
    return Metrics(items={"all": int(labels.size), **items}, class_wise_ece=class_wise, **intervals)


def expected_calibration_error(
    scores: Scored,
    labels: IntArray,
    *,
    weights: FloatArray | None = None,
    num_bins: int = NUM_BINS,
    binning: Binning = "width",
) -> float:
    """Mean gap between top-1 confidence and accuracy over bins (Guo et al., ICML 2017, eq. 3).

    Args: scores `(N, C)`, rows sum to 1, or logits by their type. labels `(N,)`. weights `(N,)` of the items, all alike
        by default. binning, `width` or `mass` (equal weights in the bins, ties together).
    Returns: a fraction in [0, 1]; empty bins weigh nothing.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for wrong weights, bins or scores.
    """
    found = outcomes(scores, labels)
    items = checked_weights(weights, labels.size)
    return float(np.abs(_bin_gaps(found, items, binning, num_bins).sum(axis=0)).sum() / items.sum())


def risk_coverage_area(scores: Scored, labels: IntArray, *, weights: FloatArray | None = None) -> float:
    """AURC: the mean over items of the error rate among all items at least as confident (Geifman and El-Yaniv, 2019).

    The confidence is the largest score; equal ones are accepted together, so that their order says nothing. With
    weights, error rates and mean are weighted: the risk where items occur as they weigh.

    Args: as `expected_calibration_error`.
    Returns: a fraction in [0, 1]; at most the error rate where confidence ranks the errors at least as well as chance.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for wrong weights or scores.
    """
    items = checked_weights(weights, labels.size)
    return float(_risk_coverage(outcomes(scores, labels), items, np.ones((1, labels.size)))[0])


def _intervals(
    means: dict[str, tuple[FloatArray, FloatArray]],
    errors: dict[str, FloatArray],
    found: Outcomes,
    to_target: FloatArray,
    resamples: int,
) -> dict[str, Interval]:
    """All figures of all resamples, a block of resamples at a time; the memory does not grow with their number."""
    masses = np.stack([weights for weights, _ in means.values()], axis=1)
    totals = np.stack([weights * values for weights, values in means.values()], axis=1)
    gaps = np.concatenate(list(errors.values()), axis=1)
    ratios, sums, areas = [], [], []
    with np.errstate(invalid="ignore"):  # 0 / 0 where no item of the group was drawn: NaN, left out of the interval
        for draws in item_draws(to_target.size, resamples):
            ratios.append((draws @ totals) / (draws @ masses))
            sums.append((draws @ gaps) / (draws @ to_target)[:, None])
            areas.append(_risk_coverage(found, to_target, draws))
    intervals = {name: percentile_interval(each) for name, each in zip(means, np.concatenate(ratios).T, strict=True)}
    for name, each in zip(errors, np.split(np.concatenate(sums), len(errors), axis=1), strict=True):
        intervals[name] = absolute_sum_interval(each)
    return intervals | {"aurc": percentile_interval(np.concatenate(areas))}


def _risk_coverage(found: Outcomes, weights: FloatArray, draws: FloatArray) -> FloatArray:
    """AURC of each row of draws `(b, N)`, how often each item counts; NaN where nothing weighs."""
    order = np.argsort(-found.confidence, kind="stable")
    confidence = found.confidence[order]
    last = np.append(np.flatnonzero(confidence[1:] != confidence[:-1]), order.size - 1)  # of each run of equal ones
    weighed = draws[:, order] * weights[order]
    accepted = weighed.cumsum(axis=1)[:, last]
    weighed *= 1.0 - found.correct[order]
    wrong = weighed.cumsum(axis=1)[:, last]
    risk = np.divide(wrong, accepted, out=np.zeros_like(wrong), where=accepted > 0)
    with np.errstate(invalid="ignore"):
        return np.asarray((np.diff(accepted, axis=1, prepend=0.0) * risk).sum(axis=1) / accepted[:, -1])


def _bin_gaps(found: Outcomes, weights: FloatArray, binning: Binning, num_bins: int = NUM_BINS) -> FloatArray:
    """Weight times confidence minus correctness of each item, in the column of its bin: `(N, num_bins)`."""
    bins = bins_of(found.confidence, weights, binning=binning, num_bins=num_bins)
    gaps = np.zeros((weights.size, num_bins))
    gaps[np.arange(weights.size), bins] = weights * (found.confidence - found.correct)
    return gaps


def _check_classes(scores: Scored, class_counts: IntArray, target: ClassPrior) -> None:
    num_classes = (scores if isinstance(scores, np.ndarray) else scores.values).shape[1]
    if np.shape(class_counts) != (num_classes,) or target.num_classes != num_classes:
        raise ShapeMismatch(
            f"class_counts and target have one number for each of the {num_classes} classes of the scores; got "
            f"{np.shape(class_counts)} and {target.num_classes}."
        )
