import tracemalloc
from dataclasses import asdict, fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import CalibrationError, InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.metrics import (
    Interval,
    evaluate,
    expected_calibration_error,
    group_of_class,
    risk_coverage_area,
    target_weights,
)
from models.calibration.metrics_detail import brier_score, class_wise_ece, macro_f1
from models.calibration.types import ClassPrior, DebiasedLogits, RawLogits

COUNTS = np.array([500, 50, 5])
FIGURES = [
    expected_calibration_error,
    lambda *args, **options: expected_calibration_error(*args, binning="mass", **options),
    risk_coverage_area,
    class_wise_ece,
    brier_score,
    macro_f1,
]
seeds = st.integers(0, 2**32 - 1)


def one_hot(decisions, confidence=0.8):
    scores = np.full((len(decisions), 3), (1 - confidence) / 2)
    scores[np.arange(len(decisions)), decisions] = confidence
    return scores


def drawn(seed, *, items=40, classes=4, steps=None):
    """Scores, labels drawn from them; in `steps` steps, so that there are ties, exact zeros and exact ones."""
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet(np.full(classes, 0.4), size=items)
    labels = np.minimum((rng.uniform(size=(items, 1)) > scores.cumsum(axis=1)).sum(axis=1), classes - 1)
    return (rng.multinomial(steps, scores) / steps if steps else scores), labels


def values(metrics):
    return {
        key: each["value"] if isinstance(each, dict) and "value" in each else each
        for key, each in asdict(metrics).items()
        if key != "items"
    }


def intervals(metrics):
    return [getattr(metrics, f.name) for f in fields(metrics) if isinstance(getattr(metrics, f.name), Interval)]


def test_groups_follow_the_thresholds_of_the_field():
    assert group_of_class(np.array([101, 100, 20, 19])).tolist() == [0, 1, 1, 2]


class TestByHand:
    def test_calibration_error(self):
        # four answers at confidence .8, three of them right: |.8 - .75| = .05
        assert expected_calibration_error(one_hot([0, 1, 2, 0]), np.array([0, 1, 2, 1])) == pytest.approx(0.05)

    def test_calibration_error_of_bins_of_equal_mass(self):
        # two bins of two: (.5 right, .6 wrong) and (.8 right, .9 right): |1.1 - 1| / 4 + |1.7 - 2| / 4
        scores = np.array([[0.5, 0.5], [0.6, 0.4], [0.8, 0.2], [0.9, 0.1]])
        error = expected_calibration_error(scores, np.array([0, 1, 0, 0]), binning="mass", num_bins=2)
        assert error == pytest.approx(0.1)

    def test_area_under_the_risk_coverage_curve(self):
        # by confidence: .9 right, .8 wrong, .7 right; error rates 0, 1/2, 1/3 of the first one, two and three
        scores, labels = np.array([[0.8, 0.2], [0.7, 0.3], [0.9, 0.1]]), np.array([1, 0, 0])
        assert risk_coverage_area(scores, labels) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)

    def test_equally_confident_items_are_accepted_together(self):
        assert risk_coverage_area(one_hot([0, 1, 2, 0]), np.array([0, 1, 2, 1])) == pytest.approx(0.25)

    def test_accuracy_by_group(self):
        labels = np.array([0, 0, 1, 2])
        metrics = evaluate(one_hot([0, 1, 1, 0]), labels, class_counts=COUNTS, target=ClassPrior.uniform(3))
        # recalls: class 0 one of two, class 1 one of one, class 2 none
        assert (metrics.many.value, metrics.medium.value, metrics.few.value) == (0.5, 1.0, 0.0)
        assert metrics.balanced_accuracy.value == pytest.approx(0.5)
        assert metrics.accuracy.value == pytest.approx(0.5)
        assert metrics.items == {"all": 4, "many": 2, "medium": 1, "few": 1}

    def test_every_figure_weighted_to_a_target(self):
        labels = np.array([0, 0, 1, 2])
        target = ClassPrior.from_weights([8, 1, 1])
        metrics = evaluate(one_hot([0, 1, 1, 0]), labels, class_counts=COUNTS, target=target)
        # the items weigh .4, .4, .1, .1; right, wrong, right, wrong: half of the mass is right at confidence .8
        assert metrics.accuracy.value == pytest.approx(0.5)
        assert metrics.ece.value == metrics.ece_equal_mass.value == pytest.approx(0.3)
        assert metrics.nll.value == pytest.approx(-0.5 * np.log(0.8) - 0.5 * np.log(0.1))
        assert metrics.brier.value == pytest.approx(0.5 * (0.04 + 2 * 0.01) + 0.5 * (0.64 + 0.81 + 0.01))
        assert metrics.aurc.value == pytest.approx(0.5)
        # (.6, 1] and (0, .2] of each class; class 0: .8 (.4 + .1) - .4, .1 (.4 + .1) - .4; class 1: .8 (.4 + .1) - .1,
        # .1 (.4 + .1); class 2: all four below, .1 of the mass true
        gaps = [abs(0.4 - 0.4), abs(0.05 - 0.4), abs(0.4 - 0.1), 0.05, abs(0.1 - 0.1)]
        assert metrics.class_wise_ece == pytest.approx(sum(gaps) / 3)
        assert metrics.balanced_accuracy.value == pytest.approx(0.5)


class TestWeightingToATarget:
    @pytest.mark.parametrize("figure", FIGURES)
    @settings(deadline=None, max_examples=50)
    @given(seed=seeds)
    def test_whole_weights_are_repeated_items(self, figure, seed):
        scores, labels = drawn(seed, steps=20)
        weights = np.random.default_rng(seed).integers(0, 4, size=labels.size)
        weights[0] += 1
        repeated = np.repeat(np.arange(labels.size), weights)
        expected = figure(scores[repeated], labels[repeated])
        assert figure(scores, labels, weights=weights) == pytest.approx(expected, abs=1e-12)

    @settings(deadline=None, max_examples=50)
    @given(seed=seeds)
    def test_uniform_on_a_balanced_set_is_no_weighting(self, seed):
        scores, _ = drawn(seed, items=40, steps=20)
        labels = np.repeat(np.arange(4), 10)
        metrics = evaluate(scores, labels, class_counts=np.full(4, 50), target=ClassPrior.uniform(4), resamples=2)
        assert metrics.accuracy.value == pytest.approx((scores.argmax(axis=1) == labels).mean())
        assert metrics.balanced_accuracy.value == pytest.approx(metrics.accuracy.value)
        found = [metrics.ece.value, metrics.ece_equal_mass.value, metrics.aurc.value, metrics.class_wise_ece]
        assert [*found, metrics.brier.value] == pytest.approx([figure(scores, labels) for figure in FIGURES[:5]])

    @settings(deadline=None, max_examples=50)
    @given(seed=seeds)
    def test_the_figures_are_those_of_their_functions(self, seed):
        scores, labels = drawn(seed, steps=20)
        target = ClassPrior.from_weights([5, 1, 0, 2])
        labels[0] = 0
        metrics = evaluate(scores, labels, class_counts=np.full(4, 50), target=target, resamples=2)
        weights = target_weights(labels, target)
        found = [metrics.ece.value, metrics.ece_equal_mass.value, metrics.aurc.value, metrics.class_wise_ece]
        expected = [figure(scores, labels, weights=weights) for figure in FIGURES[:5]]
        assert [*found, metrics.brier.value] == pytest.approx(expected)

    def test_equals_drawing_a_sample_from_the_target(self, simulate):
        sample = simulate(per_class=400)
        target = ClassPrior.from_weights([10] * 2 + [1] * 8)
        scores, labels = sample.logit_set.raw.scores(), sample.logit_set.labels
        rows = np.concatenate([np.flatnonzero(labels == c)[: 400 if c < 2 else 40] for c in range(10)])
        counts = np.full(10, 50)
        weighted = values(evaluate(scores, labels, class_counts=counts, target=target))
        own = ClassPrior.from_weights(np.bincount(labels[rows]))
        resampled = values(evaluate(scores[rows], labels[rows], class_counts=counts, target=own))
        for name in ("accuracy", "ece", "ece_equal_mass", "class_wise_ece", "brier", "aurc"):
            assert weighted[name] == pytest.approx(resampled[name], abs=0.03)

    def test_says_nothing_where_no_example_can_occur(self):
        metrics = evaluate(
            one_hot([0, 1]), np.array([0, 1]), class_counts=COUNTS, target=ClassPrior.from_weights([0, 0, 1])
        )
        nothing = Interval(value=None, low=None, high=None)
        assert metrics.accuracy == metrics.ece == metrics.ece_equal_mass == metrics.nll == metrics.aurc == nothing
        assert metrics.class_wise_ece is None
        assert metrics.balanced_accuracy.value == 1.0


class TestOrder:
    @settings(deadline=None, max_examples=50)
    @given(seed=seeds)
    def test_of_items_does_not_matter(self, seed):
        scores, labels = drawn(seed, steps=20)
        order = np.random.default_rng(seed).permutation(labels.size)
        target = ClassPrior.from_weights([5, 1, 1, 2])
        one, other = (
            values(evaluate(s, y, class_counts=np.array([500, 50, 50, 5]), target=target, resamples=2))
            for s, y in ((scores, labels), (scores[order], labels[order]))
        )
        assert one == pytest.approx(other)

    @settings(deadline=None, max_examples=50)
    @given(seed=seeds)
    def test_of_classes_does_not_matter(self, seed):
        scores, labels = drawn(seed)
        order = np.random.default_rng(seed).permutation(4)
        weights, counts = np.array([5, 1, 1, 2]), np.array([500, 50, 50, 5])
        one = evaluate(scores, labels, class_counts=counts, target=ClassPrior.from_weights(weights), resamples=20)
        other = evaluate(
            scores[:, order],
            order.argsort()[labels],
            class_counts=counts[order],
            target=ClassPrior.from_weights(weights[order]),
            resamples=20,
        )
        assert values(one) == pytest.approx(values(other))
        for a, b in zip(intervals(one), intervals(other), strict=True):
            assert asdict(a) == pytest.approx(asdict(b))


class TestIntervals:
    def test_shrink_with_the_sample(self, simulate):
        wide, narrow = (
            evaluate(s.logit_set.raw, s.logit_set.labels, class_counts=np.full(10, 50), target=ClassPrior.uniform(10))
            for s in (simulate(per_class=10), simulate(per_class=300))
        )
        for metrics in (wide, narrow):
            assert metrics.accuracy.low < metrics.accuracy.value < metrics.accuracy.high
        for a, b in zip(intervals(wide), intervals(narrow), strict=True):
            assert a.value is None or b.high - b.low < 0.5 * (a.high - a.low)

    @settings(deadline=None, max_examples=50)
    @given(seed=seeds, items=st.integers(1, 30), classes=st.integers(2, 5))
    def test_hold_their_value_and_stay_in_range(self, seed, items, classes):
        scores, labels = drawn(seed, items=items, classes=classes, steps=4)
        metrics = evaluate(
            scores, labels, class_counts=np.full(classes, 50), target=ClassPrior.uniform(classes), resamples=30
        )
        for interval in intervals(metrics):
            assert interval.value is None or 0 <= interval.low <= interval.value <= interval.high
        assert max(metrics.accuracy.high, metrics.ece.high, metrics.ece_equal_mass.high, metrics.aurc.high) <= 1

    def test_of_the_calibration_error_of_calibrated_scores_reaches_zero(self):
        reached = []
        for seed in range(100):
            scores, labels = drawn(seed, items=300, classes=10)
            target = ClassPrior.from_weights(np.bincount(labels, minlength=10))
            metrics = evaluate(scores, labels, class_counts=np.full(10, 50), target=target, resamples=200)
            reached.append([metrics.ece.low == 0.0, metrics.ece_equal_mass.low == 0.0])
        assert (np.mean(reached, axis=0) > 0.88).all()  # 95 % less three standard errors of 100 draws

    def test_the_same_call_says_the_same_twice(self):
        scores, labels = drawn(0)
        one, other = (
            evaluate(scores, labels, class_counts=np.full(4, 50), target=ClassPrior.uniform(4)) for _ in range(2)
        )
        assert one == other

    def test_more_resamples_need_no_more_memory(self):
        scores, labels = drawn(0, items=20_000, classes=2)
        peaks = []
        for resamples in (50, 200):
            tracemalloc.start()
            evaluate(scores, labels, class_counts=np.full(2, 50), target=ClassPrior.uniform(2), resamples=resamples)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < 1.1 * peaks[0] < 60e6  # 200 resamples at once: 32 MB for the draws alone, and four times that


class TestLogits:
    def test_give_the_figures_of_their_scores(self, simulate):
        sample = simulate(per_class=20)
        options = {"class_counts": sample.ledger.class_counts, "target": ClassPrior.from_weights(np.arange(1, 11))}
        for logits in (sample.logit_set.raw, DebiasedLogits(3 * sample.logit_set.logits, ClassPrior.uniform(10))):
            one = values(evaluate(logits, sample.logit_set.labels, **options))
            assert one == pytest.approx(values(evaluate(logits.scores(), sample.logit_set.labels, **options)))

    def test_keep_the_loss_of_a_score_that_underflows(self):
        logits = RawLogits(np.array([[1e4, 0.0], [0.0, 1e4]]))
        options = {"class_counts": np.array([50, 50]), "target": ClassPrior.uniform(2), "resamples": 5}
        labels = np.array([1, 1])
        assert evaluate(logits, labels, **options).nll.value == pytest.approx(5000)  # one item at 1e4 nats, one at 0
        assert evaluate(logits.scores(), labels, **options).nll.value == pytest.approx(744.44 / 2, abs=0.01)

    def test_with_an_impossible_class_stay_finite(self):
        logits = DebiasedLogits(np.zeros((4, 3)), ClassPrior.uniform(3)).adjust(ClassPrior.from_weights([0, 1, 1]))
        labels = np.array([0, 1, 2, 1])
        options = {"class_counts": COUNTS, "resamples": 5}
        seen = evaluate(logits, labels, target=ClassPrior.uniform(3), **options)
        assert seen.nll.value == pytest.approx(744.44 / 3 + 2 / 3 * np.log(2), abs=0.01)
        assert evaluate(logits, labels, target=logits.target, **options).nll.value == pytest.approx(np.log(2))

    def test_in_an_array_are_refused(self):
        with pytest.raises(CalibrationError, match="row 1 sums to 6"):
            expected_calibration_error(np.array([[0.5, 0.5], [2.0, 4.0]]), np.array([0, 1]))
        with pytest.raises(CalibrationError, match="Pass logits as RawLogits"):
            brier_score(np.array([[1.5, -0.5]]), np.array([0]))
        with pytest.raises(CalibrationError, match="no NaN; row 0"):
            brier_score(np.array([[np.nan, 0.5]]), np.array([0]))


class TestEdges:
    def test_one_item(self):
        metrics = evaluate(
            np.array([[0.9, 0.1]]), np.array([1]), class_counts=np.array([5, 5]), target=ClassPrior.uniform(2)
        )
        assert values(metrics) == pytest.approx(
            {
                "accuracy": 0.0,
                "balanced_accuracy": 0.0,
                "many": None,
                "medium": None,
                "few": 0.0,
                "ece": 0.9,
                "ece_equal_mass": 0.9,
                "class_wise_ece": 0.9,
                "nll": np.log(10),
                "brier": 1.62,
                "aurc": 1.0,
            }
        )

    def test_certain_and_always_right_or_always_wrong(self):
        labels = np.array([0, 1, 2, 2])
        options = {"class_counts": COUNTS, "target": ClassPrior.uniform(3)}
        right, wrong = (evaluate(np.eye(3)[each], labels, **options) for each in (labels, (labels + 1) % 3))
        assert (right.ece.value, right.nll.value, right.brier.value, right.aurc.value) == (0, 0, 0, 0)
        assert (right.ece.high, right.class_wise_ece) == (0, 0)
        assert (wrong.ece.value, wrong.brier.value, wrong.aurc.value) == pytest.approx((1, 2, 1))
        assert (wrong.ece.low, wrong.ece.high) == pytest.approx((1, 1))

    def test_a_group_without_examples_has_no_figure(self):
        metrics = evaluate(one_hot([0, 1]), np.array([0, 1]), class_counts=COUNTS, target=ClassPrior.uniform(3))
        assert metrics.few == Interval(value=None, low=None, high=None)
        assert metrics.items["few"] == 0

    def test_refuses_what_does_not_fit(self):
        uniform, labels = ClassPrior.uniform(3), np.array([0, 1])
        with pytest.raises(ShapeMismatch):
            expected_calibration_error(one_hot([0]), labels)
        with pytest.raises(NotEnoughData):
            evaluate(np.zeros((0, 3)), np.array([], dtype=int), class_counts=COUNTS, target=uniform)
        with pytest.raises(InvalidLabels):
            evaluate(one_hot([0, 1]), np.array([0, 3]), class_counts=COUNTS, target=uniform)
        with pytest.raises(ShapeMismatch, match="each of the 3 classes"):
            evaluate(one_hot([0, 1]), labels, class_counts=COUNTS[:2], target=uniform)
        with pytest.raises(ShapeMismatch, match="each of the 3 classes"):
            evaluate(one_hot([0, 1]), labels, class_counts=COUNTS, target=ClassPrior.uniform(4))
        for wrong in ([1.0, -1.0], [0.0, 0.0], [1.0, np.inf]):
            with pytest.raises(CalibrationError, match="not negative"):
                risk_coverage_area(one_hot([0, 1]), labels, weights=np.array(wrong))
        with pytest.raises(ShapeMismatch, match="one for each item"):
            risk_coverage_area(one_hot([0, 1]), labels, weights=np.ones(3))
        with pytest.raises(CalibrationError, match="got 'both'"):
            expected_calibration_error(one_hot([0, 1]), labels, binning="both")
        with pytest.raises(CalibrationError, match="got 0"):
            expected_calibration_error(one_hot([0, 1]), labels, num_bins=0)
