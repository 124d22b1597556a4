import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.calibration.errors import (
    InvalidCalibration,
    InvalidLabels,
    InvalidLogits,
    InvalidPrior,
    LeakedSplit,
    ShapeMismatch,
    UnknownClass,
)
from models.calibration.types import Calibration, ClassPrior, DebiasedLogits, LogitSet, RawLogits, log_softmax, softmax

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
SKEWED = ClassPrior.from_weights([6, 3, 1])


def some_calibration(**changes):
    values = {
        "scale": [0.5, 1.0, 2.0],
        "offset": [0.1, -0.2, 0.3],
        "implied_prior": ClassPrior.uniform(3),
        "method": "marc",
    }
    return Calibration(**(values | changes))


class TestTheAlgebra:
    def test_logits_and_their_log_softmax_give_the_same_scores(self):
        calibration = some_calibration()
        by_logits = calibration.debias(RawLogits(LOGITS)).adjust(SKEWED).scores()
        by_log_probs = calibration.debias(RawLogits(log_softmax(LOGITS))).adjust(SKEWED).scores()
        np.testing.assert_allclose(by_logits, by_log_probs, rtol=1e-12)

    def test_without_centring_they_would_not(self):
        # why the row mean is taken out: the same map on uncentred logits depends on an arbitrary constant
        calibration = some_calibration()
        shifted = softmax(calibration.scale * (LOGITS + 5) + calibration.offset)
        assert np.abs(shifted - softmax(calibration.scale * LOGITS + calibration.offset)).max() > 0.1

    def test_adjusting_to_its_own_implied_prior_is_the_softmax_of_the_debiased_logits(self):
        calibration = some_calibration(implied_prior=SKEWED)
        debiased = calibration.debias(RawLogits(LOGITS))
        np.testing.assert_allclose(debiased.adjust(SKEWED).scores(), softmax(debiased.values), rtol=1e-12)

    def test_adjusting_by_hand(self):
        # d = 0 for both classes, r uniform, target 3:1 -> scores 3/4 and 1/4
        debiased = DebiasedLogits(np.zeros((1, 2)), ClassPrior.uniform(2))
        np.testing.assert_allclose(debiased.adjust(ClassPrior.from_weights([3, 1])).scores(), [[0.75, 0.25]])

    def test_an_impossible_class_scores_exactly_zero(self):
        scores = some_calibration().debias(RawLogits(LOGITS)).adjust(ClassPrior.from_weights([1, 0, 1])).scores()
        assert (scores[:, 1] == 0).all()
        np.testing.assert_allclose(scores.sum(axis=1), 1.0)

    def test_the_identity_leaves_the_scores_of_the_classifier(self):
        raw = RawLogits(LOGITS)
        np.testing.assert_array_equal(Calibration.identity(SKEWED).debias(raw).scores(), raw.scores())

    @given(arrays(np.float64, (3, 4), elements=st.floats(-1e6, 1e6)), st.floats(-1e6, 1e6))
    def test_a_constant_added_to_every_logit_changes_nothing(self, logits, constant):
        np.testing.assert_allclose(RawLogits(logits + constant).scores(), RawLogits(logits).scores(), atol=1e-6)

    def test_8142_classes_with_extreme_logits_stay_finite(self):
        logits = np.random.default_rng(0).normal(size=(2, 8142)) * 1e4
        prior = ClassPrior.from_weights(np.geomspace(1e9, 1, 8142))
        scores = Calibration.identity(prior).debias(RawLogits(logits)).adjust(ClassPrior.uniform(8142)).scores()
        np.testing.assert_allclose(scores.sum(axis=1), 1.0)


class TestWhatIsRefused:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
    def test_logits_that_do_not_fit_float32(self, bad):
        with pytest.raises(InvalidLogits, match="row 1, class 2"):
            RawLogits(np.array([[0.0, 0, 0], [0, 0, bad]]))

    @pytest.mark.parametrize("bad", [[["1", "2"]], [[1.0, 2.0], [3.0]], [[True, False]], [[1j, 2j]], [[None, 1.0]]])
    def test_logits_that_are_no_rows_of_numbers(self, bad):
        with pytest.raises(InvalidLogits, match="logits are numbers"):
            RawLogits(bad)

    @pytest.mark.parametrize("bad", [["1", "2"], [True, False], [[1.0], [2.0, 3.0]]])
    def test_a_prior_that_is_no_list_of_numbers(self, bad):
        with pytest.raises(InvalidPrior, match="one number a class"):
            ClassPrior.from_weights(bad)

    @pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2, 3)])
    def test_logits_that_are_not_rows_of_classes(self, shape):
        with pytest.raises(ShapeMismatch, match=r"\(N, C\)"):
            RawLogits(np.zeros(shape))

    def test_logits_of_another_number_of_classes(self):
        with pytest.raises(ShapeMismatch, match=r"must be \(N, 3\).*got \(1, 4\)"):
            some_calibration().debias(RawLogits(np.zeros((1, 4))))

    def test_a_target_of_another_number_of_classes(self):
        with pytest.raises(ShapeMismatch, match="must have 3 classes"):
            some_calibration().debias(RawLogits(LOGITS)).adjust(ClassPrior.uniform(4))

    @pytest.mark.parametrize("weights", [[1, -1], [1, np.nan], [0, 0], [1], [[1, 2]], [np.inf, 1]])
    def test_weights_that_make_no_prior(self, weights):
        with pytest.raises(InvalidPrior):
            ClassPrior.from_weights(weights)

    def test_a_prior_that_does_not_sum_to_one(self):
        with pytest.raises(InvalidPrior, match=r"sum to 1; got 1\.2"):
            ClassPrior(np.array([0.6, 0.6]))

    def test_a_prior_by_name_needs_every_class_and_no_other(self):
        assert ClassPrior.from_mapping({"b": 3, "a": 1}, ["a", "b"]).probs.tolist() == [0.25, 0.75]
        with pytest.raises(UnknownClass, match="zebra"):
            ClassPrior.from_mapping({"a": 1, "b": 1, "zebra": 1}, ["a", "b"])
        with pytest.raises(InvalidPrior, match="the first is 'b'"):
            ClassPrior.from_mapping({"a": 1}, ["a", "b"])

    def test_a_calibration_with_a_wrong_length_or_a_nan(self):
        with pytest.raises(ShapeMismatch, match="scale"):
            some_calibration(scale=[1.0, 1.0])
        with pytest.raises(InvalidCalibration, match="offset"):
            some_calibration(offset=[0.0, np.nan, 0.0])

    @pytest.mark.parametrize("labels", [[0, 3], [-1, 0], [0.0, 1.0], ["0", "1"], [True, False]])
    def test_labels_that_are_no_class_index(self, labels):
        with pytest.raises(InvalidLabels):
            LogitSet(logits=LOGITS, labels=np.array(labels), split="test")

    def test_a_split_that_nobody_knows_and_a_prior_of_one_class(self):
        with pytest.raises(LeakedSplit, match="got 'Train'"):
            LogitSet(logits=LOGITS, labels=np.array([0, 1]), split="Train")
        with pytest.raises(InvalidPrior, match="at least two classes"):
            ClassPrior.uniform(1)

    def test_a_calibration_of_text(self):
        with pytest.raises(InvalidCalibration, match="scale is one number a class"):
            some_calibration(scale=["a", "b", "c"])

    def test_nothing_can_be_changed_afterwards(self):
        with pytest.raises(ValueError, match="read-only"):
            some_calibration().offset[0] = 1.0
