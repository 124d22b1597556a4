"""Reliability: how often decisions of about one confidence are right, overall and by many, medium and few."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import ShapeMismatch
from models.calibration.intervals import NOTHING, Interval, wilson_interval
from models.calibration.metrics import GROUPS, group_of_class
from models.calibration.outcomes import NUM_BINS, Binning, Outcomes, Scored, bins_of, checked_weights, outcomes
from models.calibration.types import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """One point of a reliability diagram, plain numbers ready for JSON by `asdict`.

    Args: low and high, the least and greatest confidence that falls in: the edges (low, high] of a bin of equal width,
        the range met in one of equal mass. share of all weight. items, a plain count. confidence, their weighted mean.
        accuracy, the weighted share that is right, with Wilson's 95 % interval for the effective number of items. None
        where the bin is empty.
    """

    low: float | None
    high: float | None
    share: float
    items: int
    confidence: float | None
    accuracy: Interval


def reliability(
    scores: Scored,
    labels: IntArray,
    *,
    weights: FloatArray | None = None,
    num_bins: int = NUM_BINS,
    binning: Binning = "width",
) -> tuple[ReliabilityBin, ...]:
    """The bins of a reliability diagram, from the lowest confidence to the highest.

    The gaps between confidence and accuracy times the shares sum to `expected_calibration_error` with the same options.

    Args: scores `(N, C)`, rows sum to 1, or logits by their type. labels `(N,)`. weights `(N,)`, of
        `metrics.target_weights` where the classes shall follow a target prior; all alike by default.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for wrong weights, bins or scores.
    """
    found, items = outcomes(scores, labels), checked_weights(weights, labels.size)
    return _diagram(found, items, np.ones(labels.size, dtype=np.bool_), num_bins, binning)


def reliability_by_group(
    scores: Scored,
    labels: IntArray,
    *,
    class_counts: IntArray,
    weights: FloatArray | None = None,
    num_bins: int = NUM_BINS,
    binning: Binning = "width",
) -> dict[str, tuple[ReliabilityBin, ...]]:
    """`reliability` of `all` items and of those *decided* for a class of `many`, `medium` or `few` training examples.

    By the decision and not by the truth: scores that are right on average for each decision still look too bold among
    the items whose true class is rare, because the truth was looked at. A group's shares are of its own weight.

    Args: class_counts `(C,)` of the training set; the rest as `reliability`.
    Raises: as `reliability`, and ShapeMismatch for class_counts of another length.
    """
    found, items = outcomes(scores, labels), checked_weights(weights, labels.size)
    num_classes = (scores if isinstance(scores, np.ndarray) else scores.values).shape[1]
    if np.shape(class_counts) != (num_classes,):
        raise ShapeMismatch(f"class_counts must be ({num_classes},) like the scores; got {np.shape(class_counts)}.")
    group = group_of_class(class_counts)[found.decision]
    members = {"all": group >= 0} | {name: group == index for index, name in enumerate(GROUPS)}
    return {name: _diagram(found, items, inside, num_bins, binning) for name, inside in members.items()}


def _diagram(
    found: Outcomes, weights: FloatArray, inside: NDArray[np.bool_], num_bins: int, binning: Binning
) -> tuple[ReliabilityBin, ...]:
    confidence, correct, items = found.confidence[inside], found.correct[inside], weights[inside]
    bins = bins_of(confidence, items, binning=binning, num_bins=num_bins)
    total = max(float(items.sum()), np.finfo(np.float64).tiny)
    points = []
    for index in range(num_bins):
        within = bins == index
        low: float | None = index / num_bins
        high: float | None = (index + 1) / num_bins
        if binning == "mass":
            met = confidence[within]
            low, high = (float(met.min()), float(met.max())) if met.size else (None, None)
        points.append(_point(confidence[within], correct[within], items[within], total, low, high))
    return tuple(points)


def _point(
    confidence: FloatArray,
    correct: FloatArray,
    weights: FloatArray,
    total: float,
    low: float | None,
    high: float | None,
) -> ReliabilityBin:
    mass = float(weights.sum())
    known = mass > 0
    relative = weights / weights.max() if known else weights  # squares of the tiniest weights would be 0
    return ReliabilityBin(
        low=low,
        high=high,
        share=mass / total,
        items=int(weights.size),
        confidence=float(weights @ confidence) / mass if known else None,
        accuracy=wilson_interval(float(weights @ correct) / mass, float(relative.sum() ** 2 / (relative @ relative)))
        if known
        else NOTHING,
    )
