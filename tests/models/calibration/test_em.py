import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.calibration.em import LikelihoodRatios, em_batch, em_prior
from models.calibration.errors import CalibrationError, InvalidLogits, InvalidPrior, NotEnoughData, ShapeMismatch
from models.calibration.prior import total_variation
from models.calibration.types import ClassPrior, softmax


def world(*, classes=10, items=3000, apart=1.0, seed=0, law=None):
    """Log scores of the Bayes classifier of a long tail on items of another law, the tail, and that law."""
    rng = np.random.default_rng(seed)
    tail = ClassPrior.from_weights(np.geomspace(1.0, 0.01, classes))
    law = ClassPrior(rng.dirichlet(np.ones(classes))) if law is None else law
    centres = rng.normal(size=(classes, 8)) * apart
    points = centres[rng.choice(classes, items, p=law.probs)] + rng.normal(size=(items, 8))
    return points @ centres.T - 0.5 * (centres**2).sum(axis=1) + tail.log_probs, tail, law


def plain_em(log_scores, implied, pseudo_counts=0.0, tolerance=1e-9):
    """The definition, by softmax in every step."""
    law = implied.probs
    for _ in range(20_000):
        step = softmax(log_scores - implied.log_probs + np.log(law)).sum(axis=0) + pseudo_counts
        step /= step.sum()
        if np.abs(step - law).sum() < tolerance:
            return step
        law = step
    raise AssertionError("plain EM did not converge")


class TestTheLaw:
    def test_by_hand(self):
        # three sure items of class 0 and one of class 1: maximum likelihood 3/4, and 3.5/5 with half an item each
        sure = 50.0 * np.eye(2)[[0, 0, 0, 1]]
        uniform = ClassPrior.uniform(2)
        np.testing.assert_allclose(em_prior(sure, uniform, pseudo_counts=0).prior.probs, [0.75, 0.25], atol=1e-6)
        np.testing.assert_allclose(em_prior(sure, uniform).prior.probs, [0.7, 0.3], atol=1e-6)

    def test_is_found_where_it_is_far_from_what_the_scores_imply(self):
        log_scores, tail, law = world(items=20_000)
        assert total_variation(em_prior(log_scores, tail).prior, law) < 0.02
        assert total_variation(tail, law) > 0.3

    def test_without_a_shift_is_the_law_that_the_scores_imply(self):
        log_scores, _, _ = world()
        implied = ClassPrior(softmax(log_scores).mean(axis=0))
        result = em_prior(log_scores, implied, pseudo_counts=0)
        assert total_variation(result.prior, implied) < 1e-5
        assert result.iterations == 1

    @pytest.mark.parametrize("pseudo_counts", [0.0, 0.5, 3.0])
    def test_is_that_of_plain_em_in_fewer_passes(self, pseudo_counts):
        log_scores, tail, _ = world(classes=30, items=1000, apart=0.6)
        result = em_prior(log_scores, tail, pseudo_counts=pseudo_counts, tolerance=1e-7, max_steps=5000)
        assert result.converged
        np.testing.assert_allclose(result.prior.probs, plain_em(log_scores, tail, pseudo_counts), atol=5e-5)

    def test_the_extrapolation_saves_most_of_the_passes(self):
        log_scores, tail, _ = world(classes=30, items=1000, apart=0.6)
        law, passes = tail.probs, 0
        while True:
            step, passes = softmax(log_scores - tail.log_probs + np.log(law)).mean(axis=0), passes + 1
            if np.abs(step - law).sum() <= 1e-5:
                break
            law = step
        assert em_prior(log_scores, tail, pseudo_counts=0).iterations < passes / 4

    def test_never_becomes_less_likely_on_the_way(self):
        log_scores, tail, _ = world(classes=30, items=200, apart=0.6, seed=4)
        gains = [
            em_prior(log_scores, tail, pseudo_counts=0, max_steps=steps, tolerance=1e-7).log_likelihood
            for steps in range(1, 40, 2)
        ]
        assert np.diff(gains).min() > -1e-4  # 1e-7 nats an item are lost to float32

    def test_is_where_quapy_puts_it(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantifiers = pytest.importorskip("quapy.method.aggregative")
            log_scores, tail, _ = world()
            theirs, _ = quantifiers.EMQ.EM(tail.probs, softmax(log_scores), 1e-8)
        ours = em_prior(log_scores, tail, pseudo_counts=0, tolerance=1e-7).prior.probs
        np.testing.assert_allclose(ours, theirs, atol=1e-5)  # both stop before the optimum, by about as much

    def test_of_a_thousand_classes_does_not_suffer_from_underflow(self):
        # the product of the 1,000 priors is 0 in float64; whoever takes that for a zero among them and adds 1e-4 to
        # each makes the rarest implied priors five times too large, and thinks away the rare classes' items
        tail, old_tail = np.geomspace(1.0, 1 / 256, 1000), np.geomspace(1.0, 0.01, 1000)
        log_scores, _, _ = world(classes=1000, items=4000, apart=1.5, law=ClassPrior.uniform(1000))
        log_scores += np.log(tail) - np.log(old_tail)
        implied, rare = ClassPrior.from_weights(tail), slice(900, 1000)
        assert np.prod(implied.probs) == 0.0
        smoothed = ClassPrior.from_weights(implied.probs + 1e-4)
        ours, trapped = (em_prior(log_scores, prior, pseudo_counts=0).prior for prior in (implied, smoothed))
        assert ours.probs[rare].sum() == pytest.approx(0.1, abs=0.02)
        assert trapped.probs[rare].sum() < 0.05

    def test_of_a_prior_far_below_what_float32_holds_is_found(self):
        # class 1 has an implied prior of 1e-60 and half of the items
        implied = ClassPrior(np.array([1.0, 1e-60]))
        items = np.array([[30.0, -30.0], [-30.0, 30.0]]) + implied.log_probs
        np.testing.assert_allclose(em_prior(items, implied, pseudo_counts=0).prior.probs, [0.5, 0.5], atol=1e-6)


class TestPseudoCounts:
    def test_shrink_towards_the_uniform_law(self):
        log_scores, tail, _ = world(items=100)
        uniform = ClassPrior.uniform(10)
        distances = [
            total_variation(em_prior(log_scores, tail, pseudo_counts=count).prior, uniform)
            for count in (0, 0.5, 5, 500)
        ]
        assert distances == sorted(distances, reverse=True)
        assert distances[-1] < 0.02

    def test_keep_a_class_that_was_never_seen(self):
        log_scores = 60.0 * np.eye(4)[[0, 1, 2, 0]]
        result = em_prior(log_scores, ClassPrior.uniform(4))
        assert result.prior.probs[3] == pytest.approx(0.5 / 6)


class TestWhatMustNotMatter:
    @given(seed=st.integers(0, 2**16), shift=st.floats(-1e4, 1e4))
    @settings(deadline=None, max_examples=25)
    def test_a_constant_added_to_a_row(self, seed, shift):
        log_scores, tail, _ = world(items=60, seed=seed)
        shifts = np.random.default_rng(seed).normal(size=(60, 1)) * shift
        before, after = (em_prior(z, tail).prior.probs for z in (log_scores, log_scores + shifts))
        np.testing.assert_allclose(before, after, atol=1e-5)

    @given(seed=st.integers(0, 2**16))
    @settings(deadline=None, max_examples=25)
    def test_the_order_of_classes_and_items(self, seed):
        log_scores, tail, _ = world(items=80, seed=seed)
        rng = np.random.default_rng(seed)
        classes, items = rng.permutation(10), rng.permutation(80)
        moved = em_prior(log_scores[items][:, classes], ClassPrior(tail.probs[classes])).prior.probs
        np.testing.assert_allclose(moved, em_prior(log_scores, tail).prior.probs[classes], atol=2e-5)

    def test_where_it_starts(self):
        log_scores, tail, _ = world()
        starts = [ClassPrior.uniform(10), ClassPrior.from_weights(np.geomspace(1e-6, 1, 10))]
        laws = [em_prior(log_scores, tail, start=start, tolerance=1e-7).prior for start in starts]
        assert total_variation(*laws) < 1e-4

    def test_an_item_that_weighs_two_is_an_item_seen_twice(self):
        log_scores, tail, _ = world(items=50)
        weights = np.where(np.arange(50) < 10, 2.0, 1.0)
        twice = np.concatenate([log_scores, log_scores[:10]])
        weighted = em_prior(log_scores, tail, weights=weights, tolerance=1e-7).prior.probs
        np.testing.assert_allclose(weighted, em_prior(twice, tail, tolerance=1e-7).prior.probs, atol=1e-5)

    @pytest.mark.parametrize("unit", [1e39, 1e-46, 1e-150])
    def test_the_unit_of_weights_and_pseudo_counts(self, unit):
        log_scores, tail, _ = world(items=60)
        weights = np.random.default_rng(0).exponential(size=60)
        plain = em_prior(log_scores, tail, weights=weights)
        scaled = em_prior(log_scores, tail, weights=unit * weights, pseudo_counts=0.5 * unit)
        np.testing.assert_allclose(scaled.prior.probs, plain.prior.probs, atol=1e-6)
        assert scaled.log_likelihood == pytest.approx(unit * plain.log_likelihood, rel=1e-3)

    def test_in_how_many_blocks_the_items_are_read(self, monkeypatch):
        log_scores, tail, _ = world(items=500)
        whole = em_prior(log_scores, tail).prior.probs
        monkeypatch.setattr("models.calibration.em.BLOCK_BYTES", 4 * 10 * 7)
        np.testing.assert_allclose(em_prior(log_scores, tail).prior.probs, whole, atol=1e-5)


class TestExtremes:
    @pytest.mark.parametrize("size", [1e4, 1e30])
    def test_huge_logits_are_sure_decisions(self, size):
        log_scores = size * np.eye(3)[[0, 0, 1]]
        result = em_prior(log_scores, ClassPrior.uniform(3), pseudo_counts=0)
        np.testing.assert_allclose(result.prior.probs, [2 / 3, 1 / 3, 0], atol=1e-6)

    def test_one_item_of_two_classes(self):
        # maximises log(0.2 + 0.6 q) + (log q + log(1 - q)) / 2, with q the share of class 0: by bisection
        log_scores = np.log([[0.8, 0.2]])
        low, high = 0.0, 1.0
        for _ in range(60):
            q = (low + high) / 2
            slope = 0.6 / (0.2 + 0.6 * q) + 0.5 / q - 0.5 / (1 - q)
            low, high = (q, high) if slope > 0 else (low, q)
        result = em_prior(log_scores, ClassPrior.uniform(2), tolerance=1e-7)
        assert result.prior.probs[0] == pytest.approx(q, abs=1e-5)

    def test_8142_classes(self):
        log_scores = np.full((50, 8142), -20.0)
        log_scores[np.arange(50), np.arange(50)] = 20.0
        result = em_prior(log_scores, ClassPrior.from_weights(np.geomspace(1, 1e-5, 8142)), pseudo_counts=0.0)
        assert result.prior.probs[:50].sum() > 0.999

    def test_the_likelihood_is_that_above_the_implied_prior(self):
        log_scores, tail, _ = world(items=200)
        result = em_prior(log_scores, tail)
        by_hand = np.log((softmax(log_scores) / tail.probs) @ result.prior.probs).sum()
        assert result.log_likelihood == pytest.approx(by_hand, abs=0.01)
        assert result.log_likelihood > 0

    def test_a_cap_on_the_steps_is_told(self):
        log_scores, tail, _ = world(apart=0.3)
        assert not em_prior(log_scores, tail, max_steps=1).converged

    @pytest.mark.parametrize("steps", range(1, 6))
    def test_a_cap_on_the_steps_is_kept(self, steps):
        log_scores, tail, _ = world(apart=0.3)
        assert em_prior(log_scores, tail, max_steps=steps).iterations <= steps


class TestManyResamplesAtOnce:
    def test_each_column_is_the_estimate_of_its_weights(self):
        log_scores, tail, _ = world(items=300)
        weights = np.random.default_rng(0).exponential(size=(300, 4))
        batch = em_batch(
            LikelihoodRatios.of(log_scores, tail),
            weights,
            np.repeat(tail.probs[:, None], 4, axis=1),
            pseudo_counts=np.full((10, 4), 0.5),
        )
        for column in range(4):
            alone = em_prior(log_scores, tail, weights=weights[:, column]).prior.probs
            np.testing.assert_allclose(batch.priors[:, column], alone, atol=1e-4)

    def test_a_factor_of_a_class_is_an_offset_on_its_logit(self):
        log_scores, tail, _ = world(items=300)
        offsets = np.random.default_rng(1).normal(size=10)
        batch = em_batch(
            LikelihoodRatios.of(log_scores, tail),
            np.ones((300, 1)),
            tail.probs[:, None],
            pseudo_counts=np.full((10, 1), 0.5),
            log_factors=offsets[:, None],
        )
        np.testing.assert_allclose(batch.priors[:, 0], em_prior(log_scores + offsets, tail).prior.probs, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("log_scores", "implied", "settings_", "error", "words"),
        [
            (np.zeros((3, 4)), ClassPrior.uniform(3), {}, ShapeMismatch, r"\(N, 3\)"),
            (np.zeros((0, 3)), ClassPrior.uniform(3), {}, NotEnoughData, "got none"),
            (np.full((2, 3), np.nan), ClassPrior.uniform(3), {}, InvalidLogits, "row 0"),
            (np.array([[0.0, -np.inf]]), ClassPrior.uniform(2), {}, InvalidLogits, "logits"),
            (np.zeros((2, 2)), ClassPrior(np.array([1.0, 0.0])), {}, InvalidPrior, "class 1 has 0"),
            (
                np.zeros((2, 2)),
                ClassPrior.uniform(2),
                {"start": ClassPrior(np.array([1.0, 0.0]))},
                InvalidPrior,
                "start",
            ),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"weights": np.ones(3)}, ShapeMismatch, "weights"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"weights": np.array([1.0, -1.0])}, CalibrationError, "negative"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"pseudo_counts": -1.0}, CalibrationError, "pseudo_counts"),
            (np.array([["a", "b"]]), ClassPrior.uniform(2), {}, InvalidLogits, "Convert it to numbers"),
            (np.array([[None, 1.0]]), ClassPrior.uniform(2), {}, InvalidLogits, "Convert it to numbers"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"weights": ["1", "2"]}, CalibrationError, "weights"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"weights": np.zeros(2)}, CalibrationError, "weights"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"pseudo_counts": np.ones(3)}, ShapeMismatch, "pseudo_counts"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"pseudo_counts": "1"}, CalibrationError, "pseudo_counts"),
            (np.zeros((2, 2)), ClassPrior.uniform(2), {"tolerance": 0.0}, CalibrationError, "tolerance"),
        ],
    )
    def test_say_what_is_wrong(self, log_scores, implied, settings_, error, words):
        with pytest.raises(error, match=words):
            em_prior(log_scores, implied, **settings_)
