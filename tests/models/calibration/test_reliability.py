import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import ShapeMismatch
from models.calibration.metrics import expected_calibration_error, target_weights
from models.calibration.reliability import reliability, reliability_by_group
from models.calibration.types import ClassPrior


def drawn(seed, *, items=60, classes=4, steps=20):
    rng = np.random.default_rng(seed)
    scores = rng.multinomial(steps, rng.dirichlet(np.full(classes, 0.4), size=items)) / steps
    return scores, rng.integers(classes, size=items)


class TestReliability:
    def test_by_hand(self):
        # two bins: .5 is in the lower one; .6 right, .9 wrong twice in the upper
        scores = np.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
        low, high = reliability(scores, np.array([0, 0, 1, 1]), num_bins=2)
        assert (low.low, low.high, low.items, low.share, low.confidence) == (0.0, 0.5, 1, 0.25, 0.5)
        assert (high.low, high.high, high.items, high.share) == (0.5, 1.0, 3, 0.75)
        assert high.confidence == pytest.approx(0.8)
        assert high.accuracy.value == pytest.approx(1 / 3)
        assert (high.accuracy.low, high.accuracy.high) == pytest.approx((0.0615, 0.7923), abs=1e-4)  # Wilson, 1 of 3

    def test_unequal_weights_widen_the_interval(self):
        scores, labels = np.tile([[0.9, 0.1]], (40, 1)), np.repeat([0, 1], 20)
        alike = reliability(scores, labels)[-2].accuracy
        weights = np.tile([10.0, 0.1], 20)
        apart = reliability(scores, labels, weights=weights)[-2].accuracy
        assert apart.value == pytest.approx(alike.value)
        assert apart.high - apart.low > 1.3 * (alike.high - alike.low)  # 20.4 effective items of 40

    @pytest.mark.parametrize("binning", ["width", "mass"])
    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1))
    def test_the_gaps_sum_to_the_calibration_error(self, binning, seed):
        scores, labels = drawn(seed)
        weights = target_weights(labels, ClassPrior.from_weights([5, 1, 1, 2]))
        bins = reliability(scores, labels, weights=weights, binning=binning, num_bins=7)
        gaps = [each.share * abs(each.confidence - each.accuracy.value) for each in bins if each.confidence is not None]
        expected = expected_calibration_error(scores, labels, weights=weights, binning=binning, num_bins=7)
        assert sum(gaps) == pytest.approx(expected)
        assert sum(each.share for each in bins) == pytest.approx(1)
        assert sum(each.items for each in bins) == 60

    def test_bins_of_equal_mass_say_which_confidences_they_hold(self):
        scores = np.array([[0.5, 0.5], [0.6, 0.4], [0.9, 0.1], [0.9, 0.1]])
        bins = reliability(scores, np.array([0, 0, 1, 1]), num_bins=4, binning="mass")
        assert [(each.low, each.high, each.items) for each in bins] == [
            (0.5, 0.5, 1),
            (0.6, 0.6, 1),
            (None, None, 0),  # the two at .9 are one tie
            (0.9, 0.9, 2),
        ]

    def test_is_ready_for_json(self):
        bins = reliability(*drawn(0))
        told = json.loads(json.dumps([asdict(each) for each in bins], allow_nan=False))
        assert told[0]["accuracy"] == {"value": None, "low": None, "high": None}
        assert told[0]["confidence"] is None


class TestByGroup:
    def test_all_is_the_diagram_of_all_and_groups_share_its_items(self):
        scores, labels = drawn(0)
        weights = target_weights(labels, ClassPrior.from_weights([5, 1, 1, 2]))
        options = {"weights": weights, "num_bins": 5}
        groups = reliability_by_group(scores, labels, class_counts=np.array([500, 50, 50, 5]), **options)
        assert groups["all"] == reliability(scores, labels, **options)
        for index, whole in enumerate(groups["all"]):
            assert sum(groups[name][index].items for name in ("many", "medium", "few")) == whole.items

    def test_goes_by_the_decision(self):
        scores, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 1])
        groups = reliability_by_group(scores, labels, class_counts=np.array([500, 5]))
        assert {name: sum(each.items for each in bins) for name, bins in groups.items()} == {
            "all": 2,
            "many": 1,
            "medium": 0,
            "few": 1,
        }
        assert all(each.share == 0 and each.accuracy.value is None for each in groups["medium"])

    def test_of_calibrated_scores_is_calibrated_in_every_group_but_not_by_the_truth(self, simulate):
        sample = simulate(per_class=2000)
        target = ClassPrior.from_weights(sample.ledger.class_counts)
        scores, labels = sample.posterior(target), sample.logit_set.labels
        weights = target_weights(labels, target)
        counts = np.array([500] * 5 + [5] * 5)
        groups = reliability_by_group(scores, labels, class_counts=counts, weights=weights)

        def gap(bins):
            return sum(b.share * (b.confidence - b.accuracy.value) for b in bins if b.confidence is not None)

        assert abs(gap(groups["many"])) < 0.02
        assert abs(gap(groups["few"])) < 0.02
        rare = labels >= 5
        assert gap(reliability(scores[rare], labels[rare], weights=weights[rare])) > 0.1

    @pytest.mark.parametrize("binning", ["width", "mass"])
    def test_works_for_a_group_that_is_never_decided_for(self, binning):
        scores = np.array([[0.9, 0.1]])
        groups = reliability_by_group(scores, np.array([0]), class_counts=np.array([500, 5]), binning=binning)
        assert sum(each.items for each in groups["few"]) == 0

    def test_refuses_counts_of_other_classes(self):
        with pytest.raises(ShapeMismatch, match=r"\(4,\) like the scores"):
            reliability_by_group(*drawn(0), class_counts=np.array([500, 50, 5]))
