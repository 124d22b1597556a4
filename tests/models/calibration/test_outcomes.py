import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration import outcomes as module
from models.calibration.errors import InvalidLabels
from models.calibration.outcomes import bins_of, class_gaps, outcomes, target_weights
from models.calibration.types import ClassPrior, DebiasedLogits


class TestOutcomes:
    def test_by_hand(self):
        found = outcomes(np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), np.array([1, 2]))
        assert found.decision.tolist() == [0, 2]
        assert found.confidence.tolist() == [0.5, 0.8]
        assert found.correct.tolist() == [0.0, 1.0]
        np.testing.assert_allclose(found.loss, [-np.log(0.3), -np.log(0.8)])
        np.testing.assert_allclose(found.brier, [0.25 + 0.49 + 0.04, 0.01 + 0.01 + 0.04])

    @pytest.mark.parametrize("of_logits", [True, False])
    def test_do_not_depend_on_the_blocks(self, monkeypatch, of_logits):
        rng = np.random.default_rng(0)
        logits, labels = DebiasedLogits(rng.normal(size=(31, 5)), ClassPrior.uniform(5)), rng.integers(5, size=31)
        scored, weights = logits if of_logits else logits.scores(), rng.uniform(size=31)
        whole, gaps = outcomes(scored, labels), class_gaps(scored, labels, weights)
        monkeypatch.setattr(module, "ENTRIES_AT_ONCE", 20)
        blocks = outcomes(scored, labels)
        for name in ("decision", "confidence", "correct", "loss", "brier"):
            np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))
        np.testing.assert_allclose(class_gaps(scored, labels, weights), gaps, atol=1e-14)

    def test_of_many_classes_and_extreme_logits_are_finite(self):
        logits = np.random.default_rng(0).normal(size=(20, 8142)) * 1e4
        found = outcomes(DebiasedLogits(logits, ClassPrior.uniform(8142)), np.arange(20))
        assert np.isfinite(found.loss).all()
        assert found.loss.max() > 1e4


class TestTargetWeights:
    def test_by_hand(self):
        weights = target_weights(np.array([0, 0, 2]), ClassPrior.from_weights([2, 1, 1]))
        np.testing.assert_allclose(weights, [0.25, 0.25, 0.25])  # class 1 has no item: its mass is lost

    def test_refuse_a_label_that_the_prior_does_not_have(self):
        with pytest.raises(InvalidLabels, match=r"\[0, 2\)"):
            target_weights(np.array([0, 2]), ClassPrior.uniform(2))


class TestBins:
    @pytest.mark.parametrize("num_bins", [1, 10, 15, 30])
    def test_of_equal_width_hold_their_upper_edge(self, num_bins):
        edges = np.arange(1, num_bins + 1) / num_bins  # 7 / 10 times 10 is more than 7 in binary
        assert bins_of(edges, np.ones(num_bins), num_bins=num_bins).tolist() == list(range(num_bins))
        above = np.nextafter(edges[:-1], 1)
        assert bins_of(above, np.ones(num_bins - 1), num_bins=num_bins).tolist() == list(range(1, num_bins))
        assert bins_of(np.zeros(1), np.ones(1), num_bins=num_bins).tolist() == [0]

    def test_of_equal_mass_hold_as_many_items_each(self):
        confidence = np.random.default_rng(0).permutation(np.linspace(0.1, 1, 4500))
        found = bins_of(confidence, np.full(4500, 0.1), binning="mass", num_bins=15)
        assert (np.bincount(found) == 300).all()

    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 2**32 - 1), num_bins=st.integers(1, 8))
    def test_of_equal_mass_keep_ties_together_and_their_order(self, seed, num_bins):
        rng = np.random.default_rng(seed)
        confidence, weights = rng.integers(1, 10, size=30) / 9, rng.uniform(size=30)
        found = bins_of(confidence, weights, binning="mass", num_bins=num_bins)
        ordered = found[np.argsort(confidence)]
        assert (np.diff(ordered) >= 0).all()
        assert all(np.ptp(found[confidence == each]) == 0 for each in np.unique(confidence))
        largest = np.bincount(np.unique(confidence, return_inverse=True)[1], weights=weights).max()
        mass = np.bincount(found, weights=weights, minlength=num_bins)
        assert (mass < weights.sum() / num_bins + largest + 1e-9).all()  # a bin overflows by less than one tie

    def test_of_equal_mass_count_the_weight(self):
        found = bins_of(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 1.0, 1.0, 3.0]), binning="mass", num_bins=2)
        assert found.tolist() == [0, 0, 0, 1]
