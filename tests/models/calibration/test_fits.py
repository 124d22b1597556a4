import tracemalloc

import numpy as np
import pytest

from models.calibration.affine import Anchor, balanced_nll, balanced_weights, fit_affine, item_nll, penalised_nll
from models.calibration.errors import FitFailed, InvalidCalibration, LeakedSplit, NotEnoughData, ShapeMismatch
from models.calibration.implied_prior import measure_implied_prior
from models.calibration.marc import fit_held_out, fold_into_linear
from models.calibration.prior import Ledger, total_variation
from models.calibration.temperature import (
    closed_form_without_data,
    fit_bcts,
    fit_closed_form,
    fit_temperature,
    fit_vector_scaling,
)
from models.calibration.types import Calibration, ClassPrior, LogitSet, RawLogits, softmax

FITS = [fit_temperature, fit_closed_form, fit_bcts, fit_held_out, fit_vector_scaling]
PER_CLASS = FITS[2:]


class TestClosedForm:
    def test_takes_the_prior_out_and_finds_the_temperature(self, simulate):
        sample = simulate(per_class=500, confidence=2.5)
        calibration, report = fit_closed_form(sample.logit_set, sample.ledger)
        assert calibration.parameters["temperature"] == pytest.approx(2.5, rel=0.1)
        uniform = ClassPrior.uniform(10)
        scores = calibration.debias(sample.logit_set.raw).adjust(uniform).scores()
        assert np.abs(scores - sample.posterior(uniform)).mean() < 0.01
        assert report.warnings == ()

    def test_adjusting_to_the_raw_prior_is_the_softmax_at_that_temperature(self, simulate):
        sample = simulate(confidence=2.0)
        calibration, _ = fit_closed_form(sample.logit_set, sample.ledger)
        raw = sample.logit_set.raw
        adjusted = calibration.debias(raw).adjust(sample.ledger.implied_prior).scores()
        np.testing.assert_allclose(adjusted, softmax(raw.values / calibration.parameters["temperature"]), atol=1e-6)

    def test_a_balanced_softmax_head_is_not_debiased_twice(self, simulate):
        sample = simulate(trained_with="balanced-softmax")
        calibration, _ = fit_closed_form(sample.logit_set, sample.ledger)
        assert np.ptp(calibration.offset) < 1e-12

    def test_a_small_set_without_an_error_does_not_make_the_scores_extreme(self):
        # three right answers for each class: the likelihood alone would take T to 0 and every score to 0 or 1
        labels = np.repeat(np.arange(3), 3)
        right = LogitSet(logits=4 * np.eye(3)[labels], labels=labels, split="calibration")
        ledger = Ledger.by_rule("balanced-sampling", [5, 5, 5])
        for fit in FITS[:4]:  # not vector scaling, which has no minimum here
            calibration, _ = fit(right, ledger)
            wrong_classes = np.sort(calibration.debias(right.raw).scores(), axis=1)[:, :2]
            assert wrong_classes.min() > 1e-4

    def test_the_temperature_at_its_limit_is_a_warning(self, simulate):
        sample = simulate()
        noise = np.random.default_rng(1).normal(size=sample.logit_set.logits.shape) * 50
        useless = LogitSet(logits=noise, labels=sample.logit_set.labels, split="calibration")
        assert "limit" in fit_closed_form(useless, sample.ledger)[1].warnings[0]

    def test_examples_of_common_classes_alone_do_not_make_it_too_sure(self, simulate):
        # that the others have no example says nothing of them: they leave the softmax while T is sought
        sample = simulate(per_class=300, confidence=2.0)
        common = sample.logit_set.subset(np.flatnonzero(sample.logit_set.labels < 4))
        calibration, report = fit_closed_form(common, sample.ledger)
        assert calibration.parameters["temperature"] == pytest.approx(2.0, rel=0.15)
        assert "6 of 10 classes have no labelled example" in report.warnings[0]
        four = LogitSet(logits=common.logits[:, :4], labels=common.labels, split="calibration")
        alone, _ = fit_closed_form(four, Ledger.by_rule("cross-entropy", sample.ledger.class_counts[:4]))
        assert calibration.parameters["temperature"] == pytest.approx(alone.parameters["temperature"], rel=1e-6)

    def test_examples_of_one_class_leave_the_temperature(self, simulate):
        sample = simulate(confidence=2.0)
        calibration, report = fit_closed_form(sample.logit_set.subset(np.arange(50)), sample.ledger)
        assert calibration.parameters["temperature"] == 1
        assert "the temperature stays 1" in report.warnings[0]

    def test_without_data_only_the_prior_goes(self):
        ledger = Ledger.by_rule("cross-entropy", [3, 1])
        scores = closed_form_without_data(ledger).debias(RawLogits(np.log([[0.75, 0.25]]))).scores()
        np.testing.assert_allclose(scores, [[0.5, 0.5]])


class TestPerClassFits:
    @pytest.mark.parametrize("fit", [fit_bcts, fit_held_out])
    def test_repair_a_class_whose_logit_is_off_where_the_closed_form_cannot(self, simulate, fit):
        sample = simulate(per_class=200)
        logits = sample.logit_set.logits.copy()
        logits[:, 3] += 2.0
        broken = LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration")
        closed, _ = fit_closed_form(broken, sample.ledger)
        fitted, _ = fit(broken, sample.ledger)
        gain = balanced_nll(closed.debias(broken.raw).values, broken) - balanced_nll(
            fitted.debias(broken.raw).values, broken
        )
        assert gain > 0.05
        assert fitted.offset[3] - closed.offset[3] < -1.0

    def test_marc_repairs_a_class_whose_scale_is_off(self, simulate):
        sample = simulate(per_class=500)
        logits = sample.logit_set.logits.copy()
        logits[:, 0] = 3 * logits[:, 0]
        broken = LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration")
        marc, _ = fit_held_out(broken, sample.ledger)
        bcts, _ = fit_bcts(broken, sample.ledger)
        with_scales, without = (balanced_nll(fit.debias(broken.raw).values, broken) for fit in (marc, bcts))
        assert with_scales < without - 0.01
        assert marc.parameters["omega"][0] < np.median(marc.parameters["omega"])

    def test_row_norms_change_the_letters_and_not_the_map(self, simulate):
        sample = simulate()
        norms = np.linspace(0.5, 3.0, 10)
        plain, _ = fit_held_out(sample.logit_set, sample.ledger)
        normed, _ = fit_held_out(sample.logit_set, sample.ledger, norms)
        np.testing.assert_array_equal(plain.offset, normed.offset)
        np.testing.assert_allclose(np.multiply(normed.parameters["beta"], norms), plain.offset)

    def test_one_example_a_class_stays_near_the_closed_form(self, simulate):
        sample = simulate(per_class=1)
        closed, _ = fit_closed_form(sample.logit_set, sample.ledger)
        marc, _ = fit_held_out(sample.logit_set, sample.ledger)
        assert np.abs(marc.offset - closed.offset).max() < 1.0

    def test_permuting_the_classes_permutes_the_fit(self, simulate):
        sample = simulate()
        order = np.random.default_rng(3).permutation(10)
        permuted = LogitSet(
            logits=sample.logit_set.logits[:, order],
            labels=np.argsort(order)[sample.logit_set.labels],
            split="calibration",
        )
        ledger = Ledger.by_rule("cross-entropy", sample.ledger.class_counts[order])
        here, _ = fit_held_out(sample.logit_set, sample.ledger)
        there, _ = fit_held_out(permuted, ledger)
        np.testing.assert_allclose(there.scale, here.scale[order], atol=1e-3)
        np.testing.assert_allclose(there.offset, here.offset[order], atol=1e-3)

    def test_a_class_that_speaks_against_itself_is_silenced_with_a_warning(self, simulate):
        sample = simulate(per_class=300)
        logits = sample.logit_set.logits.copy()
        logits[:, 0] = -logits[:, 0]
        mirrored = LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration")
        marc, report = fit_held_out(mirrored, sample.ledger)
        assert "omega ended at 0 for 1 classes (first 0)" in report.warnings[0]
        assert marc.scale[0] == 0
        assert (marc.scale[1:] > 0).all()

    @pytest.mark.parametrize("fit", PER_CLASS[:2])
    def test_four_examples_of_a_class_are_few_and_five_are_not(self, simulate, fit):
        few, enough = simulate(per_class=4), simulate(per_class=5)
        assert "a class with 4" in fit(few.logit_set, few.ledger)[1].warnings[0]
        assert fit(enough.logit_set, enough.ledger)[1].warnings == ()

    @pytest.mark.parametrize("fit", PER_CLASS)
    def test_refuse_a_set_that_lacks_a_class(self, simulate, fit):
        sample = simulate(per_class=30)
        lacking = sample.logit_set.subset(np.flatnonzero(sample.logit_set.labels != 4))
        with pytest.raises(NotEnoughData, match=r"1 of 10 have none \(first class 4\)"):
            fit(lacking, sample.ledger)

    def test_leave_a_uniform_prior_behind(self, simulate):
        # what the fits claim, measured on examples they did not see
        sample, fresh = simulate(per_class=400, confidence=2.0), simulate(per_class=400, confidence=2.0, seed=0)
        for fit in PER_CLASS:
            calibration, _ = fit(sample.logit_set, sample.ledger)
            debiased = calibration.debias(fresh.logit_set.raw).values
            measured = measure_implied_prior(LogitSet(logits=debiased, labels=fresh.logit_set.labels, split="test"))
            assert total_variation(measured, calibration.implied_prior) < 0.02


class TestTemperature:
    def test_leaves_the_classifiers_own_prior_and_gives_the_closed_forms_scores_under_a_target(self, simulate):
        sample = simulate(confidence=2.0)
        plain, report = fit_temperature(sample.logit_set, sample.ledger)
        closed, _ = fit_closed_form(sample.logit_set, sample.ledger)
        raw, target = sample.logit_set.raw, ClassPrior.from_weights(np.arange(1, 11))
        np.testing.assert_allclose(
            plain.debias(raw).adjust(target).scores(), closed.debias(raw).adjust(target).scores(), atol=1e-12
        )
        own = plain.debias(raw).scores()
        np.testing.assert_allclose(own, softmax(raw.values / plain.parameters["temperature"]), atol=1e-12)
        assert report.method == plain.method == "temperature"


class TestVectorScaling:
    def test_is_marc_without_the_pull(self, simulate):
        sample = simulate(per_class=1000)
        free, report = fit_vector_scaling(sample.logit_set, sample.ledger)
        pulled, pulled_report = fit_held_out(sample.logit_set, sample.ledger)
        assert report.objective < pulled_report.objective
        np.testing.assert_allclose(free.scale, pulled.scale, atol=0.03)

    def test_says_so_where_the_examples_have_no_minimum(self):
        labels = np.repeat(np.arange(3), 5)
        separated = LogitSet(logits=4 * np.eye(3)[labels], labels=labels, split="calibration")
        with pytest.raises(FitFailed, match="separate"):
            fit_vector_scaling(separated, Ledger.by_rule("balanced-sampling", [5, 5, 5]))


class TestTheCoreOfEveryFit:
    def test_classes_without_an_example_take_no_weight_from_the_others(self):
        lacking = LogitSet(logits=np.zeros((3, 4)), labels=np.array([0, 0, 2]), split="calibration")
        np.testing.assert_allclose(balanced_weights(lacking), [0.25, 0.25, 0.5])

    def test_the_pull_on_the_scales_does_not_depend_on_the_unit_of_the_logits(self, simulate):
        sample = simulate(per_class=5)
        tenfold = LogitSet(logits=10 * sample.logit_set.logits, labels=sample.logit_set.labels, split="calibration")
        offset = -sample.ledger.implied_prior.log_probs
        here = fit_affine(sample.logit_set, anchor=Anchor(scale=0.8, offset=offset), scale_per_class=True)
        there = fit_affine(tenfold, anchor=Anchor(scale=0.08, offset=offset), scale_per_class=True)
        np.testing.assert_allclose(10 * there.scale, here.scale, atol=1e-4)
        np.testing.assert_allclose(there.offset, here.offset, atol=1e-3)

    def test_a_head_that_is_not_finite_is_not_folded(self):
        with pytest.raises(InvalidCalibration, match="finite"):
            fold_into_linear(Calibration.identity(ClassPrior.uniform(2)), [[1.0], [np.nan]], [0.0, 0.0])


class TestLargeSets:
    def test_rows_in_many_blocks_count_like_rows_in_one(self, simulate, monkeypatch):
        sample = simulate(per_class=37)
        whole, _ = fit_held_out(sample.logit_set, sample.ledger)
        monkeypatch.setattr("models.calibration.affine.BLOCK", 70)  # 7 rows; 370 do not divide by them
        pieces, _ = fit_held_out(sample.logit_set, sample.ledger)
        np.testing.assert_allclose(pieces.offset, whole.offset, atol=1e-4)
        np.testing.assert_allclose(pieces.scale, whole.scale, atol=1e-4)

    def test_the_memory_beside_the_logits_is_bounded(self, simulate):
        sample = simulate(classes=200, per_class=100)  # 32 MB of logits
        tracemalloc.start()
        fit_held_out(sample.logit_set, sample.ledger)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12e6

    def test_losses_of_items_are_those_of_the_softmax(self, simulate):
        sample = simulate(per_class=5)
        rows = np.arange(50)
        by_softmax = -np.log(softmax(2 * sample.logit_set.logits + 1)[rows, sample.logit_set.labels])
        np.testing.assert_allclose(item_nll(sample.logit_set.logits, sample.logit_set, 2.0, 1.0), by_softmax)

    @pytest.mark.parametrize("num_scales", [1, 4])
    def test_the_gradient_is_the_derivative_of_the_objective(self, simulate, num_scales):
        logit_set = simulate(classes=4, per_class=7).logit_set
        ones = np.ones(num_scales + 4)
        weights = balanced_weights(logit_set)
        objective = penalised_nll(logit_set, weights=weights, anchor=ones, deviations=0.5 * ones)
        theta = np.random.default_rng(0).normal(size=num_scales + 4)
        steps = 1e-6 * np.eye(theta.size)
        numeric = [(objective(theta + step)[0] - objective(theta - step)[0]) / 2e-6 for step in steps]
        np.testing.assert_allclose(objective(theta)[1], numeric, atol=1e-7)


class TestEveryFit:
    @pytest.mark.parametrize("fit", FITS)
    def test_refuses_training_data(self, simulate, fit):
        sample = simulate()
        seen = LogitSet(logits=sample.logit_set.logits, labels=sample.logit_set.labels, split="train")
        with pytest.raises(LeakedSplit, match="never saw"):
            fit(seen, sample.ledger)

    @pytest.mark.parametrize("fit", FITS)
    def test_refuses_an_empty_set_and_other_classes(self, simulate, fit):
        sample = simulate()
        with pytest.raises(NotEnoughData):
            fit(sample.logit_set.subset(np.array([], dtype=int)), sample.ledger)
        with pytest.raises(ShapeMismatch, match="10 classes"):
            fit(sample.logit_set, Ledger.by_rule("cross-entropy", [1, 2, 3]))

    @pytest.mark.parametrize("fit", FITS)
    def test_says_what_it_was_fitted_on(self, simulate, fit):
        sample = simulate(per_class=7)
        calibration, report = fit(sample.logit_set, sample.ledger)
        assert report.num_items == calibration.provenance["num_items"] == 70
        assert calibration.provenance["drawn"] == "simulated"

    def test_a_fit_that_does_not_converge_says_why(self, simulate):
        sample = simulate(per_class=5)
        with pytest.raises(FitFailed, match="1 steps"):
            fit_affine(
                sample.logit_set, anchor=Anchor(scale=5.0, offset=np.zeros(10)), scale_per_class=True, max_steps=1
            )

    def test_row_norms_are_positive_and_one_a_class(self, simulate):
        sample = simulate()
        with pytest.raises(ShapeMismatch):
            fit_held_out(sample.logit_set, sample.ledger, [1.0, 2.0])
        with pytest.raises(InvalidCalibration, match="positive"):
            fit_held_out(sample.logit_set, sample.ledger, [0.0] * 10)


class TestFolding:
    def test_the_folded_head_gives_the_debiased_logits(self):
        rng = np.random.default_rng(0)
        features, weight, bias = rng.normal(size=(6, 5)), rng.normal(size=(4, 5)), rng.normal(size=4)
        calibration = Calibration(
            scale=rng.normal(size=4), offset=rng.normal(size=4), implied_prior=ClassPrior.uniform(4), method="marc"
        )
        folded_weight, folded_bias = fold_into_linear(calibration, weight, bias)
        debiased = calibration.debias(RawLogits(features @ weight.T + bias)).values
        np.testing.assert_allclose(features @ folded_weight.T + folded_bias, debiased, atol=1e-12)

    def test_refuses_a_head_of_another_width(self):
        with pytest.raises(ShapeMismatch, match="head"):
            fold_into_linear(Calibration.identity(ClassPrior.uniform(3)), np.zeros((2, 5)), np.zeros(2))
