"""How good scores are: by many, medium and few, weighted to any class prior without resampling, with intervals."""

from dataclasses import dataclass

import numpy as np

from models.calibration.errors import NotEnoughData, ShapeMismatch
from models.calibration.types import ClassPrior, FloatArray, IntArray

MANY_ABOVE, FEW_BELOW = 100, 20  # training examples a class, as in OLTR and all that followed
GROUPS = ("many", "medium", "few")
NUM_BINS = 15
RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A value with its 95 % percentile bootstrap interval; all None where no example speaks to it."""

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """Fractions in [0, 1], NLL in nats. `accuracy`, `ece` and `nll` are weighted to a prior; the rest to classes alike.

    `items` says how many examples each figure of a group rests on.
    """

    accuracy: Interval
    balanced_accuracy: Interval
    many: Interval
    medium: Interval
    few: Interval
    ece: Interval
    nll: Interval
    items: dict[str, int]


def group_of_class(class_counts: IntArray) -> IntArray:
    """0 many, 1 medium, 2 few, for each class `(C,)`, by its training examples."""
    return np.where(class_counts > MANY_ABOVE, 0, np.where(class_counts < FEW_BELOW, 2, 1)).astype(np.int64)


def expected_calibration_error(
    scores: FloatArray, labels: IntArray, *, weights: FloatArray | None = None, num_bins: int = NUM_BINS
) -> float:
    """Mean gap between top-1 confidence and accuracy over equal-width bins (Guo et al., ICML 2017, eq. 3).

    Args: scores `(N, C)`, rows sum to 1. labels `(N,)`. weights `(N,)` of the items, all alike by default.
    Returns: a fraction in [0, 1]; empty bins weigh nothing.
    Raises: ShapeMismatch, NotEnoughData.
    """
    _check(scores, labels)
    items = np.ones(labels.size) if weights is None else weights
    gaps = _bin_gaps(scores, labels, num_bins)
    return float(np.abs((items[:, None] * gaps).sum(axis=0)).sum() / items.sum())


def evaluate(
    scores: FloatArray, labels: IntArray, *, class_counts: IntArray, target: ClassPrior, resamples: int = RESAMPLES
) -> Metrics:
    """All figures of scores `(N, C)` on labelled examples, as if their classes followed `target`.

    An item of class y weighs target_y / m_y, with m the class counts of these examples: exact for label shift, and no
    example is drawn twice or thrown away. Classes without an example weigh nothing.

    Args: class_counts `(C,)` of the *training* set, for the groups. resamples of the bootstrap over items, seed fixed,
        so that two calls on the same examples draw the same items.
    Raises: ShapeMismatch, NotEnoughData.
    """
    _check(scores, labels)
    present = np.bincount(labels, minlength=scores.shape[1])
    draws = _draws(labels.size, resamples)  # row 0 is the sample itself
    to_target = target.probs[labels] / present[labels]
    to_classes = 1.0 / present[labels]
    correct = (scores.argmax(axis=1) == labels).astype(np.float64)
    picked = scores[np.arange(labels.size), labels]
    loss = -np.log(np.maximum(picked, np.finfo(np.float64).tiny))
    group = group_of_class(class_counts)[labels]
    figures = {
        "accuracy": _weighted_mean(draws, to_target, correct),
        "balanced_accuracy": _weighted_mean(draws, to_classes, correct),
        "ece": _weighted_ece(draws, to_target, scores, labels),
        "nll": _weighted_mean(draws, to_target, loss),
    }
    for index, name in enumerate(GROUPS):
        figures[name] = _weighted_mean(draws, to_classes * (group == index), correct)
    items = {name: int((group == index).sum()) for index, name in enumerate(GROUPS)}
    intervals = {name: _interval(values) for name, values in figures.items()}
    return Metrics(items={"all": int(labels.size), **items}, **intervals)


def _check(scores: FloatArray, labels: IntArray) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ShapeMismatch(f"scores are (N, C) and labels (N,); got {scores.shape} and {labels.shape}.")
    if not labels.size:
        raise NotEnoughData("metrics need at least one labelled example; got none.")


def _draws(num_items: int, resamples: int) -> FloatArray:
    """How often each item is drawn, `(1 + resamples, N)`."""
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(num_items, np.full(num_items, 1.0 / num_items), size=resamples)
    return np.concatenate([np.ones((1, num_items)), drawn])


def _weighted_mean(draws: FloatArray, weights: FloatArray, values: FloatArray) -> FloatArray:
    with np.errstate(invalid="ignore"):  # 0 / 0 where no item of the group was drawn: NaN, dropped by `_interval`
        return np.asarray((draws @ (weights * values)) / (draws @ weights), dtype=np.float64)


def _weighted_ece(draws: FloatArray, weights: FloatArray, scores: FloatArray, labels: IntArray) -> FloatArray:
    gaps = draws @ (weights[:, None] * _bin_gaps(scores, labels, NUM_BINS))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(gaps).sum(axis=1) / (draws @ weights), dtype=np.float64)


def _bin_gaps(scores: FloatArray, labels: IntArray, num_bins: int) -> FloatArray:
    """Confidence minus correctness of each item, in the column of its bin: `(N, num_bins)`. Bins are (low, high]."""
    confidence = scores.max(axis=1)
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
    gaps = np.zeros((labels.size, num_bins))
    gaps[np.arange(labels.size), bins] = confidence - (scores.argmax(axis=1) == labels)
    return gaps


def _interval(values: FloatArray) -> Interval:
    if not np.isfinite(values[0]):
        return Interval(value=None, low=None, high=None)
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return Interval(value=float(values[0]), low=float(low), high=float(high))
