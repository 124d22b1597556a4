import numpy as np
import pytest

from models.calibration.errors import InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.sets import evaluate_sets, fit_sets
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import ClassPrior

COUNTS = np.array([500, 50, 5])
SETS = np.array([[1, 1, 0], [0, 1, 1], [1, 1, 1], [1, 0, 0]], dtype=bool)
LABELS = np.array([0, 0, 1, 2])


def evaluated(target, *, sets=SETS, labels=LABELS, class_counts=COUNTS):
    return evaluate_sets(sets, labels, class_counts=class_counts, target=target)


def test_by_hand():
    found = evaluated(ClassPrior.uniform(3))
    # covered: one of two of class 0, the one of class 1, not that of class 2
    assert (found.many.value, found.medium.value, found.few.value) == (0.5, 1.0, 0.0)
    assert found.macro_coverage.value == found.coverage.value == pytest.approx(0.5)
    assert found.classes_under_half == pytest.approx(1 / 3)
    assert found.mean_size.value == pytest.approx((2 + 3 + 1) / 3)
    assert (found.median_size, found.singletons.value, found.empty.value) == (2, pytest.approx(1 / 3), 0.0)
    assert found.items == {"all": 4, "many": 2, "medium": 1, "few": 1}


def test_are_weighted_to_the_target_but_for_those_of_classes():
    found = evaluated(ClassPrior.from_weights([2, 1, 7]))
    assert found.coverage.value == pytest.approx(0.2 * 0.5 + 0.1)
    assert found.mean_size.value == pytest.approx(0.2 * 2 + 0.1 * 3 + 0.7)
    assert (found.median_size, found.singletons.value) == (1, pytest.approx(0.7))
    assert found.macro_coverage.value == pytest.approx(0.5)


def test_leave_out_classes_that_cannot_occur():
    found = evaluated(ClassPrior.from_weights([1, 1, 0]))
    assert found.macro_coverage.value == pytest.approx(0.75)
    assert found.few.value is None
    assert found.classes_under_half == 0.0


def test_an_empty_set_is_counted():
    assert evaluated(ClassPrior.uniform(3), sets=np.zeros((4, 3), dtype=bool)).empty.value == pytest.approx(1)


def test_intervals_hold_the_value_and_shrink_with_the_sample(simulate):
    sample, target = simulate(per_class=1000), ClassPrior.from_weights(np.arange(1, 11))
    labels, debiased = sample.logit_set.labels, closed_form_without_data(sample.ledger).debias(sample.logit_set.raw)
    sets = fit_sets(sample.logit_set, debiased, target=target).predict(debiased.adjust(target))
    found = [
        evaluate_sets(sets[::step], labels[::step], class_counts=np.full(10, 50), target=target) for step in (40, 5)
    ]
    for metrics in found:
        for interval in (metrics.coverage, metrics.macro_coverage, metrics.medium, metrics.mean_size):
            assert interval.low < interval.value < interval.high
    widths = [metrics.coverage.high - metrics.coverage.low for metrics in found]
    assert widths[1] < 0.6 * widths[0]


def test_refuse_what_does_not_fit():
    uniform = ClassPrior.uniform(3)
    with pytest.raises(ShapeMismatch):
        evaluated(ClassPrior.uniform(2))
    with pytest.raises(ShapeMismatch):
        evaluated(uniform, labels=LABELS[:3])
    with pytest.raises(ShapeMismatch):
        evaluated(uniform, class_counts=COUNTS[:2])
    with pytest.raises(InvalidLabels):
        evaluated(uniform, labels=np.array([0, 1, 2, 3]))
    with pytest.raises(NotEnoughData):
        evaluated(uniform, sets=np.zeros((0, 3), dtype=bool), labels=np.zeros(0, dtype=int))
    with pytest.raises(NotEnoughData):
        evaluated(ClassPrior.from_weights([0, 0, 1]), labels=np.array([0, 0, 1, 1]))
