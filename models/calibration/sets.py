"""Prediction sets: instead of one class, the classes that the evidence does not rule out, right at a chosen rate.

Split conformal prediction on the prevalence-adjusted softmax, with one threshold, a threshold a class, or anything in
between, valid for a target prior. All in logarithms: at thousands of classes probabilities underflow, their order must
not. Every set holds the class with the highest adjusted score, so that no set is empty and none contradicts the
decision. That can only add coverage; it adds next to none unless the decisions alone are right about as often as asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.calibration.affine import require_held_out
from models.calibration.errors import (
    CalibrationError,
    InvalidCalibration,
    InvalidLabels,
    InvalidPrior,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.intervals import Interval, item_draws, percentile_interval
from models.calibration.metrics import GROUPS, group_of_class
from models.calibration.prior import total_variation
from models.calibration.temperature import fitted_on
from models.calibration.types import (
    AdjustedLogits,
    ClassPrior,
    DebiasedLogits,
    FloatArray,
    IntArray,
    LogitSet,
    frozen,
    log_softmax,
)

BoolArray = NDArray[np.bool_]

ROUNDING = 1e-9  # share of the needed weight that sums of floats may lack
RESAMPLES = 500


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SetRule:
    """A class is in the set where its conformity reaches its threshold.

    Args: thresholds `(C,)` of the conformity, in nats; minus infinity lets a class into every set. coverage, the share
        of sets that must hold the true class where classes follow `target`. interpolation, 0 for one threshold and 1
        for a threshold a class. provenance, what the thresholds rest on.
    """

    thresholds: FloatArray
    coverage: float
    interpolation: float
    target: ClassPrior
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_levels(self.coverage, self.interpolation)
        object.__setattr__(self, "thresholds", frozen(self.thresholds))
        if self.thresholds.shape != (self.target.num_classes,):
            raise ShapeMismatch(
                f"thresholds must be ({self.target.num_classes},) like the target prior; got {self.thresholds.shape}."
            )
        if not (self.thresholds < np.inf).all():
            raise InvalidCalibration("a threshold is a number or minus infinity; got NaN or plus infinity.")

    def predict(self, adjusted: AdjustedLogits) -> BoolArray:
        """The sets as a `(N, C)` mask; a class that cannot occur under the target is in none, the top class in its own.

        Raises: ShapeMismatch, InvalidPrior for logits adjusted to another target than the rule's.
        """
        if adjusted.target.num_classes != self.target.num_classes:
            raise ShapeMismatch(
                f"the sets are fitted for {self.target.num_classes} classes; got {adjusted.values.shape}."
            )
        distance = total_variation(adjusted.target, self.target)
        if distance > 1e-6:
            raise InvalidPrior(
                "the sets hold their coverage under the target prior that they were fitted for; these logits are for "
                f"another, {distance:.3g} away in total variation. Fit the sets for it on the same examples."
            )
        included = (conformity(adjusted) >= self.thresholds) & (self.target.probs > 0)
        included[np.arange(included.shape[0]), adjusted.values.argmax(axis=1)] = True
        return np.asarray(included, dtype=np.bool_)


def conformity(adjusted: AdjustedLogits) -> FloatArray:
    """log p(y | x) - log target_y, `(N, C)` in nats: how much likelier x is in class y than in the target mixture.

    The prevalence-adjusted softmax of Ding, Fermanian and Salmon (arXiv 2507.06867) at the target prior. One threshold
    on it gives the smallest mean size under the target among sets of the same macro-coverage, and under the uniform
    target it orders as the debiased scores do. Minus infinity for a class that cannot occur.
    """
    possible = adjusted.target.probs > 0
    log_target = np.where(possible, adjusted.target.log_probs, 0.0)
    return np.asarray(np.where(possible, log_softmax(adjusted.values) - log_target, -np.inf), dtype=np.float64)


def fit_sets(
    logit_set: LogitSet,
    debiased: DebiasedLogits,
    *,
    target: ClassPrior,
    coverage: float = 0.9,
    interpolation: float = 0.0,
) -> SetRule:
    """Thresholds from labelled examples that follow any class law, for sets where classes follow `target`.

    An example of class y weighs target_y / m_y, m being the label counts here, and so does the unknown example as a
    candidate of class y, at the far end of the scale (Podkopaev and Ramdas, UAI 2021): the rarer y is here beside its
    target, the lower its threshold. With equal weights this is the (n + 1) quantile of split conformal prediction.
    The promise is on average over calibration sets. It is exact where the class law of the examples is known; with m in
    its place, coverage simulated on small sets (1 to 30 examples a class) stayed above .90 for .90 asked, and fell to
    .83 without the candidate's weight.
    Classes without an example weigh as if they had one; the coverage is promised for the others.

    `interpolation` mixes the one threshold with those of each class alone, linearly in probability (Interp-Q of Ding
    et al.). A class with fewer than coverage / (1 - coverage) examples has no finite threshold of its own: it counts as
    probability 0, so that the mix lowers the common threshold by the factor 1 - interpolation, and at 1 the class is in
    every set. Between 0 and 1 the promise is 1 - 2 (1 - coverage) at worst; 0 and 1 keep the full one.

    Args: debiased `(N, C)`, of the same examples in the same order: `calibration.debias(logit_set.raw)` if the
        calibration was fitted on other examples, `choose.out_of_fold` if on these. coverage in (0, 1). interpolation
        in [0, 1].
    Returns: the rule; its provenance names the classes without an example (`absent_classes`) and how many equally
        weighted examples the thresholds are worth (`effective_items`): under about 100, coverage varies by points.
    Raises: LeakedSplit for training data, NotEnoughData, ShapeMismatch, CalibrationError for a level out of range.
    """
    _check_levels(coverage, interpolation)
    require_held_out(logit_set)
    if debiased.values.shape != logit_set.logits.shape:
        raise ShapeMismatch(
            f"debiased logits must be {logit_set.logits.shape} like the labelled ones; got {debiased.values.shape}."
        )
    labels, counts = logit_set.labels, logit_set.class_counts
    found = conformity(debiased.adjust(target))[np.arange(labels.size), labels]
    own_weight = target.probs / np.maximum(counts, 1)
    weights = own_weight[labels]
    if not weights.any():
        raise NotEnoughData(
            "prediction sets need a labelled example of a class that can occur under the target; got none."
        )
    common = _common_thresholds(found, weights, own_weight, coverage)
    alone = _class_thresholds(found, labels, counts, coverage)
    with np.errstate(divide="ignore"):  # log 0 at both ends of the range: the other threshold stays as it is
        thresholds = np.logaddexp(np.log1p(-interpolation) + common, np.log(interpolation) + alone)
    return SetRule(
        thresholds=thresholds,
        coverage=coverage,
        interpolation=interpolation,
        target=target,
        provenance=fitted_on(logit_set)
        | {
            "absent_classes": int((counts == 0).sum()),
            "effective_items": float(weights.sum() ** 2 / (weights**2).sum()),
        },
    )


def _common_thresholds(found: FloatArray, weights: FloatArray, own_weight: FloatArray, coverage: float) -> FloatArray:
    """The highest threshold that keeps enough weight, `(C,)`; it differs by class only through the candidate's own."""
    order = np.argsort(-found, kind="stable")
    kept = np.cumsum(weights[order])
    needed = coverage * (kept[-1] + own_weight)
    last = np.searchsorted(kept, needed * (1 - ROUNDING))
    return np.asarray(np.append(found[order], -np.inf)[last], dtype=np.float64)


def _class_thresholds(found: FloatArray, labels: IntArray, counts: IntArray, coverage: float) -> FloatArray:
    """The (m_y + 1) quantile within each class, `(C,)`; minus infinity where the class has too few examples."""
    ranked = found[np.lexsort((-found, labels))]
    rank = np.maximum(np.ceil(coverage * (counts + 1) * (1 - ROUNDING)).astype(np.int64), 1)
    enough = rank <= counts
    thresholds = np.full(counts.size, -np.inf)
    thresholds[enough] = ranked[(np.cumsum(counts) - counts + rank - 1)[enough]]
    return thresholds


def _check_levels(coverage: float, interpolation: float) -> None:
    if not 0.0 < coverage < 1.0:
        raise CalibrationError(
            f"the coverage of prediction sets is a fraction between 0 and 1, such as 0.9; got {coverage}."
        )
    if not 0.0 <= interpolation <= 1.0:
        raise CalibrationError(
            f"the interpolation is 0 for one threshold, 1 for a threshold a class, or between; got {interpolation}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMetrics:
    """Coverage and sizes of prediction sets; fractions in [0, 1], sizes in classes.

    `coverage`, `mean_size`, `median_size`, `singletons` (sets of one class) and `empty` are weighted to the target
    prior. `macro_coverage`, `many`, `medium` and `few` count classes alike, those that cannot occur under the target
    left out; so does `classes_under_half`, the share of classes whose sets hold them less often than not. It and the
    median have no interval: resampling few examples a class shifts the one and only repeats the other. `items` says
    how many examples each group rests on.
    """

    coverage: Interval
    macro_coverage: Interval
    many: Interval
    medium: Interval
    few: Interval
    classes_under_half: float
    mean_size: Interval
    median_size: int
    singletons: Interval
    empty: Interval
    items: dict[str, int]


def evaluate_sets(
    sets: BoolArray, labels: IntArray, *, class_counts: IntArray, target: ClassPrior, resamples: int = RESAMPLES
) -> SetMetrics:
    """All figures of sets `(N, C)` on labelled examples `(N,)`, as if their classes followed `target`.

    An example of class y weighs target_y / m_y, as in `metrics.evaluate`; classes without an example weigh nothing.

    Args: class_counts `(C,)` of the *training* set, for the groups. resamples of the bootstrap over examples, the seed
        fixed.
    Raises: ShapeMismatch, InvalidLabels, NotEnoughData without an example of a class that can occur.
    """
    _check_sets(sets, labels, class_counts, target)
    present = np.bincount(labels, minlength=target.num_classes)
    to_target = target.probs[labels] / present[labels]
    to_classes = (target.probs > 0)[labels] / present[labels]
    covered = sets[np.arange(labels.size), labels]
    sizes = sets.sum(axis=1)
    group = group_of_class(class_counts)[labels]
    figures = {
        "coverage": (to_target, covered),
        "macro_coverage": (to_classes, covered),
        "mean_size": (to_target, sizes),
        "singletons": (to_target, sizes == 1),
        "empty": (to_target, sizes == 0),
    } | {name: (to_classes * (group == index), covered) for index, name in enumerate(GROUPS)}
    hits = np.bincount(labels, weights=covered, minlength=target.num_classes)
    counted = (present > 0) & (target.probs > 0)
    return SetMetrics(
        classes_under_half=float((hits[counted] < 0.5 * present[counted]).mean()),
        median_size=_weighted_median(sizes, to_target),
        items={"all": int(labels.size)} | {name: int((group == index).sum()) for index, name in enumerate(GROUPS)},
        **_bootstrapped(figures, labels.size, resamples),
    )


def _check_sets(sets: BoolArray, labels: IntArray, class_counts: IntArray, target: ClassPrior) -> None:
    expected = (labels.size, target.num_classes)
    if sets.shape != expected or class_counts.shape != expected[1:]:
        raise ShapeMismatch(
            f"sets must be {expected} and class_counts {expected[1:]} to match the labels and the target prior; got "
            f"{sets.shape} and {class_counts.shape}."
        )
    if labels.size and not (labels.min() >= 0 and labels.max() < target.num_classes):
        raise InvalidLabels(f"labels must lie in [0, {target.num_classes}); got {labels.min()} to {labels.max()}.")
    if not target.probs[labels].any():
        raise NotEnoughData(
            "sets are measured on labelled examples of classes that can occur under the target; got none."
        )


def _weighted_median(sizes: IntArray, weights: FloatArray) -> int:
    order = np.argsort(sizes, kind="stable")
    below = np.cumsum(weights[order])
    return int(sizes[order][np.searchsorted(below, 0.5 * below[-1] * (1 - ROUNDING))])


def _bootstrapped(
    figures: Mapping[str, tuple[FloatArray, NDArray[Any]]], num_items: int, resamples: int
) -> dict[str, Interval]:
    """Weighted mean of each figure's values with its interval; items are drawn with replacement."""
    weights = np.stack([weight for weight, _ in figures.values()], axis=1)
    values = np.stack([value for _, value in figures.values()], axis=1)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no item of a group was drawn
        blocks = [(draws @ (weights * values)) / (draws @ weights) for draws in item_draws(num_items, resamples)]
    means = np.concatenate(blocks)
    return {name: percentile_interval(means[:, column]) for column, name in enumerate(figures)}
