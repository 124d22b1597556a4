import numpy as np
import pytest

from models.calibration.errors import (
    EmptyClass,
    InvalidPrior,
    ShapeMismatch,
    UnknownTrainingRule,
)
from models.calibration.prior import Ledger, capped, kl_divergence, prior_between, total_variation
from models.calibration.types import ClassPrior, LogitSet

COUNTS = [60, 30, 10]


class TestTheRules:
    def test_cross_entropy_implies_the_training_law(self):
        np.testing.assert_allclose(Ledger.by_rule("cross-entropy", COUNTS).implied_prior.probs, [0.6, 0.3, 0.1])

    @pytest.mark.parametrize("trained_with", ["balanced-softmax", "balanced-sampling"])
    def test_balanced_training_implies_the_uniform_law(self, trained_with):
        np.testing.assert_allclose(Ledger.by_rule(trained_with, COUNTS).implied_prior.probs, [1 / 3] * 3)

    def test_balanced_softmax_given_wrong_counts_implies_the_ratio(self):
        # n = 60 30 10 against the loss's 20 20 20: ratios 3 1.5 .5
        ledger = Ledger.by_rule("balanced-softmax", COUNTS, loss_counts=[20, 20, 20])
        np.testing.assert_allclose(ledger.implied_prior.probs, [0.6, 0.3, 0.1])

    def test_new_training_counts_for_balanced_softmax_are_set_against_those_of_its_loss(self):
        ledger = Ledger.by_rule("balanced-softmax", COUNTS).with_class_counts([60, 30, 40])
        np.testing.assert_allclose(ledger.implied_prior.probs, [1 / 6, 1 / 6, 4 / 6])

    def test_counts_alone_do_not_tell_for_an_unknown_training(self):
        with pytest.raises(UnknownTrainingRule, match="labelled logits"):
            Ledger.by_rule("unknown", COUNTS)

    def test_an_empty_class_is_named(self):
        with pytest.raises(EmptyClass, match="class 1 has 0"):
            Ledger.by_rule("cross-entropy", [5, 0, 1])

    @pytest.mark.parametrize("counts", [[1.5, 2.0], [5], [[1, 2]]])
    def test_counts_are_whole_numbers_one_a_class(self, counts):
        with pytest.raises(ShapeMismatch):
            Ledger.by_rule("cross-entropy", counts)


class TestBetweenUniformAndTheTrainingLaw:
    def test_kappa_by_hand(self):
        # n = 16, 4, 1: n^(1/2) = 4, 2, 1; n^(-1/2) = 1, 2, 4
        np.testing.assert_allclose(prior_between([16, 4, 1], 0.5).probs, np.array([4, 2, 1]) / 7)
        np.testing.assert_allclose(prior_between([16, 4, 1], -0.5).probs, np.array([1, 2, 4]) / 7)

    def test_its_ends_are_uniform_and_the_training_law(self):
        np.testing.assert_allclose(prior_between(COUNTS, 0).probs, 1 / 3)
        np.testing.assert_allclose(prior_between(COUNTS, 1).probs, [0.6, 0.3, 0.1])

    @pytest.mark.parametrize("kappa", [-0.51, 1.51, float("nan"), float("inf")])
    def test_kappa_has_a_range(self, kappa):
        with pytest.raises(InvalidPrior, match=r"kappa lies in \[-0\.5, 1\.5\]"):
            prior_between(COUNTS, kappa)

    def test_counts_of_any_size(self):
        probs = prior_between([2**53, 1, 1], 1.5).probs
        assert np.isfinite(probs).all()
        assert (probs > 0).all()


class TestCaps:
    def test_a_class_moves_by_no_more_than_the_factor_from_the_middle(self):
        # ratios to uniform: 1000, 10, 10, 10, 0.1; with a factor of 5 around the median 10: 50, 10, 10, 10, 2
        uniform = ClassPrior.uniform(5)
        held = capped(ClassPrior.from_weights([1000, 10, 10, 10, 0.1]), uniform, 5)
        np.testing.assert_allclose(held.probs, np.array([50, 10, 10, 10, 2]) / 82)

    def test_what_is_within_stays(self):
        target = ClassPrior.from_weights([3, 2, 1])
        np.testing.assert_allclose(capped(target, ClassPrior.from_weights(COUNTS), 100).probs, target.probs)

    def test_what_cannot_occur_stays_impossible(self):
        held = capped(ClassPrior.from_weights([1, 0, 1e9, 1]), ClassPrior.uniform(4), 10)
        np.testing.assert_allclose(held.probs, np.array([1, 0, 10, 1]) / 12)

    def test_the_factor_is_above_one(self):
        with pytest.raises(InvalidPrior, match="above 1; got 1"):
            capped(ClassPrior.uniform(3), ClassPrior.uniform(3), 1)
        with pytest.raises(ShapeMismatch, match="must have 2 classes"):
            capped(ClassPrior.uniform(3), ClassPrior.uniform(2), 5)


def test_distances_by_hand():
    p, q = ClassPrior.from_weights([1, 1]), ClassPrior.from_weights([3, 1])
    assert total_variation(p, q) == pytest.approx(0.25)
    assert kl_divergence(p, q) == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2))
    assert kl_divergence(ClassPrior.from_weights([1, 0]), q) == pytest.approx(np.log(4 / 3))


class TestTheLedgerOfOurOwnTraining:
    def test_a_measured_prior_is_not_changed_by_new_counts(self, simulate):
        ledger = Ledger.measured(simulate().logit_set, [5] * 10)
        with pytest.raises(UnknownTrainingRule, match="measured"):
            ledger.with_class_counts([6] * 10)

    def test_the_logit_adjusted_loss_takes_out_a_power_of_the_counts(self):
        # n = 16, 4, 1; tau 1/2 leaves n^(1/2) = 4, 2, 1
        ledger = Ledger.by_rule("logit-adjusted", [16, 4, 1], tau=0.5)
        np.testing.assert_allclose(ledger.implied_prior.probs, np.array([4, 2, 1]) / 7)

    @pytest.mark.parametrize(("tau", "same"), [(0.0, "cross-entropy"), (1.0, "balanced-softmax")])
    def test_its_ends_are_cross_entropy_and_balanced_softmax(self, tau, same):
        adjusted, known = Ledger.by_rule("logit-adjusted", [9, 3, 1], tau=tau), Ledger.by_rule(same, [9, 3, 1])
        np.testing.assert_allclose(adjusted.implied_prior.probs, known.implied_prior.probs)

    def test_the_meta_sampler_leaves_its_rates(self):
        ledger = Ledger.by_rule("meta-sampler", [100, 10, 1], rates=[0.2, 0.3, 0.5])
        np.testing.assert_allclose(ledger.implied_prior.probs, [0.2, 0.3, 0.5])

    @pytest.mark.parametrize("missing", ["logit-adjusted", "meta-sampler"])
    def test_what_the_rule_needs_must_be_given(self, missing):
        with pytest.raises(UnknownTrainingRule, match=r"needs its (tau|rates)"):
            Ledger.by_rule(missing, [3, 2, 1])

    def test_other_training_counts_keep_tau_and_rates(self):
        ledger = Ledger.by_rule("logit-adjusted", [16, 4, 1], tau=0.5).with_class_counts([32, 4, 1])
        # the loss still had 16, 4, 1: r = 32/4, 4/2, 1/1
        np.testing.assert_allclose(ledger.implied_prior.probs, np.array([8, 2, 1]) / 11)
        sampled = Ledger.by_rule("meta-sampler", [4, 2], rates=[0.5, 0.5]).with_class_counts([8, 2])
        np.testing.assert_allclose(sampled.implied_prior.probs, [2 / 3, 1 / 3])

    def test_where_the_rule_bends_r_is_measured_and_the_gap_is_told(self, simulate):
        # the logits are those of balanced training, and the ledger was told cross-entropy
        sample = simulate(per_class=2000, trained_with="balanced-softmax")
        told = Ledger.by_rule("cross-entropy", sample.ledger.class_counts)
        ledger = told.measured_on(sample.logit_set)
        assert ledger.source == "measured"
        assert total_variation(ledger.implied_prior, ClassPrior.uniform(10)) < 0.02
        assert ledger.gap_to_rule == pytest.approx(total_variation(told.implied_prior, ledger.implied_prior))
        assert ledger.gap_to_rule > 0.3
        assert told.gap_to_rule == 0

    def test_without_an_example_of_every_class_the_rule_stays_and_is_called_approximate(self):
        held_out = LogitSet(logits=np.zeros((2, 2)), labels=np.array([0, 0]), split="calibration")
        ledger = Ledger.by_rule("cross-entropy", [9, 1]).measured_on(held_out)
        assert ledger.source == "approximate"
        np.testing.assert_allclose(ledger.implied_prior.probs, [0.9, 0.1])
        assert ledger.with_class_counts([1, 1]).source == "approximate"


class TestALedgerMeasuredAnew:
    def test_is_itself_where_a_rule_gives_the_prior(self, simulate):
        sample = simulate()
        assert sample.ledger.measured_anew(sample.logit_set) is sample.ledger

    def test_starts_from_the_rule_and_not_from_what_was_measured_before(self, simulate):
        sample, other = simulate(per_class=20), simulate(per_class=20, seed=1)
        first = sample.ledger.measured_on(sample.logit_set)
        again = first.measured_anew(other.logit_set)
        np.testing.assert_allclose(
            again.implied_prior.probs, sample.ledger.measured_on(other.logit_set).implied_prior.probs
        )
        unknown = Ledger.measured(sample.logit_set, sample.ledger.class_counts).measured_anew(other.logit_set)
        known = Ledger.measured(other.logit_set, sample.ledger.class_counts)
        np.testing.assert_allclose(unknown.implied_prior.probs, known.implied_prior.probs)

    def test_stays_where_a_class_lacks_an_example(self, simulate):
        sample = simulate(per_class=20)
        ledger = sample.ledger.measured_on(sample.logit_set)
        lacking = sample.logit_set.subset(np.flatnonzero(sample.logit_set.labels != 3))
        assert ledger.measured_anew(lacking) is ledger


class TestWhatNoLedgerIs:
    def test_counts_and_prior_of_different_classes(self, simulate):
        with pytest.raises(ShapeMismatch, match="got 6 and 10"):
            Ledger.measured(simulate(per_class=5).logit_set, [5] * 6)
        with pytest.raises(ShapeMismatch, match="10 classes"):
            Ledger.by_rule("cross-entropy", [5, 4]).measured_on(simulate(per_class=5).logit_set)

    @pytest.mark.parametrize("rates", [[0.0, 1.0, 1.0], [1.0, 1.0], ["a", "b", "c"], [np.nan, 1, 1]])
    def test_rates_that_are_not_one_positive_number_a_class(self, rates):
        with pytest.raises(UnknownTrainingRule, match="one positive number for each class"):
            Ledger.by_rule("meta-sampler", [3, 2, 1], rates=rates)

    def test_a_training_that_nobody_knows(self):
        with pytest.raises(UnknownTrainingRule, match="got 'cross_entropy'"):
            Ledger.by_rule("cross_entropy", [3, 2, 1], rates=[1, 1, 1])

    @pytest.mark.parametrize("tau", ["1", None, np.nan])
    def test_a_tau_that_is_no_number(self, tau):
        with pytest.raises(UnknownTrainingRule, match="needs its tau"):
            Ledger.by_rule("logit-adjusted", [3, 2, 1], tau=tau)

    def test_a_tau_that_leaves_a_class_nothing(self):
        with pytest.raises(InvalidPrior, match="class 0 has 0"):
            Ledger.by_rule("logit-adjusted", [10**6, 1], tau=400)

    @pytest.mark.parametrize("counts", [np.array([2**63, 1], dtype=np.uint64), [[1, 2], [3]], ["1", "2"]])
    def test_counts_that_are_no_counts(self, counts):
        with pytest.raises(ShapeMismatch):
            Ledger.by_rule("cross-entropy", counts)


def test_laws_over_different_classes_are_not_compared():
    for distance in (total_variation, kl_divergence):
        with pytest.raises(ShapeMismatch, match="got 2 and 3"):
            distance(ClassPrior.uniform(2), ClassPrior.uniform(3))
