"""Figures for a closer look: calibration of each class, Brier score, F1, logits and margins by class, paired bounds.

Beside `metrics.evaluate`, which holds the headline figures. Pure functions of arrays; `weights` come from
`metrics.target_weights` where the classes shall follow a target prior, and all items weigh alike without them.
"""

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.errors import CalibrationError, ShapeMismatch
from models.calibration.intervals import Interval, wilson_interval
from models.calibration.marc import checked_row_norms
from models.calibration.outcomes import (
    NUM_BINS,
    Scored,
    check_labelled,
    check_labels,
    checked_weights,
    class_gaps,
    outcomes,
)
from models.calibration.types import FloatArray, IntArray


def class_wise_ece(
    scores: Scored, labels: IntArray, *, weights: FloatArray | None = None, num_bins: int = NUM_BINS
) -> float:
    """Mean over the classes of the binned gap between the score of a class and how often it is the true one.

    The static calibration error of Nixon et al. (CVPR workshops 2019), called classwise-ECE by Kull et al. (NeurIPS
    2019): all N scores of a class lie in equal-width bins (low, high], a bin weighs its share of the N items, the gap
    is taken as it is (the marginal calibration error of Kumar et al., NeurIPS 2019, squares it). Most scores of a
    problem with many classes are near 0 and near right, so that the figure falls as C grows, and it falls with the
    noise as N grows: compare it at equal C and N.

    An item weighs alike in all C columns, in the gap and in the shares of the bins; the mean over the classes stays one
    of classes alike, also of those that the weights leave out.

    Args: scores `(N, C)`, rows sum to 1, or logits by their type. labels `(N,)`. weights `(N,)`. num_bins, at least 1.
    Returns: a fraction in [0, 1].
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for no bins, wrong weights or scores.
    """
    items = checked_weights(weights, labels.size)
    gaps = class_gaps(scores, labels, items, num_bins)
    return float(np.abs(gaps).sum() / items.sum() / len(gaps))


def brier_score(scores: Scored, labels: IntArray, *, weights: FloatArray | None = None) -> float:
    """Squared distance between the scores and the one-hot truth, summed over classes, mean over items (Brier 1950).

    Args: scores `(N, C)`, rows sum to 1, or logits by their type. labels `(N,)`. weights `(N,)`.
    Returns: a number in [0, 2]; 0 for certainty that is always right, 2 for certainty that is always wrong.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for wrong weights or scores.
    """
    items = checked_weights(weights, labels.size)
    return float(items @ outcomes(scores, labels).brier / items.sum())


def macro_f1(scores: Scored, labels: IntArray, *, weights: FloatArray | None = None) -> float:
    """Mean over classes of F1 = 2 TP / (predicted + true), the decision being the largest score.

    A class that is neither predicted nor true says nothing and is left out of the mean; one that is predicted but never
    true, or true but never predicted, counts 0. So does scikit-learn when it is given no list of labels.

    Args: scores `(N, C)`, rows sum to 1, or logits by their type. labels `(N,)`. weights `(N,)`.
    Returns: a fraction in [0, 1].
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for wrong weights or scores.
    """
    decisions = outcomes(scores, labels).decision
    num_classes = (scores if isinstance(scores, np.ndarray) else scores.values).shape[1]
    items = checked_weights(weights, labels.size)
    hits = np.bincount(labels, weights=items * (decisions == labels), minlength=num_classes)
    true, predicted = (np.bincount(each, weights=items, minlength=num_classes) for each in (labels, decisions))
    seen = true + predicted
    return float((2.0 * hits[seen > 0] / seen[seen > 0]).mean())


def per_class_accuracy(scores: FloatArray, labels: IntArray) -> FloatArray:
    """Share of the items of each class `(C,)` that the largest score gets right; NaN for a class without items.

    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    check_labelled(scores, labels)
    return _mean_by_class((scores.argmax(axis=1) == labels).astype(np.float64), labels, scores.shape[1])


def per_class_accuracy_intervals(scores: FloatArray, labels: IntArray) -> tuple[Interval, ...]:
    """`per_class_accuracy`, each with Wilson's 95 % interval; all None for a class without items. No target prior
    changes them: it weighs the items of one class alike.

    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    accuracies = per_class_accuracy(scores, labels)
    items = np.bincount(labels, minlength=accuracies.size)
    return tuple(wilson_interval(float(share), float(n)) for share, n in zip(accuracies, items, strict=True))


def mean_logit_by_class(logits: FloatArray, labels: IntArray) -> FloatArray:
    """Mean logit of the true class, `(C,)`: entry j is the mean of z_j over the items *of class j*, right or wrong.

    What frequent classes get more of, and calibration evens out (Wang et al., ACML 2022). Raw or debiased, as given.

    Args: logits `(N, C)`. labels `(N,)`.
    Returns: the unit of the logits; NaN for a class without items.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData.
    """
    check_labelled(logits, labels)
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
    check_labelled(logits, labels)
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
    check_labels(labels)
    gained = b.astype(np.int64) - a
    rng = np.random.default_rng(0)
    present = np.unique(labels)
    value, drawn = 0.0, np.zeros(resamples)
    for label in present:
        changed = np.bincount(gained[labels == label] + 1, minlength=3)  # items lost, unchanged, gained
        num_items = int(changed.sum())
        counts = rng.multinomial(num_items, changed / num_items, size=resamples)
        value += float(changed[2] - changed[0]) / num_items
        drawn += (counts[:, 2] - counts[:, 0]) / num_items
    low, high = np.percentile(drawn / present.size, [2.5, 97.5])
    value /= present.size
    return Interval(value=value, low=min(float(low), value), high=max(float(high), value))


def _mean_by_class(values: FloatArray, labels: IntArray, num_classes: int) -> FloatArray:
    counts = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=values, minlength=num_classes)
    means = np.full(num_classes, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return means
