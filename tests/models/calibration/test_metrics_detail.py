import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score

from models.calibration.errors import (
    CalibrationError,
    InvalidCalibration,
    InvalidLabels,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.metrics_detail import (
    brier_score,
    class_wise_ece,
    macro_f1,
    mean_logit_by_class,
    mean_margin_by_class,
    paired_difference,
    per_class_accuracy,
    per_class_accuracy_intervals,
)
from models.calibration.types import RawLogits


def random_scores(items=200, classes=5, seed=0):
    """Scores and labels drawn from them, so that the scores are calibrated."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(classes, 0.5), size=items)
    labels = (rng.uniform(size=(items, 1)) > scores.cumsum(axis=1)).sum(axis=1)
    return scores, np.minimum(labels, classes - 1)


class TestClassWiseCalibrationError:
    def test_by_hand(self):
        scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
        labels = np.array([0, 1, 1, 1])
        # two bins. Class 0: two items at .9, one true: 2/4 |.9 - .5| = .2; two at .3, none true: 2/4 .3 = .15.
        # Class 1 mirrors it: below .5 2/4 |.1 - .5| = .2, above 2/4 |.7 - 1| = .15. The mean of .35 and .35
        assert class_wise_ece(scores, labels, num_bins=2) == pytest.approx(0.35)

    def test_gaps_of_one_bin_cancel_and_those_of_two_do_not(self):
        # class 0: .6 never true, .8 always true; one bin (.5, 1] holds both: |1.4 - 1| / 2 = .2; class 1 mirrors it
        scores, labels = np.array([[0.6, 0.4], [0.8, 0.2]]), np.array([1, 0])
        assert class_wise_ece(scores, labels, num_bins=2) == pytest.approx(0.2)
        # ten bins keep them apart: (.6 + .2) / 2 = .4
        assert class_wise_ece(scores, labels, num_bins=10) == pytest.approx(0.4)

    def test_a_score_on_an_edge_lies_in_the_bin_below_it(self):
        # two bins. Class 0: .5 below, .8 above: (|.5 - 0| + |.8 - 1|) / 2 = .35; class 1: .3 and .1 below, one of them
        # true: |.4 - 1| / 2 = .3; class 2: .2 and .1 below, none true: .3 / 2 = .15
        scores, labels = np.array([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1]]), np.array([1, 0])
        assert class_wise_ece(scores, labels, num_bins=2) == pytest.approx((0.35 + 0.3 + 0.15) / 3)

    def test_the_two_highest_bins_are_two(self):
        # four bins. Class 0: .7 in (.5, .75], .9 in (.75, 1]: (|.7 - 0| + |.9 - 1|) / 2 = .4; class 1 mirrors it
        scores, labels = np.array([[0.7, 0.3], [0.9, 0.1]]), np.array([1, 0])
        assert class_wise_ece(scores, labels, num_bins=4) == pytest.approx(0.4)

    def test_is_the_mean_over_all_classes_and_not_over_those_present(self):
        # class 0 as by hand above; class 2 is never true and never scored: no gap, a third of the mean
        scores, labels = np.array([[0.6, 0.4, 0.0], [0.8, 0.2, 0.0]]), np.array([1, 0])
        assert class_wise_ece(scores, labels, num_bins=2) == pytest.approx(2 / 3 * 0.2)

    def test_limits(self):
        truth = np.eye(3)[[0, 1, 2, 2]]
        assert class_wise_ece(truth, np.array([0, 1, 2, 2])) == 0.0
        assert class_wise_ece(np.eye(2)[[0, 1]], np.array([1, 0])) == 1.0

    def test_nears_zero_on_calibrated_scores_and_not_on_sharpened_ones(self):
        scores, labels = random_scores(items=20_000)
        sharp = scores**3 / (scores**3).sum(axis=1, keepdims=True)
        assert class_wise_ece(scores, labels) < 0.015
        assert class_wise_ece(sharp, labels) > 0.05

    def test_weighs_an_item_in_every_class(self):
        # as by hand above, the first item weighing 3 of 4: |3 .6 + .8 - 1| / 4 = .4; class 1 mirrors it
        scores, labels = np.array([[0.6, 0.4], [0.8, 0.2]]), np.array([1, 0])
        assert class_wise_ece(scores, labels, weights=np.array([3.0, 1.0]), num_bins=2) == pytest.approx(0.4)

    def test_of_calibrated_scores_is_noise_that_falls_with_the_items(self):
        few, many = (class_wise_ece(*random_scores(items=items)) for items in (200, 20_000))
        assert few > 4 * many

    def test_of_logits_is_that_of_their_scores(self):
        scores, labels = random_scores()
        logits = RawLogits(np.log(scores))
        assert class_wise_ece(logits, labels) == pytest.approx(class_wise_ece(scores, labels))

    def test_of_thousands_of_classes_needs_little_memory_beside_the_scores(self):
        scores, labels = random_scores(items=2000, classes=5000)
        tracemalloc.start()
        class_wise_ece(scores, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.9 * scores.nbytes

    def test_needs_a_bin(self):
        with pytest.raises(CalibrationError, match="got 0"):
            class_wise_ece(*random_scores(), num_bins=0)


class TestBrierScore:
    def test_by_hand(self):
        # (.5 - 1)^2 + .3^2 + .2^2 = .38 and .5^2 + (.3 - 1)^2 + .2^2 = .78: mean .58
        assert brier_score(np.array([[0.5, 0.3, 0.2]] * 2), np.array([0, 1])) == pytest.approx(0.58)

    def test_limits(self):
        certain = np.eye(2)[[0, 1]]
        assert brier_score(certain, np.array([0, 1])) == 0.0
        assert brier_score(certain, np.array([1, 0])) == 2.0

    @pytest.mark.parametrize("classes", [2, 5])
    def test_is_that_of_scikit_learn(self, classes):
        scores, labels = random_scores(classes=classes)
        twin = brier_score_loss(labels, scores, labels=range(classes), scale_by_half=False)
        assert brier_score(scores, labels) == pytest.approx(twin, rel=1e-12)


class TestMacroF1:
    def test_by_hand(self):
        scores, labels = np.eye(3)[[0, 0, 1, 2]], np.array([0, 1, 1, 1])
        # class 0: 2 1 / (2 + 1) = 2/3; class 1: 2 1 / (1 + 3) = 1/2; class 2, predicted and never true: 0
        assert macro_f1(scores, labels) == pytest.approx((2 / 3 + 1 / 2) / 3)

    def test_leaves_out_a_class_that_is_neither_predicted_nor_true(self):
        scores, labels = np.eye(5)[[0, 0, 1, 2]], np.array([0, 1, 1, 1])
        assert macro_f1(scores, labels) == pytest.approx((2 / 3 + 1 / 2) / 3)

    def test_limits(self):
        labels = np.array([0, 1, 2, 2])
        assert macro_f1(np.eye(3)[labels], labels) == 1.0
        assert macro_f1(np.eye(3)[(labels + 1) % 3], labels) == 0.0

    @pytest.mark.parametrize("classes", [2, 5, 150])
    def test_is_that_of_scikit_learn(self, classes):
        scores, labels = random_scores(classes=classes)  # 200 items: some of 150 classes never appear
        twin = f1_score(labels, scores.argmax(axis=1), average="macro", zero_division=0.0)
        assert macro_f1(scores, labels) == pytest.approx(twin, rel=1e-12)


class TestByClass:
    LOGITS = np.array([[4.0, 1.0, 9.0], [2.0, 3.0, 9.0], [0.0, 5.0, 1.0]])
    LABELS = np.array([0, 0, 1])

    def test_accuracy(self):
        # both items of class 0 go to class 2, that of class 1 is right, class 2 has none
        np.testing.assert_array_equal(per_class_accuracy(self.LOGITS, self.LABELS), [0.0, 1.0, np.nan])

    def test_accuracy_has_wilson_s_interval(self):
        half, all_right, none = per_class_accuracy_intervals(np.eye(3)[[0, 0, 1, 1, 1]], np.array([0, 1, 1, 1, 0]))
        # one of two: the roots of (p - 1/2)^2 = 1.96^2 p (1 - p) / 2
        assert (half.value, half.low, half.high) == pytest.approx((0.5, 0.0945, 0.9055), abs=1e-4)
        assert (all_right.value, none.value) == (pytest.approx(2 / 3), None)

    def test_accuracy_of_a_class_that_is_always_right_is_not_certain(self):
        certain = per_class_accuracy_intervals(np.eye(2)[[0] * 10], np.zeros(10, dtype=int))[0]
        assert (certain.value, certain.high) == (1.0, 1.0)
        assert certain.low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)

    def test_mean_logit_is_that_of_the_true_class_over_its_items(self):
        # class 0: (4 + 2) / 2, both decided wrongly; class 1: 5
        np.testing.assert_array_equal(mean_logit_by_class(self.LOGITS, self.LABELS), [3.0, 5.0, np.nan])

    def test_mean_margin_is_divided_by_the_norm_of_the_class(self):
        margins = mean_margin_by_class(self.LOGITS, self.LABELS, [2.0, 0.5, 1.0])
        np.testing.assert_array_equal(margins, [1.5, 10.0, np.nan])

    def test_margin_is_the_distance_to_the_plane(self):
        rng = np.random.default_rng(0)
        weight, bias, features = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(1, 4))
        norms = np.linalg.norm(weight, axis=1)
        for label in range(3):
            margin = mean_margin_by_class(features @ weight.T + bias, np.array([label]), norms)[label]
            foot = features[0] - margin * weight[label] / norms[label]  # the point of the plane below the features
            assert foot @ weight[label] + bias[label] == pytest.approx(0.0, abs=1e-12)

    def test_row_norms_are_positive_and_one_a_class(self):
        with pytest.raises(ShapeMismatch, match="one norm a class"):
            mean_margin_by_class(self.LOGITS, self.LABELS, [1.0, 2.0])
        with pytest.raises(InvalidCalibration, match="positive"):
            mean_margin_by_class(self.LOGITS, self.LABELS, [1.0, 0.0, 1.0])


@pytest.mark.parametrize(
    "figure",
    [
        class_wise_ece,
        brier_score,
        macro_f1,
        per_class_accuracy,
        per_class_accuracy_intervals,
        mean_logit_by_class,
        lambda logits, labels: mean_margin_by_class(logits, labels, np.ones(5)),
    ],
)
class TestEveryFigure:
    def test_refuses_rows_and_labels_that_do_not_fit(self, figure):
        scores, labels = random_scores()
        with pytest.raises(ShapeMismatch):
            figure(scores, labels[:-1])
        with pytest.raises(ShapeMismatch):
            figure(scores[:, 0], labels)
        with pytest.raises(NotEnoughData):
            figure(scores[:0], labels[:0])

    @pytest.mark.parametrize("wrong", [5, -1, 0.5])
    def test_refuses_labels_that_are_no_class(self, figure, wrong):
        scores, labels = random_scores()
        with pytest.raises(InvalidLabels):
            figure(scores, np.array([wrong, *labels[1:]]))

    def test_leaves_its_input_alone(self, figure):
        scores, labels = random_scores()
        scores.setflags(write=False)
        labels.setflags(write=False)
        figure(scores, labels)


def draw_pair(rng, *, per_class=40, classes=12):
    """Whether a and b are right, of each item: b gains .2 of a's mistakes and loses .1 of what a has right."""
    labels = np.repeat(np.arange(classes), per_class)
    a = rng.uniform(size=labels.size) < 0.6
    b = np.where(a, rng.uniform(size=labels.size) < 0.9, rng.uniform(size=labels.size) < 0.2)
    return a, b, labels


class TestPairedDifference:
    def test_value_by_hand(self):
        labels = np.array([0, 0, 0, 0, 1])
        a = np.array([True, True, False, False, False])
        b = np.array([True, False, True, True, True])
        # class 0: 2/4 -> 3/4, class 1: 0 -> 1; the mean of 1/4 and 1, whatever the sizes of the classes
        assert paired_difference(a, b, labels).value == pytest.approx(0.625)

    def test_turns_with_the_order(self):
        a, b, labels = draw_pair(np.random.default_rng(0))
        forward, backward = paired_difference(a, b, labels), paired_difference(b, a, labels)
        assert forward.low < forward.value < forward.high
        assert backward.value == pytest.approx(-forward.value)
        assert backward.low == pytest.approx(-forward.high, abs=0.005)

    def test_of_a_classifier_with_itself_is_zero_without_doubt(self):
        a, _, labels = draw_pair(np.random.default_rng(0))
        same = paired_difference(a, a, labels)
        assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)

    def test_limits(self):
        labels = np.array([3, 3, 8])  # classes without an item weigh nothing
        best = paired_difference(np.zeros(3, dtype=bool), np.ones(3, dtype=bool), labels)
        assert (best.value, best.low, best.high) == (1.0, 1.0, 1.0)

    def test_draws_the_same_items_for_both(self):
        # b is a with one class changed: drawn apart, the shared mistakes of the other eleven would widen the interval
        a, _, labels = draw_pair(np.random.default_rng(1))
        b = np.where(labels == 0, True, a)
        paired = paired_difference(a, b, labels)
        spread = np.sqrt(sum(2 * 0.24 / 40 for _ in range(12))) / 12  # of two independent accuracies of .6
        assert paired.high - paired.low < 0.25 * 2 * 1.96 * spread

    def test_agrees_with_drawing_items_one_by_one(self):
        a, b, labels = draw_pair(np.random.default_rng(2), per_class=15, classes=4)
        rng = np.random.default_rng(5)
        gained = (b.astype(int) - a).reshape(4, 15)
        drawn = [np.mean([row[rng.integers(15, size=15)].mean() for row in gained]) for _ in range(4000)]
        interval = paired_difference(a, b, labels, resamples=4000)
        np.testing.assert_allclose([interval.low, interval.high], np.percentile(drawn, [2.5, 97.5]), atol=0.02)

    def test_holds_the_truth_about_95_times_of_100(self):
        rng = np.random.default_rng(3)
        truth = 0.4 * 0.2 - 0.6 * 0.1  # .02
        intervals = [paired_difference(*draw_pair(rng), resamples=500) for _ in range(400)]
        share = np.mean([interval.low <= truth <= interval.high for interval in intervals])
        # 95 % less a little for the percentile bootstrap of 40 items a class; 3 standard errors of 400 draws are .033
        assert 0.91 < share < 0.985

    def test_says_the_same_twice(self):
        a, b, labels = draw_pair(np.random.default_rng(0))
        assert paired_difference(a, b, labels) == paired_difference(a, b, labels)

    def test_needs_little_memory_for_ten_thousand_items(self):
        a, b, labels = draw_pair(np.random.default_rng(0), per_class=100, classes=100)
        tracemalloc.start()
        paired_difference(a, b, labels)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6

    def test_refuses_what_does_not_fit(self):
        a, b, labels = draw_pair(np.random.default_rng(0))
        with pytest.raises(ShapeMismatch, match="one for each item"):
            paired_difference(a[:-1], b, labels)
        with pytest.raises(CalibrationError, match="booleans"):
            paired_difference(a, labels, labels)
        with pytest.raises(CalibrationError, match="got 0"):
            paired_difference(a, b, labels, resamples=0)
        with pytest.raises(InvalidLabels):
            paired_difference(a, b, labels - 1)
        with pytest.raises(NotEnoughData):
            paired_difference(a[:0], b[:0], labels[:0])
