from dataclasses import dataclass, replace

import numpy as np
import pytest

from models.calibration.errors import (
    CalibrationError,
    EmptyClass,
    FitFailed,
    InvalidCalibration,
    LeakedSplit,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.marc import fold_into_linear
from models.calibration.marc_paper import AS_PUBLISHED, PaperFit, class_weights, fit_paper, published_scores
from models.calibration.metrics import expected_calibration_error
from models.calibration.metrics_detail import mean_logit_by_class, per_class_accuracy
from models.calibration.prior import total_variation
from models.calibration.types import Calibration, ClassPrior, IntArray, LogitSet, RawLogits

SHORT = PaperFit(steps=60, batch_size=64, warmup_steps=20)


def cifar_counts(classes, largest, ratio):
    """floor(n_max ratio^(-j / (C - 1))), the profile of CIFAR-LT."""
    return np.array([int(largest * ratio ** (-j / (classes - 1))) for j in range(classes)])


@dataclass(frozen=True, kw_only=True)
class LongTail:
    """A training set of ratio 50, and held-out rows of the same classifier with as many of every class."""

    train: LogitSet
    held_out: LogitSet
    counts: IntArray


@pytest.fixture
def long_tail(simulate):
    def build(*, held_out_per_class: int = 500, confidence: float = 1.0) -> LongTail:
        sample = simulate(per_class=1000 + held_out_per_class, confidence=confidence)
        counts = sample.ledger.class_counts
        place = np.tile(np.arange(1000 + held_out_per_class), counts.size)  # of a row among those of its class
        labels, logits = sample.logit_set.labels, sample.logit_set.logits
        seen, unseen = place < counts[labels], place >= 1000
        return LongTail(
            train=LogitSet(logits=logits[seen], labels=labels[seen], split="train", drawn="simulated"),
            held_out=LogitSet(logits=logits[unseen], labels=labels[unseen], split="calibration"),
            counts=counts,
        )

    return build


def balanced_accuracy(calibration, logit_set):
    return per_class_accuracy(calibration.debias(logit_set.raw).values, logit_set.labels).mean()


class TestTheHeldOutTemperature:
    def test_repairs_the_confidence_that_the_training_set_cannot_tell(self, long_tail):
        data = long_tail(confidence=3.0)
        config = replace(SHORT, gamma=1.0, weight_decay=0.0, peak_learning_rate=0.05, first_learning_rate=0.01)
        cold, _ = fit_paper(data.train, data.counts, config=config)
        warm, _ = fit_paper(data.train, data.counts, config=config, held_out=data.held_out)
        uniform = ClassPrior.uniform(10)
        raw, labels = data.held_out.raw, data.held_out.labels
        before, after = (each.debias(raw).adjust(uniform).scores() for each in (cold, warm))
        assert warm.parameters["temperature"] > 1.2
        assert expected_calibration_error(after, labels) < 0.8 * expected_calibration_error(before, labels)

    def test_leaves_the_letters_and_the_scores_of_the_paper(self, long_tail):
        data = long_tail(confidence=2.0)
        cold, _ = fit_paper(data.train, data.counts, config=SHORT)
        warm, _ = fit_paper(data.train, data.counts, config=SHORT, held_out=data.held_out)
        assert warm.parameters["omega"] == cold.parameters["omega"]
        assert warm.parameters["temperature"] != cold.parameters["temperature"] == 1.0
        expected = cold.debias(data.held_out.raw).scores()
        np.testing.assert_allclose(published_scores(cold, data.held_out.raw), expected, atol=1e-12)
        np.testing.assert_allclose(published_scores(warm, data.held_out.raw), expected, atol=1e-12)

    def test_comes_with_the_prior_of_the_divided_map(self, long_tail):
        # adjusted to a uniform target, the mean prediction on as many rows of every class is uniform
        data = long_tail(confidence=2.0)
        warm, _ = fit_paper(data.train, data.counts, config=SHORT, held_out=data.held_out)
        scores = warm.debias(data.held_out.raw).adjust(ClassPrior.uniform(10)).scores()
        np.testing.assert_allclose(scores.mean(axis=0), 0.1, atol=0.002)

    def test_is_missed_in_words_where_there_is_nothing_to_fit_it_on(self, long_tail):
        data = long_tail()
        lacking = data.held_out.subset(np.flatnonzero(data.held_out.labels != 4))
        for held_out in (None, lacking):
            assert "no temperature was fitted" in fit_paper(data.train, data.counts, held_out=held_out)[1].warnings[0]

    def test_expects_the_formula_and_not_a_uniform_law_where_rows_are_few(self, long_tail):
        data = long_tail()
        one_each = data.held_out.subset(np.flatnonzero(np.diff(data.held_out.labels, prepend=-1)))
        mild = replace(SHORT, gamma=0.2)
        warm, _ = fit_paper(data.train, data.counts, config=mild, held_out=one_each)
        formula = ClassPrior.from_weights(data.counts**0.8)
        assert total_variation(warm.implied_prior, formula) < 0.5 * total_variation(ClassPrior.uniform(10), formula)

    def test_does_no_harm_with_one_held_out_row_a_class(self, long_tail):
        data = long_tail(confidence=2.0)
        cold, _ = fit_paper(data.train, data.counts, config=SHORT)
        one_each = data.held_out.subset(np.flatnonzero(np.diff(data.held_out.labels, prepend=-1)))
        warm, _ = fit_paper(data.train, data.counts, config=SHORT, held_out=one_each)
        assert one_each.labels.size == 10
        assert balanced_accuracy(warm, data.held_out) > balanced_accuracy(cold, data.held_out) - 0.01


class TestClassWeights:
    def test_by_hand(self):
        # 1/4 and 1/1, their sum 5/4: 2 * (1/4) / (5/4) = .4 and 2 * 1 / (5/4) = 1.6
        np.testing.assert_allclose(class_weights([4, 1], gamma=1.0), [0.4, 1.6])

    @pytest.mark.parametrize(
        ("ratio", "expected"),
        [
            (100, [0.0183, 0.0338, 0.0624, 0.1153, 0.2134, 0.3939, 0.7278, 1.3459, 2.4988, 4.5905]),
            (200, [0.0088, 0.0178, 0.0361, 0.0732, 0.1484, 0.3008, 0.6096, 1.2361, 2.5026, 5.0666]),
        ],
    )
    def test_those_of_cifar_10_lt(self, ratio, expected):
        np.testing.assert_allclose(class_weights(cifar_counts(10, 5000, ratio)), expected, atol=5e-5)

    def test_those_of_cifar_100_lt(self):
        weights = class_weights(cifar_counts(100, 500, 100))
        np.testing.assert_allclose(weights[:3], [0.0204, 0.0216, 0.0229], atol=5e-5)
        np.testing.assert_allclose(weights[-3:], 5.1345, atol=5e-5)
        weights = class_weights(cifar_counts(100, 500, 200))
        np.testing.assert_allclose(weights[[0, -1]], [0.0092, 6.9136], atol=5e-5)

    @pytest.mark.parametrize("gamma", [0.0, 0.5, 1.2, 2.0])
    def test_sum_to_the_number_of_classes(self, gamma):
        assert class_weights(cifar_counts(100, 500, 100), gamma).sum() == pytest.approx(100)

    def test_gamma_zero_gives_ones(self):
        np.testing.assert_array_equal(class_weights([500, 50, 5], gamma=0.0), np.ones(3))

    def test_refuse_a_class_without_a_training_image(self):
        with pytest.raises(EmptyClass, match="class 1 has 0"):
            class_weights([5, 0, 2])


class TestTheFit:
    def test_the_last_step_moves_nothing_so_that_one_step_is_stage_1_bit_for_bit(self, long_tail):
        data = long_tail()
        norms = np.linspace(0.5, 3.0, 10)
        calibration, _ = fit_paper(data.train, data.counts, norms, config=PaperFit(steps=1, warmup_steps=0))
        debiased = calibration.debias(data.train.raw).values
        assert debiased.tobytes() == data.train.raw.values.tobytes()

    def test_the_decay_pulls_omega_to_zero(self, long_tail):
        data = long_tail()
        free, pulled = (
            fit_paper(data.train, data.counts, config=replace(AS_PUBLISHED, weight_decay=decay))[0].scale
            for decay in (0.0, 0.1)
        )
        assert (np.abs(pulled) < np.abs(free)).all()

    def test_says_so_when_it_runs_away(self, long_tail):
        data = long_tail()
        with pytest.raises(FitFailed, match="Lower peak_learning_rate"):
            fit_paper(data.train, data.counts, config=PaperFit(peak_learning_rate=100.0, weight_decay=10.0))

    def test_lifts_the_balanced_accuracy_of_a_long_tailed_problem(self, long_tail):
        data = long_tail()
        calibration, _ = fit_paper(data.train, data.counts)
        before = balanced_accuracy(Calibration.identity(ClassPrior.uniform(10)), data.held_out)
        assert balanced_accuracy(calibration, data.held_out) > before + 0.05

    def test_makes_the_mean_logit_of_a_class_depend_less_on_its_count(self):
        # classes that differ in nothing but their counts
        rng = np.random.default_rng(0)
        counts = cifar_counts(10, 1000, 50)
        labels = np.repeat(np.arange(10), counts)
        logits = 2 * np.eye(10)[labels] + rng.normal(size=(labels.size, 10)) + np.log(counts)
        train = LogitSet(logits=logits, labels=labels, split="train")
        calibration, _ = fit_paper(train, counts)
        before = mean_logit_by_class(train.logits, labels)
        after = mean_logit_by_class(calibration.debias(train.raw).values, labels)
        assert np.corrcoef(before, np.log(counts))[0, 1] > 0.95
        assert np.corrcoef(after, np.log(counts))[0, 1] < 0.5
        assert after.std() < 0.5 * before.std()

    def test_equal_row_norms_as_of_a_cosine_head_say_nothing(self, long_tail):
        data = long_tail()
        scaled, _ = fit_paper(data.train, data.counts, np.full(10, 30.0), config=SHORT)
        unknown, _ = fit_paper(data.train, data.counts, config=SHORT)
        np.testing.assert_array_equal(scaled.offset, unknown.offset)
        assert scaled.provenance["row_norms"] == "ones"

    def test_holds_the_papers_letters(self, long_tail):
        data = long_tail()
        norms = np.linspace(0.5, 3.0, 10)
        calibration, report = fit_paper(data.train, data.counts, norms, config=SHORT)
        assert calibration.method == report.method == "marc-paper"
        assert calibration.parameters["gamma"] == 1.2
        np.testing.assert_array_equal(calibration.scale, calibration.parameters["omega"])
        np.testing.assert_array_equal(calibration.offset, np.multiply(calibration.parameters["beta"], norms))

    def test_says_what_it_was_fitted_on_and_how(self, long_tail):
        data = long_tail()
        calibration, report = fit_paper(data.train, data.counts, config=SHORT)
        assert calibration.provenance["split"] == "train"
        assert calibration.provenance["drawn"] == "simulated"
        assert calibration.provenance["config"]["steps"] == report.iterations == 60
        assert calibration.provenance["row_norms"] == "ones"
        assert report.num_items == data.train.labels.size

    def test_reports_the_weighted_nll_of_all_rows_at_the_end(self, long_tail):
        data = long_tail()
        calibration, report = fit_paper(data.train, data.counts, config=SHORT)
        scores = calibration.debias(data.train.raw).scores()[np.arange(data.train.labels.size), data.train.labels]
        by_hand = np.average(-np.log(scores), weights=data.counts[data.train.labels] ** -1.2)
        assert report.objective == pytest.approx(by_hand)

    def test_gives_the_same_bits_twice_and_others_for_another_seed(self, long_tail):
        data = long_tail()
        first, same, other = (
            fit_paper(data.train, data.counts, config=replace(SHORT, seed=seed))[0] for seed in (0, 0, 1)
        )
        assert first.scale.tobytes() == same.scale.tobytes()
        assert first.offset.tobytes() == same.offset.tobytes()
        assert not np.array_equal(first.offset, other.offset)

    def test_takes_its_weights_from_the_counts_and_not_from_the_number_of_passes(self, long_tail):
        data = long_tail()
        config = replace(SHORT, batch_size=100_000)  # whole passes, so that twice the rows is the same gradient
        twice = np.tile(np.arange(data.train.labels.size), 2)
        one, _ = fit_paper(data.train, data.counts, config=config)
        two, report = fit_paper(data.train.subset(twice), data.counts, config=config)
        np.testing.assert_allclose(two.offset, one.offset, atol=1e-9)
        assert report.num_items == twice.size

    def test_row_norms_change_the_fit_here(self, long_tail):
        # unlike in fit_held_out: step size and decay lie on beta
        data = long_tail()
        plain, _ = fit_paper(data.train, data.counts, config=SHORT)
        normed, _ = fit_paper(data.train, data.counts, np.linspace(0.5, 3.0, 10), config=SHORT)
        assert np.abs(plain.offset - normed.offset).max() > 0.01

    def test_folds_into_the_linear_head(self):
        rng = np.random.default_rng(0)
        features, weight, bias = rng.normal(size=(300, 6)), rng.normal(size=(4, 6)), rng.normal(size=4)
        logits = features @ weight.T + bias
        labels = (logits + rng.normal(size=logits.shape)).argmax(axis=1)
        train = LogitSet(logits=logits, labels=labels, split="train")
        calibration, _ = fit_paper(train, train.class_counts, np.linalg.norm(weight, axis=1), config=SHORT)
        folded_weight, folded_bias = fold_into_linear(calibration, weight, bias)
        debiased = calibration.debias(RawLogits(logits)).values
        np.testing.assert_allclose(features @ folded_weight.T + folded_bias, debiased, atol=1e-12)

    def test_warns_of_a_class_that_speaks_against_itself(self, long_tail):
        data = long_tail()
        logits = data.train.logits.copy()
        logits[:, 0] = -3 * logits[:, 0]
        mirrored = LogitSet(logits=logits, labels=data.train.labels, split="train")
        _, report = fit_paper(mirrored, data.counts)
        assert "omega is negative for 1 classes (first 0)" in report.warnings[0]
        assert fit_paper(data.train, data.counts, held_out=data.held_out)[1].warnings == ()

    def test_warns_of_rows_that_the_classifier_knows_by_heart(self):
        labels = np.repeat(np.arange(3), 30)
        known = LogitSet(logits=5 * np.eye(3)[labels], labels=labels, split="train")
        _, report = fit_paper(known, [30, 30, 30], config=SHORT)
        assert "100.0% of these rows right" in report.warnings[0]


class TestTheImpliedPrior:
    def test_is_the_formula_without_held_out_rows(self, long_tail):
        data = long_tail()
        calibration, _ = fit_paper(data.train, data.counts, config=SHORT)
        np.testing.assert_allclose(
            calibration.implied_prior.probs, ClassPrior.from_weights(data.counts**-0.2).probs, rtol=1e-12
        )
        assert calibration.provenance["implied_prior"] == "formula n^(1-gamma)"

    def test_is_the_formula_where_the_held_out_rows_lack_a_class(self, long_tail):
        data = long_tail()
        partial = data.held_out.subset(np.flatnonzero(data.held_out.labels != 4))
        calibration, _ = fit_paper(data.train, data.counts, config=SHORT, held_out=partial)
        assert calibration.provenance["implied_prior"] == "formula n^(1-gamma)"

    def test_measured_on_debiased_logits_it_is_near_the_formula_where_the_model_is_right(self, long_tail):
        data = long_tail(held_out_per_class=2000)
        for gamma in (1.2, 0.0):
            config = PaperFit(gamma=gamma, weight_decay=0.0)
            calibration, _ = fit_paper(data.train, data.counts, config=config, held_out=data.held_out)
            formula = ClassPrior.from_weights(data.counts ** (1 - gamma))
            # the rarest class has 20 training rows and decides by them; the two formulas are .46 apart
            assert total_variation(calibration.implied_prior, formula) < 0.1
            assert calibration.provenance["implied_prior"] == "measured on 20000 rows (calibration)"

    def test_is_measured_and_not_assumed(self, long_tail):
        # two steps have hardly moved anything: r is still near the training law, far from n^-.2
        data = long_tail()
        config = replace(SHORT, steps=2, warmup_steps=0)
        calibration, _ = fit_paper(data.train, data.counts, config=config, held_out=data.held_out)
        assert total_variation(calibration.implied_prior, ClassPrior.from_weights(data.counts)) < 0.1
        assert total_variation(calibration.implied_prior, ClassPrior.from_weights(data.counts**-0.2)) > 0.3


class TestRefusals:
    def test_data_that_the_network_never_saw(self, long_tail):
        data = long_tail()
        with pytest.raises(LeakedSplit, match="fit_held_out"):
            fit_paper(data.held_out, data.counts)

    def test_training_rows_as_held_out(self, long_tail):
        data = long_tail()
        with pytest.raises(LeakedSplit, match="never seen"):
            fit_paper(data.train, data.counts, held_out=data.train)

    def test_a_class_without_a_row(self, long_tail):
        data = long_tail()
        partial = data.train.subset(np.flatnonzero(data.train.labels != 7))
        with pytest.raises(NotEnoughData, match="class 7 has none"):
            fit_paper(partial, data.counts)

    def test_a_class_without_a_training_image(self, long_tail):
        data = long_tail()
        with pytest.raises(EmptyClass, match="class 9 has 0"):
            fit_paper(data.train, [*data.counts[:-1], 0])

    def test_other_classes(self, long_tail):
        data = long_tail()
        with pytest.raises(ShapeMismatch, match="10 classes"):
            fit_paper(data.train, [5, 5, 5])
        three = LogitSet(logits=np.zeros((3, 3)), labels=np.arange(3), split="calibration")
        with pytest.raises(ShapeMismatch, match="10 and 3"):
            fit_paper(data.train, data.counts, held_out=three)

    def test_row_norms_that_are_not_one_positive_number_a_class(self, long_tail):
        data = long_tail()
        with pytest.raises(ShapeMismatch):
            fit_paper(data.train, data.counts, [1.0, 2.0])
        with pytest.raises(InvalidCalibration, match="positive"):
            fit_paper(data.train, data.counts, [0.0] * 10)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("gamma", -0.1),
            ("gamma", np.inf),
            ("steps", 0),
            ("batch_size", 0),
            ("peak_learning_rate", 0.0),
            ("peak_learning_rate", np.nan),
            ("first_learning_rate", 0.2),
            ("warmup_steps", 2001),
            ("momentum", 1.0),
            ("weight_decay", -1.0),
            ("seed", -1),
        ],
    )
    def test_a_recipe_out_of_range(self, name, value):
        with pytest.raises(CalibrationError, match=name):
            replace(AS_PUBLISHED, **{name: value})
