"""What holds for every fit and every set of logits, not only for the examples that the other tests chose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.choose import METHODS, choose, fit_named
from models.calibration.errors import FitFailed, NotEnoughData
from models.calibration.implied_prior import measure_implied_prior
from models.calibration.prior import Ledger, total_variation
from models.calibration.types import ClassPrior, LogitSet

PULLED = [method for method in METHODS if method != "vector-scaling"]  # these have a minimum whatever the examples
EVERY = settings(deadline=None, max_examples=15)


@st.composite
def problems(draw, min_per_class=1):
    """A labelled set, its ledger, and a random generator that belongs to them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    classes, per_class = draw(st.integers(2, 6)), draw(st.integers(min_per_class, 8))
    size = draw(st.sampled_from([0.1, 1.0, 10.0]))
    labels = np.repeat(np.arange(classes), per_class)
    logits = size * (rng.normal(size=(labels.size, classes)) + 1.5 * np.eye(classes)[labels])
    ledger = Ledger.by_rule(
        draw(st.sampled_from(["cross-entropy", "balanced-softmax"])), rng.integers(1, 1000, size=classes)
    )
    return LogitSet(logits=logits, labels=labels, split="calibration"), ledger, rng


def scores(method, logit_set, ledger, seen=None):
    """Under a uniform target."""
    calibration, _ = fit_named(method)(logit_set, ledger)
    uniform = ClassPrior.uniform(logit_set.num_classes)
    return calibration.debias((seen or logit_set).raw).adjust(uniform).scores()


def noise(size):
    labels = np.repeat(np.arange(3), 10)
    logits = size * np.random.default_rng(0).normal(size=(30, 3))
    return LogitSet(logits=logits, labels=labels, split="calibration")


class TestEveryFit:
    @pytest.mark.parametrize("method", PULLED)
    @EVERY
    @given(problem=problems())
    def test_does_not_see_a_constant_added_to_a_row(self, method, problem):
        logit_set, ledger, rng = problem
        moved = LogitSet(
            logits=logit_set.logits + rng.normal(size=(logit_set.labels.size, 1)) * 100,
            labels=logit_set.labels,
            split="calibration",
        )
        np.testing.assert_allclose(scores(method, moved, ledger), scores(method, logit_set, ledger), atol=1e-4)

    @pytest.mark.parametrize("method", PULLED)
    @EVERY
    @given(problem=problems())
    def test_does_not_depend_on_the_order_of_classes_or_examples(self, method, problem):
        logit_set, ledger, rng = problem
        order, rows = rng.permutation(logit_set.num_classes), rng.permutation(logit_set.labels.size)
        permuted = LogitSet(
            logits=logit_set.logits[rows][:, order],
            labels=np.argsort(order)[logit_set.labels[rows]],
            split="calibration",
        )
        there = scores(method, permuted, Ledger.by_rule(ledger.trained_with, ledger.class_counts[order]))
        np.testing.assert_allclose(there, scores(method, logit_set, ledger)[rows][:, order], atol=1e-3)

    @pytest.mark.parametrize("method", PULLED)
    @EVERY
    @given(problem=problems())
    def test_gives_probabilities_and_never_turns_a_class_around(self, method, problem):
        logit_set, ledger, _ = problem
        calibration, _ = fit_named(method)(logit_set, ledger)
        assert (calibration.scale >= 0).all()
        np.testing.assert_allclose(scores(method, logit_set, ledger).sum(axis=1), 1.0)

    @pytest.mark.parametrize("method", PULLED)
    @pytest.mark.parametrize("size", [1e-12, 1e-3, 1e4, 1e8])
    def test_survives_extreme_logits(self, method, size):
        found = scores(method, noise(size), Ledger.by_rule("cross-entropy", [30, 20, 10]))
        assert np.isfinite(found).all()

    @pytest.mark.parametrize("method", ["bcts", "marc"])
    def test_of_a_class_each_says_so_where_no_number_can_carry_the_logits(self, method):
        with pytest.raises(FitFailed, match="before softmax"):
            scores(method, noise(1e30), Ledger.by_rule("cross-entropy", [30, 20, 10]))

    @pytest.mark.parametrize("method", ["temperature", "closed-form"])
    def test_of_one_parameter_needs_one_example_and_no_particular_class(self, method):
        one = LogitSet(logits=np.array([[1.0, 0.0, 0.0]]), labels=np.array([0]), split="calibration")
        found = scores(method, one, Ledger.by_rule("cross-entropy", [30, 20, 10]))
        assert found.shape == (1, 3)

    @pytest.mark.parametrize("method", ["bcts", "marc", "vector-scaling"])
    def test_of_a_class_each_refuses_fewer_examples_than_classes(self, method):
        two = LogitSet(logits=np.eye(3)[:2], labels=np.array([0, 1]), split="calibration")
        with pytest.raises(NotEnoughData, match="1 of 3 have none"):
            fit_named(method)(two, Ledger.by_rule("cross-entropy", [30, 20, 10]))

    def test_chooses_from_one_example_and_with_a_class_absent(self):
        one = LogitSet(logits=np.array([[1.0, 0.0, 0.0]]), labels=np.array([0]), split="calibration")
        assert choose(one, Ledger.by_rule("cross-entropy", [30, 20, 10])).calibration.method == "closed-form"


class TestTheLedger:
    @EVERY
    @given(problem=problems())
    def test_adjusting_to_the_raw_prior_undoes_the_debiasing(self, problem):
        logit_set, ledger, _ = problem
        closed, _ = fit_named("closed-form")(logit_set, ledger)
        plain, _ = fit_named("temperature")(logit_set, ledger)
        back = closed.debias(logit_set.raw).adjust(ledger.implied_prior).scores()
        np.testing.assert_allclose(back, plain.debias(logit_set.raw).scores(), atol=1e-9)

    @EVERY
    @given(problem=problems(), steps=st.integers(1, 4))
    def test_a_target_of_a_target_is_the_last_one(self, problem, steps):
        logit_set, ledger, rng = problem
        closed, _ = fit_named("closed-form")(logit_set, ledger)
        debiased = closed.debias(logit_set.raw)
        for _ in range(steps):  # each change of target starts from the debiased logits, so that none is left behind
            target = ClassPrior.from_weights(rng.random(logit_set.num_classes) + 1e-3)
            adjusted = debiased.adjust(target)
        by_bayes = debiased.scores() * target.probs
        np.testing.assert_allclose(adjusted.scores(), by_bayes / by_bayes.sum(axis=1, keepdims=True), atol=1e-9)

    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("trained_with", ["cross-entropy", "balanced-softmax"])
    def test_the_measured_prior_is_the_rules_where_the_densities_are_known(self, simulate, seed, trained_with):
        sample = simulate(per_class=1500, trained_with=trained_with, seed=seed)
        measured = measure_implied_prior(sample.logit_set)
        assert total_variation(measured, sample.ledger.implied_prior) < 0.03
