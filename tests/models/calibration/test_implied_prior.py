from dataclasses import replace

import numpy as np
import pytest

from models.calibration.errors import LeakedSplit, NotEnoughData
from models.calibration.implied_prior import estimate_implied_prior, measure_implied_prior
from models.calibration.prior import Ledger, total_variation
from models.calibration.types import ClassPrior, LogitSet


class TestTheMeasuredPrior:
    def test_recovers_the_training_law_from_held_out_logits(self, simulate):
        sample = simulate(per_class=2000)
        measured = measure_implied_prior(sample.logit_set)
        assert total_variation(measured, sample.ledger.implied_prior) < 0.02

    def test_the_plain_mean_prediction_would_miss_it(self, simulate):
        # on a class-balanced sample the mean prediction is not r: why the fixed point is needed
        sample = simulate(per_class=2000)
        mean = ClassPrior.from_weights(sample.logit_set.raw.scores().mean(axis=0))
        assert total_variation(mean, sample.ledger.implied_prior) > 0.1

    def test_needs_every_class(self):
        logit_set = LogitSet(logits=np.zeros((2, 3)), labels=np.array([0, 1]), split="calibration")
        with pytest.raises(NotEnoughData, match="class 2"):
            measure_implied_prior(logit_set)

    def test_is_that_of_repeated_prediction(self, simulate):
        sample = simulate(per_class=30)
        probs, labels = sample.logit_set.raw.scores(), sample.logit_set.labels
        law = np.full(10, 0.1)
        for _ in range(3000):  # the definition: predict examples that follow the law, take the mean as the law
            law = (law[labels] / 30) @ probs
        np.testing.assert_allclose(measure_implied_prior(sample.logit_set).probs, law, atol=1e-6)

    def test_is_uniform_where_nothing_is_ever_confused(self):
        labels = np.repeat(np.arange(4), 3)
        certain = LogitSet(logits=1e4 * np.eye(4)[labels], labels=labels, split="calibration")
        np.testing.assert_allclose(measure_implied_prior(certain).probs, 0.25)

    def test_of_a_class_that_is_never_predicted_is_positive_and_tiny(self):
        labels = np.array([0, 1, 2])
        never = LogitSet(logits=np.array([[0.0, 0, -1e4]] * 3), labels=labels, split="calibration")
        probs = measure_implied_prior(never).probs
        assert 0 < probs[2] < 1e-6
        np.testing.assert_allclose(probs[:2], 0.5, atol=1e-6)


class TestTheEstimatedPrior:
    def test_finds_temperature_and_prior_together_where_the_fixed_point_takes_confidence_for_prior(self, simulate):
        sample = simulate(per_class=2000, confidence=2.5)
        temperature, estimated = estimate_implied_prior(sample.logit_set, ClassPrior.uniform(10), deviation=2.0)
        assert temperature == pytest.approx(2.5, rel=0.05)
        assert total_variation(estimated, sample.ledger.implied_prior) < 0.02
        assert total_variation(measure_implied_prior(sample.logit_set), sample.ledger.implied_prior) > 0.05

    def test_stays_near_what_is_expected_with_few_examples(self, simulate):
        sample = simulate(classes=50, per_class=1)
        expected = sample.ledger.implied_prior
        _, estimated = estimate_implied_prior(sample.logit_set, expected)
        fixed_point = measure_implied_prior(sample.logit_set)
        assert total_variation(estimated, expected) < 0.15
        assert total_variation(estimated, expected) < 0.5 * total_variation(fixed_point, expected)

    def test_needs_every_class_and_data_never_seen(self, simulate):
        logit_set = simulate().logit_set
        with pytest.raises(NotEnoughData, match="first class 3"):
            estimate_implied_prior(logit_set.subset(np.flatnonzero(logit_set.labels != 3)), ClassPrior.uniform(10))
        with pytest.raises(LeakedSplit):
            estimate_implied_prior(replace(logit_set, split="train"), ClassPrior.uniform(10))

    @pytest.mark.parametrize("size", [0.01, 1.0, 100.0])
    def test_does_not_depend_on_the_unit_of_the_logits(self, simulate, size):
        # of a cosine head without its scale, say: T is found first, and the pull is a share of it
        sample = simulate(per_class=200)
        scaled = replace(sample.logit_set, logits=size * sample.logit_set.logits)
        temperature, estimated = estimate_implied_prior(scaled, ClassPrior.uniform(10), deviation=2.0)
        assert temperature == pytest.approx(size, rel=0.15)
        assert total_variation(estimated, sample.ledger.implied_prior) < 0.1

    def test_of_an_unknown_training_finds_a_law_far_from_uniform(self, simulate):
        sample = simulate(per_class=40)
        ledger = Ledger.measured(sample.logit_set, sample.ledger.class_counts)
        assert total_variation(ledger.implied_prior, sample.ledger.implied_prior) < 0.15

    def test_keeps_the_temperature_of_a_few_right_answers_finite(self):
        labels = np.repeat(np.arange(3), 3)
        right = LogitSet(logits=4 * np.eye(3)[labels], labels=labels, split="calibration")
        temperature, _ = estimate_implied_prior(right, ClassPrior.uniform(3))
        assert temperature > 0.5
