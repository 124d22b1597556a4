"""Figures for a closer look: calibration of each class, Brier score, F1, logits and margins by class, paired bounds.

Beside `metrics.evaluate`, which holds the headline figures. Pure functions of arrays; no item is weighted to a prior.
"""

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.errors import CalibrationError, InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.marc import checked_row_norms
from models.calibration.metrics import NUM_BINS, Interval
from models.calibration.types import FloatArray, IntArray


def class_wise_ece(scores: FloatArray, labels: IntArray, num_bins: int = NUM_BINS) -> float:
    """Mean over the classes of the binned gap between the score of a class and how often it is the true one.

    The static calibration error of Nixon et al. (CVPR workshops 2019), called classwise-ECE by Kull et al. (NeurIPS
    2019): all N scores of a class lie in equal-width bins (low, high], a bin weighs its share of the N items, the gap
    is taken as it is (the marginal calibration error of Kumar et al., NeurIPS 2019, squares it). Most scores of a
    problem with many classes are near 0 and near right, so that the figure falls as C grows: compare it at equal C.

    Args: scores `(N, C)`, rows sum to 1. labels `(N,)`. num_bins, at least 1.
    Returns: a fraction in [0, 1].
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for no bins.
    """
    _check(scores, labels)
    if num_bins < 1:
        raise CalibrationError(f"scores need at least one bin; got {num_bins}.")
    total = 0.0
    for index in range(scores.shape[1]):  # a class at a time: N x C x bins would not fit for thousands of classes
        column = scores[:, index]
        bins = np.clip(np.ceil(column * num_bins).astype(np.int64) - 1, 0, num_bins - 1)
        total += float(np.abs(np.bincount(bins, weights=column - (labels == index))).sum())
    return total / scores.size


def brier_score(scores: FloatArray, labels: IntArray) -> float:
    """Squared distance between the scores and the one-hot truth, summed over classes, mean over items (Brier 1950).

    Args: scores `(N, C)`, rows sum to 1. labels `(N,)`.
    Returns: a number in [0, 2]; 0 for certainty that is always right, 2 for certainty that is always wrong.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    _check(scores, labels)
    gaps = np.array(scores, dtype=np.float64)
    gaps[np.arange(labels.size), labels] -= 1.0
    return float((gaps**2).sum(axis=1).mean())


def macro_f1(scores: FloatArray, labels: IntArray) -> float:
    """Mean over classes of F1 = 2 TP / (predicted + true), the decision being the largest score.

    A class that is neither predicted nor true says nothing and is left out of the mean; one that is predicted but never
    true, or true but never predicted, counts 0. So does scikit-learn when it is given no list of labels.

    Args: scores `(N, C)`. labels `(N,)`.
    Returns: a fraction in [0, 1].
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    _check(scores, labels)
    decisions, num_classes = scores.argmax(axis=1), scores.shape[1]
    hits = np.bincount(labels[decisions == labels], minlength=num_classes)
    seen = np.bincount(decisions, minlength=num_classes) + np.bincount(labels, minlength=num_classes)
    return float((2.0 * hits[seen > 0] / seen[seen > 0]).mean())


def per_class_accuracy(scores: FloatArray, labels: IntArray) -> FloatArray:
    """Share of the items of each class `(C,)` that the largest score gets right; NaN for a class without items.

    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    _check(scores, labels)
    return _mean_by_class((scores.argmax(axis=1) == labels).astype(np.float64), labels, scores.shape[1])


def mean_logit_by_class(logits: FloatArray, labels: IntArray) -> FloatArray:
    """Mean logit of the true class, `(C,)`: entry j is the mean of z_j over the items *of class j*, right or wrong.

    What frequent classes get more of, and calibration evens out (Wang et al., ACML 2022). Raw or debiased, as given.

    Args: logits `(N, C)`. labels `(N,)`.
    Returns: the unit of the logits; NaN for a class without items.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    _check(logits, labels)
    return _mean_by_class(logits[np.arange(labels.size), labels], labels, logits.shape[1])


def mean_margin_by_class(logits: FloatArray, labels: IntArray, row_norms: ArrayLike) -> FloatArray:
    """Mean margin of the true class, `(C,)`: entry j is the mean of d_j = z_j / ||W_j|| over all items *of class j*,
    the wrongly decided ones included.

    d_j is the signed distance of the features to class j's plane (Wang et al., ACML 2022), if the logits are
    the head's own: those of a `LogitSet` are centred, and their d_j is measured to the plane of W_j - mean W.

    Args: logits `(N, C)`. labels `(N,)`. row_norms `(C,)`, ||W_j|| of the linear head without its bias.
    Returns: the unit of the features; NaN for a class without items.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, InvalidCalibration for a norm that is not positive.
    """
    _check(logits, labels)
    return mean_logit_by_class(logits, labels) / checked_row_norms(row_norms, logits.shape[1])


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike, labels: IntArray, resamples: int = 2000) -> Interval:
    """Class-balanced accuracy of b minus that of a on the same items, with a 95 % percentile bootstrap interval.

    Items are resampled within their class, the same ones for a and b, the seed fixed. An item adds -1, 0 or 1 to its
    class, so that resampling a class is a multinomial draw of three counts: exact, and the memory does not depend on N.
    A class of very few items hardly varies under the bootstrap; with such classes the interval is too narrow.

    Args: correct_a and correct_b `(N,)`, booleans. labels `(N,)`; classes without an item weigh nothing.
    Returns: fractions in [-1, 1].
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for what is not boolean or for no resamples.
    """
    a, b = np.asarray(correct_a), np.asarray(correct_b)
    if not (a.shape == b.shape == labels.shape) or labels.ndim != 1:
        raise ShapeMismatch(
            f"correct_a, correct_b and labels are (N,), one for each item; got {a.shape}, {b.shape} and {labels.shape}."
        )
    if a.dtype != np.bool_ or b.dtype != np.bool_:
        raise CalibrationError(f"correct_a and correct_b are booleans; got {a.dtype} and {b.dtype}. Compare to labels.")
    if resamples < 1:
        raise CalibrationError(f"an interval needs at least one resample; got {resamples}.")
    _check_labels(labels)
    gained = b.astype(np.int64) - a
    rng = np.random.default_rng(0)
    present = np.unique(labels)
    value, drawn = 0.0, np.zeros(resamples)
    for label in present:
        outcomes = np.bincount(gained[labels == label] + 1, minlength=3)  # items lost, unchanged, gained
        num_items = int(outcomes.sum())
        counts = rng.multinomial(num_items, outcomes / num_items, size=resamples)
        value += float(outcomes[2] - outcomes[0]) / num_items
        drawn += (counts[:, 2] - counts[:, 0]) / num_items
    low, high = np.percentile(drawn / present.size, [2.5, 97.5])
    return Interval(value=value / present.size, low=float(low), high=float(high))


def _mean_by_class(values: FloatArray, labels: IntArray, num_classes: int) -> FloatArray:
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=values, minlength=num_classes)
    means = np.full(num_classes, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means


def _check(rows: FloatArray, labels: IntArray) -> None:
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ShapeMismatch(f"scores and logits are (N, C) and labels (N,); got {rows.shape} and {labels.shape}.")
    _check_labels(labels)
    if labels.max() >= rows.shape[1]:
        raise InvalidLabels(f"labels must lie in [0, {rows.shape[1]}); got {labels.min()} to {labels.max()}.")


def _check_labels(labels: IntArray) -> None:
    if not labels.size:
        raise NotEnoughData("metrics need at least one labelled example; got none.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InvalidLabels(f"labels are class indices, integers from 0; got {labels.dtype} from {labels.min()}.")
