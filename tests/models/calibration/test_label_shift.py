from functools import partial

import numpy as np
import pytest

from models.calibration import label_shift
from models.calibration.affine import OFFSET_SD
from models.calibration.em import em_prior
from models.calibration.errors import CalibrationError, LeakedSplit, NotEnoughData, ShapeMismatch
from models.calibration.label_shift import estimate_law, measured_at_uniform, propose_prior
from models.calibration.prior import Ledger, total_variation
from models.calibration.temperature import fit_bcts
from models.calibration.traffic import Traffic
from models.calibration.types import ClassPrior, DebiasedLogits, LogitSet, RawLogits

UNIFORM = ClassPrior.uniform(10)
TAIL = ClassPrior.from_weights(np.geomspace(1.0, 0.05, 10))


class World:
    """A long-tailed head whose logits are twice too large and off by an amount of each class."""

    def __init__(self, *, classes=10, apart=0.9, seed=0):
        self.rng = np.random.default_rng(seed)
        self.centres = self.rng.normal(size=(classes, 8)) * apart
        self.counts = np.maximum(np.geomspace(500, 5, classes).astype(int), 1)
        self.off = self.rng.normal(size=classes) * 0.3
        self.ledger = Ledger.by_rule("cross-entropy", self.counts)

    def logits(self, labels):
        points = self.centres[labels] + self.rng.normal(size=(labels.size, 8))
        log_likelihood = points @ self.centres.T - 0.5 * (self.centres**2).sum(axis=1)
        return 2.0 * (log_likelihood + np.log(self.counts) + self.off)

    def traffic(self, law, items):
        return RawLogits(self.logits(self.rng.choice(law.num_classes, items, p=law.probs)))

    def calibration_set(self, per_class, split="calibration"):
        labels = np.repeat(np.arange(len(self.centres)), per_class)
        return LogitSet(logits=self.logits(labels), labels=labels, split=split)


class TestTheProposal:
    def test_finds_a_shift_and_says_accept(self):
        world = World()
        proposal = propose_prior(world.traffic(TAIL, 3000), world.calibration_set(100), world.ledger, present=UNIFORM)
        assert proposal.recommended
        assert proposal.proposed is proposal.estimate
        assert total_variation(proposal.estimate, TAIL) < 0.08
        assert total_variation(proposal.cross_check, TAIL) < 0.15
        assert proposal.summary.startswith("Accept: the class law has shifted")
        assert proposal.warnings == ()

    @pytest.mark.parametrize("present", [UNIFORM, TAIL], ids=["uniform", "tail"])
    def test_without_a_shift_keeps_the_present_prior_and_says_so(self, present):
        world = World()
        proposal = propose_prior(world.traffic(present, 1000), world.calibration_set(50), world.ledger, present=present)
        assert not proposal.recommended
        assert proposal.proposed is present
        assert "no shift was found" in proposal.summary

    def test_the_training_law_is_a_shift_from_a_uniform_prior_and_not_from_itself(self):
        world = World()
        calibration_set, law = world.calibration_set(100), world.ledger.training_prior
        traffic = world.traffic(law, 3000)
        assert propose_prior(traffic, calibration_set, world.ledger, present=UNIFORM).recommended
        assert not propose_prior(traffic, calibration_set, world.ledger, present=law).recommended

    def test_offsets_and_a_temperature_that_the_ledger_does_not_know_are_taken_out_first(self):
        world = World()
        traffic, calibration_set = world.traffic(TAIL, 20_000), world.calibration_set(400)
        found = propose_prior(traffic, calibration_set, world.ledger, present=UNIFORM, resamples=2)
        assert found.calibration.method == "bcts"
        assert total_variation(found.estimate, TAIL) < 0.03

    def test_the_calibration_set_may_follow_any_law(self):
        world = World()
        labels = world.rng.choice(10, 2000, p=TAIL.probs)
        tailed = LogitSet(logits=world.logits(labels), labels=labels, split="calibration")
        found = propose_prior(world.traffic(UNIFORM, 3000), tailed, world.ledger, present=TAIL)
        assert found.recommended
        assert total_variation(found.estimate, UNIFORM) < 0.08

    def test_traffic_gives_the_proposal_of_its_sample(self):
        world = World()
        raw, calibration_set = world.traffic(TAIL, 900), world.calibration_set(20)
        traffic = Traffic.none_yet("m", 10, capacity=600).add(raw, np.random.default_rng(0))
        by_traffic, by_rows = (
            propose_prior(seen, calibration_set, world.ledger, present=UNIFORM) for seen in (traffic, traffic.sample)
        )
        np.testing.assert_array_equal(by_traffic.estimate.probs, by_rows.estimate.probs)
        assert (by_traffic.items, by_traffic.items_seen) == (600, 900)
        assert by_rows.items_seen == 600

    def test_two_calls_agree_to_the_last_digit(self):
        world = World()
        arguments = (world.traffic(TAIL, 600), world.calibration_set(20), world.ledger)
        first, second = (propose_prior(*arguments, present=UNIFORM) for _ in range(2))
        np.testing.assert_array_equal(first.low, second.low)
        assert first.tv_half_width == second.tv_half_width

    def test_permuted_classes_give_the_permuted_estimate(self):
        world = World()
        raw, calibration_set = world.traffic(TAIL, 600), world.calibration_set(20)
        order = np.random.default_rng(3).permutation(10)
        moved_set = LogitSet(
            logits=calibration_set.logits[:, order], labels=order.argsort()[calibration_set.labels], split="calibration"
        )
        straight = propose_prior(raw, calibration_set, world.ledger, present=UNIFORM, resamples=2).estimate.probs
        ledger = Ledger.by_rule("cross-entropy", world.counts[order])
        moved = propose_prior(RawLogits(raw.values[:, order]), moved_set, ledger, present=UNIFORM, resamples=2)
        np.testing.assert_allclose(moved.estimate.probs, straight[order], atol=1e-3)

    def test_two_classes_and_a_single_item(self):
        labels = np.array([0] * 10 + [1] * 10)
        logits = np.random.default_rng(0).normal(size=(20, 2)) + 2 * np.eye(2)[labels]
        calibration_set = LogitSet(logits=logits, labels=labels, split="calibration")
        ledger = Ledger.by_rule("cross-entropy", [9, 3])
        item = RawLogits(np.array([[1.0, -1.0]]))
        proposal = propose_prior(item, calibration_set, ledger, present=ClassPrior.uniform(2), force=True)
        assert 0.5 < proposal.estimate.probs[0] < 0.8
        assert not proposal.recommended


class TestNoShift:
    def test_yields_the_uniform_law_on_the_calibration_set_itself(self):
        world = World()
        calibration_set = world.calibration_set(20)
        debiased = fit_bcts(calibration_set, world.ledger)[0].debias(calibration_set.raw)
        _, law = estimate_law(debiased, measured_at_uniform(debiased, calibration_set), spread=2.0)
        np.testing.assert_allclose(law.probs, UNIFORM.probs, atol=1e-6)

    def test_is_what_a_proposal_says_of_the_calibration_set_itself(self):
        world = World()
        calibration_set = world.calibration_set(40)
        found = propose_prior(calibration_set.raw, calibration_set, world.ledger, present=UNIFORM, resamples=2)
        np.testing.assert_allclose(found.estimate.probs, UNIFORM.probs, atol=1e-6)
        assert found.test is not None
        assert found.test.p_value > 0.99

    def test_yields_the_law_that_the_items_are_drawn_to(self):
        # the same items again, class 0 three times as often: a law of 3/12 and 1/12 each
        world = World(apart=1.5)
        calibration_set = world.calibration_set(200)
        calibration = fit_bcts(calibration_set, world.ledger)[0]
        implied = measured_at_uniform(calibration.debias(calibration_set.raw), calibration_set)
        rows = np.concatenate([np.arange(2000), np.arange(200), np.arange(200)])
        _, law = estimate_law(calibration.debias(calibration_set.subset(rows).raw), implied, spread=1.0)
        np.testing.assert_allclose(law.probs, [3 / 12] + [1 / 12] * 9, atol=0.01)

    def test_is_held_on_to_while_the_labelled_examples_are_few(self):
        # five of each class: half an item a class alone would leave a distance of 0.2, all of it noise
        distances = []
        for seed in range(5):
            world = World(seed=seed)
            traffic, calibration_set = world.traffic(UNIFORM, 3000), world.calibration_set(5)
            found = propose_prior(traffic, calibration_set, world.ledger, present=UNIFORM, resamples=2)
            distances.append(total_variation(found.estimate, UNIFORM))
        assert np.mean(distances) < 0.18


class TestTheIntervals:
    def test_hold_the_truth_about_as_often_as_they_say(self):
        # 90 % intervals of 10 classes in 40 worlds; classes of a world depend on one another, hence the wide margin
        held = []
        for seed in range(40):
            world = World(seed=seed)
            found = propose_prior(world.traffic(TAIL, 300), world.calibration_set(20), world.ledger, present=TAIL)
            held.append(np.mean((found.low <= TAIL.probs) & (TAIL.probs <= found.high)))
        assert 0.82 < np.mean(held) < 0.97

    def test_count_the_noise_of_both_samples(self):
        world = World()
        items = {size: world.traffic(TAIL, size) for size in (300, 6000)}
        labelled = {size: world.calibration_set(size) for size in (10, 400)}
        width = {
            (n, m): propose_prior(items[n], labelled[m], world.ledger, present=UNIFORM).tv_half_width
            for n in items
            for m in labelled
        }
        assert width[6000, 400] < 0.6 * width[300, 400]
        assert width[6000, 400] < 0.6 * width[6000, 10]

    def test_let_the_offsets_vary_as_much_as_the_examples_do(self):
        # the Newton step by hand; the weighted mean of a class varies by the unbiased variance over its 6 examples
        world = World()
        calibration_set = world.calibration_set(6)
        labelled = fit_bcts(calibration_set, world.ledger)[0].debias(calibration_set.raw)
        scores = labelled.scores()
        offsets, log_implied = label_shift._resampled_calibration(
            calibration_set, labelled, measured_at_uniform(labelled, calibration_set), 4000
        )
        noise = sum(np.cov(scores[calibration_set.labels == index].T) / 6 for index in range(10)) / 10**2
        curvature = np.diag(scores.mean(axis=0)) - scores.T @ scores / 60
        step = np.linalg.inv(curvature + np.eye(10) / (OFFSET_SD**2 * 60))
        np.testing.assert_allclose(offsets.var(axis=1).sum(), np.trace(step @ noise @ step), rtol=0.08)
        left = np.eye(10) - curvature @ step
        implied = np.exp(log_implied)
        np.testing.assert_allclose(implied.var(axis=1).sum(), np.trace(left @ noise @ left), rtol=0.08)

    def test_follow_the_prior_that_the_resampled_calibration_implies(self):
        # sure items, half of each class; a calibration that says class 0 four times too often halves and doubles
        sure = DebiasedLogits(50.0 * np.eye(2)[np.repeat([0, 1], 500)], ClassPrior.uniform(2))
        em, _ = estimate_law(sure, ClassPrior.uniform(2), spread=1.0)
        resampled = np.zeros((2, 20)), np.repeat(np.log([[0.8], [0.2]]), 20, axis=1)
        laws = label_shift._bootstrap(sure, ClassPrior.uniform(2), em, resampled, spread=1.0, resamples=20)
        np.testing.assert_allclose(laws.mean(axis=1), [0.2, 0.8], atol=0.02)

    def test_nine_of_ten_resampled_laws_lie_within_the_half_width(self, monkeypatch):
        drawn, bootstrap = [], label_shift._bootstrap

        def kept(*args, **settings):
            drawn.append(bootstrap(*args, **settings))
            return drawn[0]

        monkeypatch.setattr(label_shift, "_bootstrap", kept)
        world = World()
        found = propose_prior(world.traffic(TAIL, 300), world.calibration_set(20), world.ledger, present=UNIFORM)
        distances = 0.5 * np.abs(drawn[0] - found.estimate.probs[:, None]).sum(axis=0)
        assert np.mean(distances <= found.tv_half_width) == pytest.approx(0.9, abs=0.01)

    def test_do_not_say_that_a_class_not_seen_cannot_occur(self):
        world = World(apart=6.0)
        law = ClassPrior.from_weights([1.0] * 9 + [0.0])
        found = propose_prior(world.traffic(law, 300), world.calibration_set(20), world.ledger, present=UNIFORM)
        assert found.low[9] < 0.001 < found.high[9] < 0.02


class TestWarnings:
    def test_of_too_little_traffic_that_was_forced(self):
        world = World()
        raw, calibration_set = world.traffic(TAIL, 299), world.calibration_set(20)
        with pytest.raises(NotEnoughData, match=r"30 items a class on average, here 300; got 299\..*force"):
            propose_prior(raw, calibration_set, world.ledger, present=UNIFORM)
        forced = propose_prior(raw, calibration_set, world.ledger, present=UNIFORM, force=True)
        assert "forced" in forced.warnings[0]

    def test_of_classes_that_look_alike(self):
        world = World(apart=2.0)
        world.centres[7] = world.centres[2]
        found = propose_prior(world.traffic(TAIL, 600), world.calibration_set(200), world.ledger, present=UNIFORM)
        assert any("ill-conditioned" in words for words in found.warnings)
        assert any("classes 2, 7 get nearly the same scores" in words for words in found.warnings)

    def test_of_logits_that_differ_from_those_of_the_calibration_set_by_more_than_the_classes(self):
        # images of another sharpness: the traffic's logits are 2.5 times as large
        world = World()
        raw = RawLogits(2.5 * world.traffic(TAIL, 3000).values)
        found = propose_prior(raw, world.calibration_set(100), world.ledger, present=UNIFORM)
        assert any("BBSE disagrees" in words for words in found.warnings)
        assert not found.recommended
        assert "a shift of the classes alone does not explain" in found.summary

    def test_of_a_calibration_set_too_small_for_offsets(self):
        world = World()
        found = propose_prior(world.traffic(TAIL, 600), world.calibration_set(3), world.ledger, present=UNIFORM)
        assert found.calibration.method == "closed-form"
        assert any("fewer than 5 examples" in words for words in found.warnings)

    def test_of_a_class_with_one_example_that_no_shift_can_be_tested(self):
        world = World()
        found = propose_prior(world.traffic(TAIL, 600), world.calibration_set(1), world.ledger, present=UNIFORM)
        assert found.test is None
        assert not found.recommended
        assert "a single labelled example" in found.summary

    @pytest.mark.parametrize("present", [ClassPrior(np.eye(10)[3]), UNIFORM], ids=["one class", "constant logits"])
    def test_of_scores_that_do_not_vary_that_no_shift_can_be_tested(self, present):
        world = World()
        size = 0.0 if present is UNIFORM else 1.0
        whole = world.calibration_set(20)
        calibration_set = LogitSet(logits=size * whole.logits, labels=whole.labels, split="calibration")
        raw = RawLogits(size * world.traffic(TAIL, 300).values)
        found = propose_prior(raw, calibration_set, world.ledger, present=present, resamples=2)
        assert found.test is None
        assert found.proposed is present
        assert "the same for every item" in found.summary

    def test_of_an_em_that_did_not_converge_that_the_present_prior_stays(self, monkeypatch):
        monkeypatch.setattr(label_shift, "em_prior", partial(em_prior, max_steps=1))
        world = World()
        found = propose_prior(world.traffic(TAIL, 3000), world.calibration_set(100), world.ledger, present=UNIFORM)
        assert not found.recommended
        assert "EM did not converge" in found.summary
        assert any("EM had not converged after 1 steps" in words for words in found.warnings)


class TestRefusals:
    def test_a_class_without_an_example_is_named(self):
        world = World()
        whole = world.calibration_set(20)
        without = whole.subset(np.flatnonzero(whole.labels != 4))
        with pytest.raises(NotEnoughData, match="class 4 has none"):
            propose_prior(world.traffic(TAIL, 600), without, world.ledger, present=UNIFORM)

    def test_training_data_are_refused(self):
        world = World()
        with pytest.raises(LeakedSplit):
            propose_prior(world.traffic(TAIL, 600), world.calibration_set(20, "train"), world.ledger, present=UNIFORM)

    def test_other_classes_are_refused(self):
        world = World()
        with pytest.raises(ShapeMismatch, match="same classes"):
            propose_prior(
                world.traffic(TAIL, 600), world.calibration_set(20), world.ledger, present=ClassPrior.uniform(9)
            )

    def test_no_traffic_is_refused_even_by_force(self):
        world = World()
        with pytest.raises(NotEnoughData, match=r"got 0\. Wait for traffic") as refusal:
            propose_prior(
                RawLogits(np.zeros((0, 10))), world.calibration_set(20), world.ledger, present=UNIFORM, force=True
            )
        assert "force" not in str(refusal.value)

    def test_traffic_that_can_never_hold_enough_says_what_to_do(self):
        world = World()
        small = Traffic.none_yet("m", 10, capacity=299).add(world.traffic(TAIL, 600), np.random.default_rng(0))
        with pytest.raises(NotEnoughData, match=r"at most 299 rows: give the logits themselves, or a larger capacity"):
            propose_prior(small, world.calibration_set(20), world.ledger, present=UNIFORM)

    @pytest.mark.parametrize("resamples", [0, -1])
    def test_no_resample_is_refused(self, resamples):
        world = World()
        with pytest.raises(CalibrationError, match="at least one resample"):
            propose_prior(
                world.traffic(TAIL, 300), world.calibration_set(5), world.ledger, present=UNIFORM, resamples=resamples
            )
