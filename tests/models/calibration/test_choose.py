from dataclasses import replace

import numpy as np
import pytest

from models.calibration.choose import CANDIDATES, METHODS, choose, fit_named, num_folds, out_of_fold, was_chosen
from models.calibration.errors import CalibrationError, FitFailed, LeakedSplit, NotEnoughData
from models.calibration.prior import Ledger
from models.calibration.types import LogitSet


def shifted(sample, column, by):
    logits = sample.logit_set.logits.copy()
    logits[:, column] += by
    return replace(sample, logit_set=LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration"))


def test_takes_the_closed_form_where_it_is_the_truth(simulate):
    sample = simulate(per_class=40, confidence=2.0)
    choice = choose(sample.logit_set, sample.ledger)
    assert choice.calibration.method == "closed-form"
    assert set(choice.balanced_nll) == set(CANDIDATES)
    assert choice.report.warnings == ()


def test_takes_an_offset_a_class_where_one_class_is_off(simulate):
    sample = simulate(per_class=40)
    choice = choose(shifted(sample, 2, 3.0).logit_set, sample.ledger)
    assert choice.calibration.method == "bcts"
    assert choice.balanced_nll["bcts"] < choice.balanced_nll["closed-form"]


def test_one_example_of_a_class_leaves_the_closed_form(simulate):
    sample = simulate(per_class=30)
    all_but = np.flatnonzero((sample.logit_set.labels != 4) | (np.arange(300) == 120))
    choice = choose(shifted(sample, 2, 3.0).logit_set.subset(all_but), sample.ledger)
    assert choice.calibration.method == "closed-form"
    assert "a class with 1" in choice.reason


def test_forty_examples_in_all_leave_the_closed_form(simulate):
    sample = simulate(per_class=4)
    choice = choose(shifted(sample, 2, 3.0).logit_set, sample.ledger)
    assert choice.calibration.method == "closed-form"
    assert "40 examples" in choice.reason


def test_two_examples_a_class_are_compared_where_the_classes_are_many(simulate):
    sample = simulate(classes=50, per_class=2)
    choice = choose(sample.logit_set, sample.ledger)
    assert set(choice.balanced_nll) == set(CANDIDATES)
    assert choice.report.warnings == ()  # of few examples: that is for a person who names a method
    fifty = simulate(per_class=5)
    assert choose(fifty.logit_set, fifty.ledger).balanced_nll


class TestTheRuleOfOneStandardError:
    @pytest.mark.parametrize(
        ("by", "seed", "expected", "without_any", "of_three"),
        [
            (0.6, 2, "closed-form", "bcts", "closed-form"),
            (0.9, 1, "closed-form", "marc", "closed-form"),
            (0.9, 3, "bcts", "bcts", "closed-form"),
            (1.2, 5, "bcts", "marc", "closed-form"),
        ],
    )
    def test_takes_the_simplest_that_is_not_told_from_the_best(
        self, simulate, by, seed, expected, without_any, of_three
    ):
        # what a rule of no error or of three would take, and an unpaired one (always the closed form), shows the width
        sample = simulate(per_class=20, seed=seed)
        logit_set = shifted(shifted(sample, 2, by), 5, -by)
        choice = choose(logit_set.logit_set, sample.ledger)
        assert choice.calibration.method == expected
        assert min(choice.balanced_nll, key=choice.balanced_nll.get) == without_any
        errors = {method: self.error(method, choice, logit_set.logit_set, sample.ledger) for method in CANDIDATES}
        best = choice.balanced_nll[without_any]
        within = {
            times: next(m for m in CANDIDATES if choice.balanced_nll[m] - best <= times * errors[m]) for times in (1, 3)
        }
        assert within == {1: expected, 3: of_three}

    def error(self, method, choice, logit_set, ledger):
        """Of the paired difference to the best: items of a class weigh alike, classes weigh alike."""
        best = min(choice.balanced_nll, key=choice.balanced_nll.get)
        losses = [
            -np.log(out_of_fold(fit_named(each), logit_set, ledger).scores()[np.arange(200), logit_set.labels])
            for each in (method, best)
        ]
        return np.std(losses[0] - losses[1]) / np.sqrt(200)


def test_fits_the_one_it_took_with_the_row_norms(simulate):
    sample = simulate(per_class=200)
    logits = sample.logit_set.logits.copy()
    logits[:, 0] *= 3
    broken = LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration")
    norms = np.linspace(0.5, 3.0, 10)
    calibration = choose(broken, sample.ledger, norms).calibration
    assert calibration.method == "marc"
    np.testing.assert_allclose(calibration.parameters["beta"] * norms, calibration.offset)


def test_leaves_out_a_candidate_that_cannot_be_fitted(simulate):
    sample = simulate(per_class=40)
    reversed_logits = LogitSet(logits=-5 * sample.logit_set.logits, labels=sample.logit_set.labels, split="calibration")
    with pytest.raises(FitFailed, match="speak against the labels"):
        fit_named("bcts")(reversed_logits, sample.ledger)
    choice = choose(reversed_logits, sample.ledger)
    assert "bcts" not in choice.balanced_nll
    assert choice.report.warnings


def test_says_why_and_signs_the_calibration(simulate):
    sample = simulate(per_class=10)
    choice = choose(sample.logit_set, sample.ledger)
    assert choice.reason.startswith(choice.calibration.method)
    assert choice.calibration.provenance["chosen"] == choice.reason
    assert was_chosen(choice.calibration)
    assert not was_chosen(fit_named("bcts")(sample.logit_set, sample.ledger)[0])


def test_out_of_fold_rows_come_from_a_fit_that_did_not_see_them(simulate):
    sample = simulate(per_class=5)
    labels = sample.logit_set.labels.copy()
    clean = out_of_fold(fit_named("bcts"), sample.logit_set, sample.ledger)
    labels[0] = 9  # the row's own label must not reach its own score
    relabelled = LogitSet(logits=sample.logit_set.logits, labels=labels, split="calibration")
    inside, _ = fit_named("bcts")(relabelled, sample.ledger)
    outside = out_of_fold(fit_named("bcts"), relabelled, sample.ledger)
    assert not np.allclose(inside.debias(relabelled.raw).values[0], clean.values[0])
    assert outside.values.shape == clean.values.shape
    assert num_folds(relabelled) == 5


def test_two_calls_give_the_same_answer(simulate):
    sample = simulate(per_class=10)
    first, second = (choose(sample.logit_set, sample.ledger) for _ in range(2))
    assert first.reason == second.reason
    np.testing.assert_array_equal(first.calibration.offset, second.calibration.offset)


def test_a_measured_ledger_is_measured_without_the_rows_that_are_scored(simulate):
    sample = simulate(per_class=5)
    ledger = Ledger.measured(sample.logit_set, sample.ledger.class_counts)
    labels = sample.logit_set.labels
    unseen = out_of_fold(fit_named("closed-form"), sample.logit_set, ledger).scores()[np.arange(50), labels]
    seen = fit_named("closed-form")(sample.logit_set, ledger)[0].debias(sample.logit_set.raw).scores()
    assert -np.log(unseen).mean() > -np.log(seen[np.arange(50), labels]).mean() + 0.02


def test_out_of_fold_rows_stand_under_one_prior_whatever_the_fit_leaves(simulate):
    sample = simulate(per_class=20, confidence=2.0)
    closed, plain = (out_of_fold(fit_named(name), sample.logit_set, sample.ledger) for name in METHODS[:2])
    np.testing.assert_allclose(closed.scores(), plain.scores(), atol=1e-12)
    np.testing.assert_allclose(closed.implied_prior.probs, 0.1)


class TestALedgerThatTheExamplesContradict:
    @pytest.mark.parametrize(
        ("truth", "said", "suspected"),
        [
            ("balanced-softmax", "cross-entropy", "a uniform implied"),
            ("cross-entropy", "balanced-softmax", "like the training"),
        ],
    )
    def test_is_doubted_in_the_report(self, simulate, truth, said, suspected):
        sample = simulate(per_class=10, trained_with=truth, confidence=1.5)
        wrong = Ledger.by_rule(said, sample.ledger.class_counts)
        (warning,) = choose(sample.logit_set, wrong).report.warnings
        assert said in warning
        assert suspected in warning
        assert choose(sample.logit_set, sample.ledger).report.warnings == ()

    def test_is_doubted_with_one_example_a_class_already(self, simulate):
        sample = simulate(classes=50, per_class=1, trained_with="balanced-softmax")
        wrong = Ledger.by_rule("cross-entropy", sample.ledger.class_counts)
        assert "uniform" in choose(sample.logit_set, wrong).report.warnings[0]

    def test_is_not_doubted_for_one_example(self):
        one = LogitSet(logits=np.array([[0.0, 3.0, 1.0]]), labels=np.array([0]), split="calibration")
        (warning,) = choose(one, Ledger.by_rule("cross-entropy", [1, 50, 9])).report.warnings
        assert "speak against" not in warning

    def test_is_not_doubted_where_rare_classes_lack_examples(self, simulate):
        # common classes alone favour any prior that is less skewed than the right one
        sample = simulate(per_class=30)
        common = sample.logit_set.subset(np.flatnonzero(sample.logit_set.labels < 4))
        (warning,) = choose(common, sample.ledger).report.warnings
        assert "6 of 10 classes have no labelled example" in warning

    def test_is_not_the_suspect_where_the_labels_are_of_other_examples(self, simulate):
        sample = simulate(per_class=30)
        shuffled = np.random.default_rng(0).permutation(sample.logit_set.labels)
        mixed_up = LogitSet(logits=sample.logit_set.logits, labels=shuffled, split="calibration")
        assert any("no better than chance" in text for text in choose(mixed_up, sample.ledger).report.warnings)

    def test_is_not_doubted_for_a_difference_within_the_noise(self, simulate):
        # counts a little off: the uniform law is the truth, and 100 examples cannot tell
        for seed in range(15):
            sample = simulate(per_class=10, trained_with="balanced-sampling", seed=seed)
            counts = np.round(100 * np.exp(0.2 * np.random.default_rng(seed).normal(size=10))).astype(int)
            assert choose(sample.logit_set, Ledger.by_rule("cross-entropy", counts)).report.warnings == ()

    def test_is_seldom_doubted_where_it_is_right(self, simulate):
        for seed in range(25):
            sample = simulate(per_class=5, confidence=1.7, seed=seed)
            assert choose(sample.logit_set, sample.ledger).report.warnings == ()


def test_refuses_training_data_nothing_and_unknown_methods(simulate):
    sample = simulate(per_class=5)
    with pytest.raises(LeakedSplit):
        choose(LogitSet(logits=sample.logit_set.logits, labels=sample.logit_set.labels, split="train"), sample.ledger)
    with pytest.raises(NotEnoughData):
        choose(sample.logit_set.subset(np.array([], dtype=int)), sample.ledger)
    with pytest.raises(CalibrationError, match="closed-form, bcts, marc, vector-scaling; got 'platt'"):
        fit_named("platt")
