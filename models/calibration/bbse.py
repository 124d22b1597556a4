"""Black-box shift estimation, the cross-check of EM, and the test whether there is a shift at all.

Both look at a classifier from outside: how its scores are distributed on each class of a labelled set, and how on the
unlabelled items (Lipton, Wang and Smola, ICML 2018). Neither needs the scores to be calibrated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.stats import f as f_distribution

from models.calibration.errors import NotEnoughData, ShapeMismatch
from models.calibration.types import ClassPrior, FloatArray, IntArray

RIDGE = 0.01
COINCIDE_BELOW = 0.1  # total variation between what the classifier says on two classes


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

        Raises: ShapeMismatch, NotEnoughData for a class without an item.
        """
        if scores.ndim != 2 or labels.shape != scores.shape[:1]:
            raise ShapeMismatch(f"scores are (N, C) and labels (N,); got {scores.shape} and {labels.shape}.")
        num_classes = scores.shape[1]
        require_examples(np.bincount(labels, minlength=num_classes))
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


def _class_means(scores: FloatArray, labels: IntArray) -> FloatArray:
    """`(C, C)`: row j is the mean of the scores of class j, which must have an item."""
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return np.asarray(np.add.reduceat(scores[order], first, axis=0) / counts[:, None], dtype=np.float64)


def _coinciding(columns: FloatArray) -> tuple[tuple[int, ...], ...]:
    num_classes = columns.shape[1]
    near = np.zeros((num_classes, num_classes), dtype=bool)
    for index in range(num_classes):  # a class at a time: C x C x C would not fit for thousands of classes
        near[index] = 0.5 * np.abs(columns - columns[:, [index]]).sum(axis=0) < COINCIDE_BELOW
    num_groups, member = connected_components(near, directed=False)
    groups = (np.flatnonzero(member == group) for group in range(num_groups))
    return tuple(tuple(int(index) for index in group) for group in groups if group.size > 1)


def bbse(confusion: Confusion, mean_scores: FloatArray, *, ridge: float = RIDGE) -> ClassPrior:
    """The law q with `columns q = mean_scores`: least squares with a ridge, projected on the simplex.

    The ridge pulls towards the uniform law, in units of the mean squared singular value. Projection keeps the sum right
    and takes from all classes alike what clipping would take from those with a lot.

    Args: mean_scores `(C,)`, the mean over the unlabelled items.
    Raises: ShapeMismatch.
    """
    columns = confusion.columns
    if mean_scores.shape != columns.shape[:1]:
        raise ShapeMismatch(f"mean_scores must be {columns.shape[:1]} like the confusion; got {mean_scores.shape}.")
    num_classes = columns.shape[1]
    uniform = np.full(num_classes, 1.0 / num_classes)
    gram = columns.T @ columns
    gram[np.diag_indices(num_classes)] += ridge * np.trace(gram) / num_classes
    solved = uniform + np.linalg.solve(gram, columns.T @ (mean_scores - columns @ uniform))
    return ClassPrior.from_weights(project_on_simplex(solved))


def project_on_simplex(point: FloatArray) -> FloatArray:
    """The nearest law to `(C,)` in Euclidean distance (Duchi et al., ICML 2008)."""
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
    of freedom for the correlation of the classes, the other for how well the labelled items tell the noise, both by
    matching variances (Satterthwaite 1946). No C x C covariance is inverted. Scores adjusted to `law` make the test
    sharp: there their mean is the score of the likelihood. Any scores keep its level.

    Args: scores `(N, C)` of the unlabelled items, labelled_scores `(M, C)`, rows sum to 1. labels `(M,)`.
    Returns: None when a class has fewer than two labelled items, from which no spread can be told.
    Raises: ShapeMismatch, NotEnoughData for no unlabelled item.
    """
    num_classes = law.num_classes
    if scores.ndim != 2 or scores.shape[1] != num_classes or labelled_scores.shape != (labels.size, num_classes):
        raise ShapeMismatch(
            f"scores must be (N, {num_classes}) and labelled scores ({labels.size}, {num_classes}); "
            f"got {scores.shape} and {labelled_scores.shape}."
        )
    if not scores.shape[0]:
        raise NotEnoughData("a shift is tested on items; got none.")
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() < 2:
        return None
    means = _class_means(labelled_scores, labels)
    expected = law.probs @ means
    share = law.probs[labels] / counts[labels]
    difference = scores.mean(axis=0) - expected
    # over the mean of both: a class that few examples show too small by chance would otherwise weigh too much
    weights = 1.0 / np.maximum(expected + 0.5 * difference, np.finfo(np.float64).tiny)
    # noise of the items when they follow the law, and of the labelled items within their classes
    items = np.sqrt(share / scores.shape[0])[:, None] * (labelled_scores - expected)
    labelled = (share * np.sqrt(counts / (counts - 1.0))[labels])[:, None] * (labelled_scores - means[labels])
    noise = np.concatenate([items, labelled]) * np.sqrt(weights)
    by_row = (noise**2).sum(axis=1)
    total = float(by_row.sum())
    statistic = float((weights * difference**2).sum()) / total
    degrees = total**2 / float(((noise.T @ noise) ** 2).sum())
    known = 2.0 * total**2 / float((by_row**2).sum())
    return ShiftTest(
        statistic=statistic, degrees_of_freedom=degrees, p_value=float(f_distribution.sf(statistic, degrees, known))
    )
