import numpy as np
import pytest

from models.calibration.affine import balanced_nll, fit_affine, penalised_nll
from models.calibration.errors import FitFailed, InvalidCalibration, LeakedSplit, NotEnoughData, ShapeMismatch
from models.calibration.marc import fit_held_out, fold_into_linear
from models.calibration.prior import Ledger
from models.calibration.temperature import closed_form_without_data, fit_bcts, fit_closed_form
from models.calibration.types import Calibration, ClassPrior, LogitSet, RawLogits, softmax

FITS = [fit_closed_form, fit_bcts, fit_held_out]


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
        for fit in FITS:
            calibration, _ = fit(right, ledger)
            wrong_classes = np.sort(calibration.debias(right.raw).scores(), axis=1)[:, :2]
            assert wrong_classes.min() > 1e-4

    def test_the_temperature_at_its_limit_is_a_warning(self, simulate):
        sample = simulate()
        noise = np.random.default_rng(1).normal(size=sample.logit_set.logits.shape) * 50
        useless = LogitSet(logits=noise, labels=sample.logit_set.labels, split="calibration")
        assert "limit" in fit_closed_form(useless, sample.ledger)[1].warnings[0]

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
        marc, report = fit_held_out(broken, sample.ledger)
        bcts, _ = fit_bcts(broken, sample.ledger)
        assert report.objective < balanced_nll(bcts.debias(broken.raw).values, broken) - 0.02
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

    def test_a_class_that_speaks_against_itself_is_a_warning(self, simulate):
        sample = simulate(per_class=300)
        logits = sample.logit_set.logits.copy()
        logits[:, 0] = -logits[:, 0]
        mirrored = LogitSet(logits=logits, labels=sample.logit_set.labels, split="calibration")
        assert "omega is negative" in fit_held_out(mirrored, sample.ledger)[1].warnings[0]

    @pytest.mark.parametrize("num_scales", [1, 4])
    def test_the_gradient_is_the_derivative_of_the_objective(self, simulate, num_scales):
        logit_set = simulate(classes=4, per_class=7).logit_set
        objective = penalised_nll(logit_set, anchor=np.ones(num_scales + 4), num_scales=num_scales)
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
                sample.logit_set, anchor_scale=5.0, anchor_offset=np.zeros(10), scale_per_class=True, max_steps=1
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
