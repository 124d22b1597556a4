import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.errors import (
    CalibrationError,
    InvalidCalibration,
    InvalidPrior,
    LeakedSplit,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.sets import SetRule, conformity, fit_sets
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import AdjustedLogits, ClassPrior, DebiasedLogits, LogitSet

UNIFORM = ClassPrior.uniform(10)
TAIL = ClassPrior.from_weights(50.0 ** (-np.arange(10) / 9))
REVERSED = ClassPrior.from_weights(TAIL.probs[::-1])


def labelled(logits, labels, split="calibration"):
    """Debiased logits under the uniform prior, and the labelled set that they are of."""
    logit_set = LogitSet(logits=np.array(logits, dtype=float), labels=np.array(labels), split=split)
    return logit_set, DebiasedLogits(logit_set.logits, ClassPrior.uniform(logit_set.num_classes))


def noisy(seed, counts, signal=2.0):
    """Logits of `counts` examples a class, the true class ahead by `signal` on average."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(labels.size, len(counts)))
    logits[np.arange(labels.size), labels] += signal
    return labelled(logits, labels)


def two_classes(evidence, labels):
    """Logits of two classes by log p(true class) - log p(other)."""
    sign = 1 - 2 * np.array(labels)
    return labelled(np.stack([sign * evidence, -sign * np.array(evidence)], axis=1) / 2, labels)


class Pool:
    """Many labelled examples, from which calibration sets of any class law are drawn again and again."""

    def __init__(self, sample):
        self.logit_set = sample.logit_set
        self.debiased = closed_form_without_data(sample.ledger).debias(sample.logit_set.raw)

    def draw(self, rng, law, size):
        labels = self.logit_set.labels
        wanted = rng.multinomial(size, law.probs)
        rows = [rng.choice(np.flatnonzero(labels == c), count, replace=False) for c, count in enumerate(wanted)]
        return np.concatenate(rows)

    def fit(self, rows, **options):
        drawn = DebiasedLogits(self.debiased.values[rows], self.debiased.implied_prior)
        return fit_sets(self.logit_set.subset(rows), drawn, **options)

    def coverage_by_class(self, rule, rows):
        """Of each class, over all examples but the drawn ones."""
        labels = self.logit_set.labels
        covered = rule.predict(self.debiased.adjust(rule.target))[np.arange(labels.size), labels]
        rest = np.setdiff1d(np.arange(labels.size), rows)
        return np.bincount(labels[rest], weights=covered[rest]) / np.bincount(labels[rest])


@pytest.fixture(scope="module")
def pool_of():
    return {}


@pytest.fixture
def pool(simulate, pool_of):
    if not pool_of:
        pool_of["pool"] = Pool(simulate(per_class=1000))
    return pool_of["pool"]


def mean_coverage(pool, *, law, target, truth, size=150, splits=60, **options):
    """Mean coverage where classes follow `truth`, of sets fitted for `target` on examples that follow `law`."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(splits):
        rows = pool.draw(rng, law, size)
        found.append(truth.probs @ pool.coverage_by_class(pool.fit(rows, target=target, **options), rows))
    return np.mean(found), np.std(found) / np.sqrt(splits)


class TestConformity:
    def test_is_the_prevalence_adjusted_softmax_by_hand(self):
        target = ClassPrior.from_weights([3, 1])
        adjusted = DebiasedLogits(np.log([[0.2, 0.8]]), ClassPrior.uniform(2)).adjust(target)
        # p under 3:1 is .6 : .8 over 1.4, divided by the target .75 and .25
        np.testing.assert_allclose(np.exp(conformity(adjusted)), [[0.6 / 1.4 / 0.75, 0.8 / 1.4 / 0.25]])

    def test_under_the_uniform_target_it_is_the_debiased_score_up_to_a_constant(self, pool):
        adjusted = pool.debiased.adjust(UNIFORM)
        np.testing.assert_allclose(np.exp(conformity(adjusted)), 10 * adjusted.scores())

    def test_keeps_the_order_where_probabilities_underflow(self):
        logits = np.linspace(1e4, -1e4, 8142)[None]
        target = ClassPrior.from_weights(1.0 / np.arange(1, 8143))
        found = conformity(AdjustedLogits(logits + target.log_probs, target))
        assert (np.diff(found[0]) < 0).all()

    def test_a_class_that_cannot_occur_has_none(self):
        adjusted = DebiasedLogits(np.zeros((1, 3)), ClassPrior.uniform(3)).adjust(ClassPrior.from_weights([1, 1, 0]))
        np.testing.assert_array_equal(conformity(adjusted), [[0.0, 0.0, -np.inf]])


class TestCoverage:
    @pytest.mark.parametrize("coverage", [0.8, 0.9])
    def test_holds_on_average_over_many_calibration_sets(self, pool, coverage):
        mean, error = mean_coverage(pool, law=UNIFORM, target=UNIFORM, truth=UNIFORM, coverage=coverage)
        assert coverage - 3 * error < mean < coverage + 3 * error + 0.015

    @pytest.mark.parametrize("law", [UNIFORM, REVERSED])
    def test_holds_after_a_label_shift_and_fails_without_the_weights(self, pool, law):
        # the classes that sets for another law cover least are the common ones from now on
        by_class = pool.coverage_by_class(pool.fit(np.arange(0, 10000, 5), target=UNIFORM), [0])
        hard = ClassPrior.from_weights(np.where(by_class <= np.sort(by_class)[2], 10, 1))
        options = {"law": law, "truth": hard, "size": 400}
        weighted, error = mean_coverage(pool, target=hard, **options)
        assert weighted > 0.9 - 3 * error
        unweighted, _ = mean_coverage(pool, target=law, **options)
        assert unweighted < 0.87

    @pytest.mark.parametrize("interpolation", [0.5, 1.0])
    def test_holds_after_a_label_shift_with_thresholds_by_class(self, pool, interpolation):
        options = {"law": REVERSED, "target": TAIL, "truth": TAIL, "size": 400}
        mean, error = mean_coverage(pool, interpolation=interpolation, **options)
        assert mean > 0.9 - 3 * error

    def test_each_class_is_covered_with_a_threshold_of_its_own(self, pool):
        rng = np.random.default_rng(2)
        by_class = {1.0: [], 0.0: []}
        for _ in range(60):
            rows = pool.draw(rng, UNIFORM, 400)
            for interpolation, found in by_class.items():
                rule = pool.fit(rows, target=UNIFORM, interpolation=interpolation)
                found.append(pool.coverage_by_class(rule, rows))
        assert np.mean(by_class[1.0], axis=0).min() > 0.89
        assert np.mean(by_class[0.0], axis=0).min() < 0.87

    def test_holds_with_a_handful_of_examples_a_class(self, pool):
        rng, labels = np.random.default_rng(3), pool.logit_set.labels
        found = []
        for _ in range(60):
            rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), 1 + c) for c in range(10)])
            found.append(TAIL.probs @ pool.coverage_by_class(pool.fit(rows, target=TAIL), rows))
        assert np.mean(found) > 0.9 - 3 * np.std(found) / np.sqrt(60)

    def test_a_rare_class_leaves_room_for_its_own_uncertainty(self):
        # uniform target: the example of class 0 weighs 1/2, each of class 1 1/18. A candidate of class 0 asks for
        # .9 (1 + 1/2), more than there is; one of class 1 for .9 (1 + 1/18) = .95: all but none of the nine
        evidence = np.array([5.0, 9, 8, 7, 6, 4, 3, 2, 1, 0])
        logit_set, debiased = two_classes(evidence, [0] + [1] * 9)
        rule = fit_sets(logit_set, debiased, target=ClassPrior.uniform(2))
        found = conformity(debiased.adjust(rule.target))[np.arange(10), logit_set.labels]
        assert rule.thresholds[0] == -np.inf
        assert rule.thresholds[1] == pytest.approx(found[9])
        lower = fit_sets(logit_set, debiased, target=ClassPrior.uniform(2), coverage=0.8)
        assert lower.thresholds[1] == pytest.approx(found[7])  # .8 (1 + 1/18) = .844: the two of least evidence go


class TestInterpolation:
    def test_at_0_there_is_one_threshold_the_order_statistic_of_split_conformal(self):
        logit_set, debiased = noisy(0, [20] * 5)
        rule = fit_sets(logit_set, debiased, target=ClassPrior.uniform(5))
        found = conformity(debiased.adjust(rule.target))[np.arange(100), logit_set.labels]
        assert rule.thresholds == pytest.approx(np.full(5, np.sort(found)[100 - 91]))  # ceil(.9 * 101) = 91

    def test_at_1_each_class_has_its_own(self):
        logit_set, debiased = noisy(0, [30, 19, 9])
        rule = fit_sets(logit_set, debiased, target=ClassPrior.uniform(3), interpolation=1)
        found = conformity(debiased.adjust(rule.target))[np.arange(58), logit_set.labels]
        expected = [np.sort(found[logit_set.labels == c])[lost] for c, lost in enumerate([2, 1, 0])]
        np.testing.assert_array_equal(rule.thresholds, expected)

    def test_between_it_mixes_probabilities(self):
        options = {"target": ClassPrior.uniform(3)}
        common, own, mixed = (
            np.exp(fit_sets(*noisy(0, [30, 19, 9]), interpolation=share, **options).thresholds) for share in (0, 1, 0.3)
        )
        np.testing.assert_allclose(mixed, 0.7 * common + 0.3 * own)

    def test_a_class_with_too_few_examples_lowers_the_common_threshold_and_is_in_every_set_only_at_1(self):
        logit_set, debiased = noisy(0, [30, 30, 8])  # 90 % needs 9
        target = ClassPrior.uniform(3)
        common, mixed, own = (
            fit_sets(logit_set, debiased, target=target, interpolation=share).thresholds[2] for share in (0, 0.9, 1)
        )
        assert mixed == pytest.approx(common + np.log(0.1))
        assert own == -np.inf


class TestSets:
    def test_are_never_empty_and_hold_the_decision(self):
        logit_set, debiased = noisy(0, [20] * 5)
        target = ClassPrior.from_weights([100, 10, 1, 1, 1])
        rule = fit_sets(logit_set, debiased, target=target, coverage=0.05)
        adjusted = debiased.adjust(target)
        sets = rule.predict(adjusted)
        assert sets[np.arange(100), adjusted.values.argmax(axis=1)].all()
        assert (sets.sum(axis=1) == 1).mean() > 0.5

    def test_leave_out_a_class_that_cannot_occur_and_ignore_its_examples(self):
        logit_set, debiased = noisy(0, [20] * 4)
        target = ClassPrior.from_weights([1, 1, 1, 0])
        rule = fit_sets(logit_set, debiased, target=target, interpolation=1)
        assert not rule.predict(debiased.adjust(target))[:, 3].any()
        kept = np.flatnonzero(logit_set.labels < 3)
        without = fit_sets(
            logit_set.subset(kept), DebiasedLogits(debiased.values[kept], debiased.implied_prior), target=target
        )
        again = fit_sets(logit_set, debiased, target=target)
        np.testing.assert_array_equal(again.thresholds[:3], without.thresholds[:3])

    def test_a_class_without_a_calibration_example_gets_a_threshold_from_the_others(self):
        logit_set, debiased = noisy(0, [50] * 20 + [0])
        target = ClassPrior.uniform(21)
        rule = fit_sets(logit_set, debiased, target=target)
        assert -np.inf < rule.thresholds[20] <= rule.thresholds[:20].min()
        assert rule.provenance["absent_classes"] == 1
        assert rule.provenance["effective_items"] == pytest.approx(1000)
        assert (
            fit_sets(logit_set, debiased, target=target, interpolation=1).predict(debiased.adjust(target))[:, 20].all()
        )

    @pytest.mark.parametrize("interpolation", [0.0, 0.5, 1.0])
    def test_one_example_a_class_two_classes_and_extreme_logits_work(self, interpolation):
        for logits, labels in (
            (1e4 * np.eye(30), np.arange(30)),
            ([[1e4, -1e4], [-1e4, 1e4]], [0, 0]),
            ([[0.0, 0.0]], [1]),
        ):
            logit_set, debiased = labelled(logits, labels)
            target = ClassPrior.uniform(logit_set.num_classes)
            rule = fit_sets(logit_set, debiased, target=target, interpolation=interpolation)
            sets = rule.predict(debiased.adjust(target))
            assert sets[np.arange(len(labels)), labels].all()

    def test_say_what_they_rest_on(self):
        logit_set, debiased = noisy(0, [20, 5])
        found = fit_sets(logit_set, debiased, target=ClassPrior.from_weights([4, 1])).provenance
        assert found["effective_items"] == pytest.approx(25)  # 4:1 as the examples: none weighs more than another
        assert (found["num_items"], found["items_per_class_min"], found["items_per_class_max"]) == (25, 5, 20)
        shifted = fit_sets(logit_set, debiased, target=ClassPrior.uniform(2)).provenance
        assert shifted["effective_items"] == pytest.approx(1 / (0.25 / 20 + 0.25 / 5))


class TestRefuses:
    @pytest.mark.parametrize("level", [0.0, 1.0, 90, -0.1, float("nan")])
    def test_a_coverage_that_is_no_fraction(self, level):
        with pytest.raises(CalibrationError, match="fraction between 0 and 1"):
            fit_sets(*noisy(0, [5, 5]), target=ClassPrior.uniform(2), coverage=level)

    @pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
    def test_an_interpolation_out_of_range(self, share):
        with pytest.raises(CalibrationError, match="interpolation"):
            fit_sets(*noisy(0, [5, 5]), target=ClassPrior.uniform(2), interpolation=share)

    def test_training_data_and_no_data(self):
        uniform = ClassPrior.uniform(2)
        with pytest.raises(LeakedSplit):
            fit_sets(*labelled([[1, 0]], [0], split="train"), target=uniform)
        with pytest.raises(NotEnoughData):
            fit_sets(*labelled(np.zeros((0, 2)), np.zeros(0, dtype=int)), target=uniform)
        with pytest.raises(NotEnoughData, match="can occur"):
            fit_sets(*labelled([[1, 0]], [0]), target=ClassPrior.from_weights([0, 1]))

    def test_logits_of_other_examples_or_classes(self):
        logit_set, debiased = noisy(0, [5, 5])
        with pytest.raises(ShapeMismatch):
            fit_sets(logit_set.subset(np.arange(9)), debiased, target=ClassPrior.uniform(2))
        with pytest.raises(ShapeMismatch):
            fit_sets(logit_set, debiased, target=ClassPrior.uniform(3))
        rule = fit_sets(logit_set, debiased, target=ClassPrior.uniform(2))
        with pytest.raises(ShapeMismatch):
            rule.predict(noisy(0, [5, 5, 5])[1].adjust(ClassPrior.uniform(3)))

    def test_logits_adjusted_to_another_target_than_the_fitted(self):
        logit_set, debiased = noisy(0, [5, 5])
        rule = fit_sets(logit_set, debiased, target=ClassPrior.uniform(2))
        with pytest.raises(InvalidPrior, match=r"0\.25 away"):
            rule.predict(debiased.adjust(ClassPrior.from_weights([3, 1])))

    def test_thresholds_that_cannot_be(self):
        options = {"coverage": 0.9, "interpolation": 0.0, "target": ClassPrior.uniform(2)}
        for wrong in (np.nan, np.inf):
            with pytest.raises(InvalidCalibration):
                SetRule(thresholds=np.array([0.0, wrong]), **options)
        with pytest.raises(ShapeMismatch):
            SetRule(thresholds=np.zeros(3), **options)


PROPERTY = settings(deadline=None, max_examples=50)
CASES = {
    "seed": st.integers(0, 2**32 - 1),
    "counts": st.lists(st.integers(0, 25), min_size=2, max_size=8).filter(any),
    "weights": st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    "interpolation": st.floats(0, 1),
}


class TestProperties:
    @PROPERTY
    @given(**CASES, coverages=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)))
    def test_sets_grow_with_the_coverage(self, seed, counts, weights, interpolation, coverages):
        logit_set, debiased = noisy(seed, counts)
        target = ClassPrior.from_weights(weights[: len(counts)])
        small, large = (
            fit_sets(logit_set, debiased, target=target, coverage=level, interpolation=interpolation).predict(
                debiased.adjust(target)
            )
            for level in sorted(coverages)
        )
        assert (small <= large).all()

    @PROPERTY
    @given(**CASES)
    def test_a_mixed_threshold_lies_between_the_two(self, seed, counts, weights, interpolation):
        logit_set, debiased = noisy(seed, counts)
        target = ClassPrior.from_weights(weights[: len(counts)])
        common, own, mixed = (
            fit_sets(logit_set, debiased, target=target, interpolation=share).thresholds
            for share in (0, 1, interpolation)
        )
        assert (np.minimum(common, own) - 1e-9 <= mixed).all()
        assert (mixed <= np.maximum(common, own) + 1e-9).all()

    @PROPERTY
    @given(**CASES)
    def test_the_order_of_classes_and_examples_does_not_matter(self, seed, counts, weights, interpolation):
        logit_set, debiased = noisy(seed, counts)
        target = ClassPrior.from_weights(weights[: len(counts)])
        rng = np.random.default_rng(seed)
        classes, rows = rng.permutation(len(counts)), rng.permutation(logit_set.labels.size)
        shuffled, moved = labelled(debiased.values[rows][:, classes], np.argsort(classes)[logit_set.labels[rows]])
        expected = fit_sets(logit_set, debiased, target=target, interpolation=interpolation)
        found = fit_sets(
            shuffled, moved, target=ClassPrior.from_weights(target.probs[classes]), interpolation=interpolation
        )
        np.testing.assert_allclose(found.thresholds, expected.thresholds[classes], rtol=1e-9, atol=1e-9)
