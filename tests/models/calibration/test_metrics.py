import numpy as np
import pytest

from models.calibration.errors import NotEnoughData, ShapeMismatch
from models.calibration.metrics import evaluate, expected_calibration_error, group_of_class
from models.calibration.types import ClassPrior

COUNTS = np.array([500, 50, 5])


def one_hot(decisions, confidence=0.8):
    scores = np.full((len(decisions), 3), (1 - confidence) / 2)
    scores[np.arange(len(decisions)), decisions] = confidence
    return scores


def test_groups_follow_the_thresholds_of_the_field():
    assert group_of_class(np.array([101, 100, 20, 19])).tolist() == [0, 1, 1, 2]


def test_calibration_error_by_hand():
    # four answers at confidence .8, three of them right: |.8 - .75| = .05
    assert expected_calibration_error(one_hot([0, 1, 2, 0]), np.array([0, 1, 2, 1])) == pytest.approx(0.05)


def test_figures_by_hand():
    labels = np.array([0, 0, 1, 2])
    metrics = evaluate(one_hot([0, 1, 1, 0]), labels, class_counts=COUNTS, target=ClassPrior.uniform(3))
    # recalls: class 0 one of two, class 1 one of one, class 2 none
    assert (metrics.many.value, metrics.medium.value, metrics.few.value) == (0.5, 1.0, 0.0)
    assert metrics.balanced_accuracy.value == pytest.approx(0.5)
    assert metrics.accuracy.value == pytest.approx(0.5)
    assert metrics.items == {"all": 4, "many": 2, "medium": 1, "few": 1}


def test_accuracy_is_weighted_to_the_target_without_resampling():
    labels = np.array([0, 0, 1, 2])
    target = ClassPrior.from_weights([8, 1, 1])
    metrics = evaluate(one_hot([0, 1, 1, 0]), labels, class_counts=COUNTS, target=target)
    assert metrics.accuracy.value == pytest.approx(0.8 * 0.5 + 0.1 * 1.0)
    assert metrics.balanced_accuracy.value == pytest.approx(0.5)


def test_weighting_a_balanced_sample_equals_drawing_one_from_the_target(simulate):
    sample = simulate(per_class=400)
    target = ClassPrior.from_weights([10] * 2 + [1] * 8)
    scores, labels = sample.logit_set.raw.scores(), sample.logit_set.labels
    drawn = np.concatenate([np.flatnonzero(labels == c)[: 400 if c < 2 else 40] for c in range(10)])
    weighted = evaluate(scores, labels, class_counts=np.full(10, 50), target=target)
    resampled = evaluate(scores[drawn], labels[drawn], class_counts=np.full(10, 50), target=target)
    assert weighted.accuracy.value == pytest.approx(resampled.accuracy.value, abs=0.03)
    assert weighted.ece.value == pytest.approx(resampled.ece.value, abs=0.03)


def test_intervals_hold_the_value_and_shrink_with_the_sample(simulate):
    wide, narrow = (
        evaluate(
            s.logit_set.raw.scores(), s.logit_set.labels, class_counts=np.full(10, 50), target=ClassPrior.uniform(10)
        )
        for s in (simulate(per_class=10), simulate(per_class=300))
    )
    for metrics in (wide, narrow):
        assert metrics.accuracy.low < metrics.accuracy.value < metrics.accuracy.high
    assert narrow.accuracy.high - narrow.accuracy.low < 0.5 * (wide.accuracy.high - wide.accuracy.low)


def test_a_group_without_examples_has_no_figure():
    metrics = evaluate(one_hot([0, 1]), np.array([0, 1]), class_counts=COUNTS, target=ClassPrior.uniform(3))
    assert metrics.few.value is None
    assert metrics.items["few"] == 0


def test_refuses_what_does_not_fit():
    with pytest.raises(ShapeMismatch):
        expected_calibration_error(one_hot([0]), np.array([0, 1]))
    with pytest.raises(NotEnoughData):
        evaluate(np.zeros((0, 3)), np.array([], dtype=int), class_counts=COUNTS, target=ClassPrior.uniform(3))
