"""Black-box shift estimation, the cross-check of EM, and the test whether there is a shift at all.

Both look at a classifier from outside: how its scores are distributed on each class of a labelled set, and how on the
unlabelled items (Lipton, Wang and Smola, ICML 2018). Neither needs the scores to be calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.stats import f as f_distribution

from models.calibration.errors import CalibrationError, InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.types import ClassPrior, FloatArray, IntArray, numbers

RIDGE = 0.01
COINCIDE_BELOW = 0.1  # Hellinger distance between what the classifier says on two classes
LENT = 8.0  # unlabelled items, at most, that help to tell the spread of each class
MOST_ENLARGED = 1e6  # of the unlabelled items' spread; beyond, it is rounding
MOST_KNOWN = 1e9  # degrees of freedom; more, or infinitely many where classes never vary, are the same
RESIDUE = 1e-28  # relative variance that rounding alone leaves


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Confusion:
    """Mean scores by true class: `columns (C, C)`, column j the mean over the items of class j.

    `smallest_singular_value` and `condition_number` say how far the classes can be told apart: an error in the mean
    scores grows by up to 1 / smallest_singular_value. `groups` are classes whose columns nearly coincide: only the sum
    over a group can be known.
    """

    columns: FloatArray
    smallest_singular_value: float
    condition_number: float
    groups: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, scores: FloatArray, labels: IntArray) -> Confusion:
        """Args: scores `(N, C)`, rows sum to 1. labels `(N,)`.

        Raises: ShapeMismatch, InvalidLabels, NotEnoughData for a class without an item, CalibrationError for rows that
            are not scores.
        """
        if scores.ndim != 2 or labels.shape != scores.shape[:1]:
            raise ShapeMismatch(f"scores are (N, C) and labels (N,); got {scores.shape} and {labels.shape}.")
        _check_scores(scores)
        require_examples(_counts(labels, scores.shape[1]))
        columns = _class_means(scores, labels).T
        values = np.linalg.svd(columns, compute_uv=False)
        return cls(
            columns=columns,
            smallest_singular_value=float(values[-1]),
            condition_number=float(values[0] / max(values[-1], np.finfo(np.float64).tiny)),
            groups=_coinciding(columns),
        )


def require_examples(class_counts: IntArray) -> None:
    """Raises: NotEnoughData that names a class without a labelled item."""
    if not class_counts.all():
        raise NotEnoughData(
            f"estimating a class law needs a labelled example of every class; class {int(class_counts.argmin())} has "
            "none in the calibration set. Add one, or leave the class out of the model."
        )


def _check_scores(scores: FloatArray) -> None:
    numbers(scores, CalibrationError, "scores are numbers")
    # NaN fails the first comparison; infinity fails the second one
    right = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1.0) < 1e-3)
    if not right.all():
        raise CalibrationError(
            f"scores are finite and not negative, and each row sums to 1; row {int(right.argmin())} is not so. "
            "Take the softmax of the logits first."
        )


def _counts(labels: IntArray, num_classes: int) -> IntArray:
    if labels.dtype.kind not in "iu":
        raise InvalidLabels(f"labels must be integers, class indices from 0; got {labels.dtype}.")
    if labels.size and not (labels.min() >= 0 and labels.max() < num_classes):
        raise InvalidLabels(f"labels must lie in [0, {num_classes}); got {labels.min()} to {labels.max()}.")
    return np.bincount(labels, minlength=num_classes).astype(np.int64)


def _class_means(scores: FloatArray, labels: IntArray) -> FloatArray:
    """`(C, C)`: row j is the mean of the scores of class j, which must have an item."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return np.asarray(np.add.reduceat(scores[order], first, axis=0) / counts[:, None], dtype=np.float64)


def _coinciding(columns: FloatArray) -> tuple[tuple[int, ...], ...]:
    """Groups linked by a Hellinger distance below COINCIDE_BELOW: for all pairs of classes one product of matrices."""
    roots = np.sqrt(columns)
    near = 1.0 - roots.T @ roots < COINCIDE_BELOW**2
    num_groups, member = connected_components(near, directed=False)
    order = np.argsort(member, kind="stable")
    groups = np.split(order, np.cumsum(np.bincount(member, minlength=num_groups))[:-1])
    return tuple(tuple(int(index) for index in group) for group in groups if group.size > 1)


def bbse(confusion: Confusion, mean_scores: FloatArray, *, ridge: float = RIDGE) -> ClassPrior:
    """The law q with `columns q = mean_scores`: least squares with a ridge, projected on the simplex.

    The ridge pulls towards the uniform law, in units of the mean squared singular value. Projection keeps the sum right
    and takes from all classes alike what clipping would take from those with a lot.

    Args: mean_scores `(C,)`, the mean over the unlabelled items. ridge, not negative.
    Raises: ShapeMismatch, CalibrationError for numbers that are not finite, or no ridge where it takes one.
    """
    columns = confusion.columns
    if mean_scores.shape != columns.shape[:1]:
        raise ShapeMismatch(f"mean_scores must be {columns.shape[:1]} like the confusion; got {mean_scores.shape}.")
    if not np.isfinite(numbers(mean_scores, CalibrationError, "mean scores are numbers")).all():
        raise CalibrationError("mean_scores must be finite; they are not. Average the scores of the items.")
    if not 0.0 <= ridge < np.inf:
        raise CalibrationError(f"the ridge is finite and not negative; got {ridge}.")
    num_classes = columns.shape[1]
    uniform = np.full(num_classes, 1.0 / num_classes)
    gram = columns.T @ columns
    gram[np.diag_indices(num_classes)] += ridge * np.trace(gram) / num_classes
    try:
        solved = uniform + np.linalg.solve(gram, columns.T @ (mean_scores - columns @ uniform))
    except np.linalg.LinAlgError:
        raise CalibrationError("without a ridge the classes cannot be told apart; set one above 0.") from None
    return ClassPrior.from_weights(project_on_simplex(solved))


def project_on_simplex(point: FloatArray) -> FloatArray:
    """The nearest law to `(C,)` in Euclidean distance (Duchi et al., ICML 2008)."""
    point = point - point.max()  # the projection is the same, and the 1 is not lost beside huge numbers
    falling = np.sort(point)[::-1]
    excess = (np.cumsum(falling) - 1.0) / np.arange(1, point.size + 1)
    kept = int(np.flatnonzero(falling > excess)[-1])
    return np.asarray(np.maximum(point - excess[kept], 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShiftTest:
    """`p_value` of "the items follow the law named"; None where the labelled set cannot tell."""

    statistic: float
    degrees_of_freedom: float
    p_value: float


def shift_test(scores: FloatArray, labelled_scores: FloatArray, labels: IntArray, law: ClassPrior) -> ShiftTest | None:
    """Whether unlabelled items follow a class law: their mean scores against those of labelled items weighted to it.

    The statistic is Pearson's, the sum over classes of the squared difference over the mean of the two, divided by its
    mean under the law with the noise of both samples in it. It is referred to an F distribution: one number of degrees
    of freedom for the correlation of the classes, the other for how well the noise is known, both by matching variances
    (Satterthwaite 1946). No C x C covariance is inverted. Scores adjusted to `law` make the test sharp: there their
    mean is the score of the likelihood.

    Few labelled items of a class that is heavy in the law would tell its noise badly. The spread of each class is
    therefore pooled with that of the unlabelled items, weighted by what the scores say of them, as if 8 were labelled.
    Where the labelled items vary more than the scores say, the pooled part is enlarged by as much. In simulated traffic
    without a shift, sets of 2 to 200 labelled items a class, a test at 1 % found one in at most 2 % of repetitions (200
    or 400 a cell); scores that are neither calibrated nor adjusted came to 2.5 %.

    Args: scores `(N, C)` of the unlabelled items, labelled_scores `(M, C)`, rows sum to 1. labels `(M,)`.
    Returns: None when a class has fewer than two labelled items, from which no spread can be told, and when the scores
        do not vary.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData for no unlabelled item, CalibrationError for rows that are not
        scores.
    """
    num_classes = law.num_classes
    if scores.ndim != 2 or scores.shape[1] != num_classes or labelled_scores.shape != (labels.size, num_classes):
        raise ShapeMismatch(
            f"scores must be (N, {num_classes}) and labelled scores ({labels.size}, {num_classes}); "
            f"got {scores.shape} and {labelled_scores.shape}."
        )
    if not scores.shape[0]:
        raise NotEnoughData("a shift is tested on items; got none.")
    _check_scores(scores)
    _check_scores(labelled_scores)
    counts = _counts(labels, num_classes)
    if counts.min() < 2:
        return None
    means = _class_means(labelled_scores, labels)
    expected = law.probs @ means
    difference = scores.mean(axis=0) - expected
    # over the mean of both: a class that few examples show too small by chance would otherwise weigh too much
    weights = 1.0 / np.maximum(expected + 0.5 * difference, np.finfo(np.float64).tiny)
    root = np.sqrt(weights)
    covariance, uncertain = _noise(
        (scores - scores.mean(axis=0)) * root,
        (labelled_scores - means[labels]) * root,
        (means - expected) * root,
        scores / np.maximum(scores.sum(axis=0), np.finfo(np.float64).tiny),
        np.minimum(LENT, scores.sum(axis=0)),
        labels,
        law,
    )
    total = float(np.trace(covariance))
    if total <= RESIDUE:
        return None
    statistic = float((weights * difference**2).sum()) / total
    degrees = total**2 / float((covariance**2).sum())
    known = total**2 / max(uncertain, total**2 / MOST_KNOWN)
    return ShiftTest(
        statistic=statistic,
        degrees_of_freedom=degrees,
        p_value=float(f_distribution.sf(statistic, degrees, known)),
    )


def _noise(
    items: FloatArray,
    residuals: FloatArray,
    between: FloatArray,
    belongs: FloatArray,
    lent: FloatArray,
    labels: IntArray,
    law: ClassPrior,
) -> tuple[FloatArray, float]:
    """Covariance `(C, C)` of the difference under the law, and half the variance of its trace.

    The covariance of class j is that of its m - 1 free residuals, pooled with that of the items, where an item counts
    `belongs[:, j]` of `lent[j]`. The sum over the classes is one matrix: none is built for a class alone.

    Args: items `(N, C)`, residuals `(M, C)` and between `(C, C)`, the means of the classes, all centred and in units of
        the statistic. belongs `(N, C)`, columns sum to 1. lent `(C,)`.
    """
    counts, probs = np.bincount(labels, minlength=law.num_classes), law.probs
    freedom = counts - 1.0 + lent
    share = probs * (probs / counts + 1.0 / items.shape[0]) / freedom
    centres = belongs.T @ items
    own = np.bincount(labels, weights=(residuals**2).sum(axis=1), minlength=counts.size)
    theirs = np.maximum(belongs.T @ (items**2).sum(axis=1) - (centres**2).sum(axis=1), 0.0)
    # scores too sure of themselves hand each class its plainest items, which vary too little
    said = max(float((probs * (counts - 1.0)) @ theirs), RESIDUE)
    borrowed = lent * min(max(float(probs @ own) / said, 1.0), MOST_ENLARGED)
    found = np.concatenate(
        [
            residuals * np.sqrt(share)[labels, None],
            items * np.sqrt(belongs @ (share * borrowed))[:, None],
            between * np.sqrt(probs / items.shape[0])[:, None],
        ]
    )
    twice = centres * np.sqrt(share * borrowed)[:, None]
    uncertain = float(((share * (own + borrowed * theirs)) ** 2 / freedom).sum())
    return found.T @ found - twice.T @ twice, uncertain
