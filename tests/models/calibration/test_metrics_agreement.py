"""Our figures against those of well-kept libraries and of plain definitions, on random and on real scores."""

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, f1_score, log_loss

from models.calibration.metrics import evaluate, expected_calibration_error, risk_coverage_area, target_weights
from models.calibration.metrics_detail import brier_score, macro_f1
from models.calibration.types import ClassPrior, RawLogits


def drawn(seed=0, *, items=1500, classes=20):
    """Scores of a tail, too bold for the labels drawn under them."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(items, classes)) * 1.5 - np.linspace(0, 3, classes)
    scores, bold = RawLogits(logits).scores(), RawLogits(1.7 * logits).scores()
    return bold, np.minimum((rng.uniform(size=(items, 1)) > scores.cumsum(axis=1)).sum(axis=1), classes - 1)


def real():
    """Test-set outputs of two public classifiers, where EQUIPOISE_DATA names a folder that holds them."""
    folder = Path(os.environ.get("EQUIPOISE_DATA", "")) / "probs"
    for name in ("cifar100_wideresnet_16_4", "cifar10_lenet5"):
        if "EQUIPOISE_DATA" not in os.environ or not (folder / f"{name}.npz").exists():
            pytest.skip("EQUIPOISE_DATA names no folder with probs/")
        arrays = np.load(folder / f"{name}.npz")
        scores = arrays["probs"].astype(np.float64)
        yield scores / scores.sum(axis=1, keepdims=True), arrays["labels"].astype(np.int64)


@pytest.fixture(scope="module")
def netcal_error():
    """netcal's ECE by its own binning; importing it takes seconds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metrics = pytest.importorskip("netcal.metrics")
    return lambda scores, labels, **options: float(metrics.ECE(15, **options).measure(scores, labels))


class TestNetcal:
    @pytest.mark.parametrize("seed", range(5))
    def test_calibration_error_of_equal_width(self, netcal_error, seed):
        # the same bins; theirs are closed below instead of above, which random scores never meet
        scores, labels = drawn(seed)
        assert expected_calibration_error(scores, labels) == pytest.approx(netcal_error(scores, labels), abs=1e-12)

    @pytest.mark.parametrize("seed", range(5))
    def test_calibration_error_of_equal_mass(self, netcal_error, seed):
        # theirs are cut at interpolated quantiles: an item or so a bin lies on the other side
        scores, labels = drawn(seed)
        error = expected_calibration_error(scores, labels, binning="mass")
        assert error == pytest.approx(netcal_error(scores, labels, equal_intervals=False), abs=3e-3)

    def test_on_real_scores(self, netcal_error):
        for scores, labels in real():
            assert expected_calibration_error(scores, labels) == pytest.approx(netcal_error(scores, labels), abs=1e-9)
            error = expected_calibration_error(scores, labels, binning="mass")
            assert error == pytest.approx(netcal_error(scores, labels, equal_intervals=False), abs=1e-3)


class TestScikitLearn:
    @pytest.mark.parametrize("classes", [2, 20])
    def test_weighted_to_a_target(self, classes):
        scores, labels = drawn(classes=classes)
        target = ClassPrior.from_weights(np.arange(1, classes + 1))
        weights, every = target_weights(labels, target), np.arange(classes)
        found = evaluate(scores, labels, class_counts=np.full(classes, 50), target=target, resamples=2)
        decisions = scores.argmax(axis=1)
        expected = {
            "accuracy": accuracy_score(labels, decisions, sample_weight=weights),
            "balanced_accuracy": balanced_accuracy_score(labels, decisions),
            "nll": log_loss(labels, scores, sample_weight=weights, labels=every),
            "brier": brier_score_loss(labels, scores, sample_weight=weights, labels=every, scale_by_half=False),
        }
        assert {name: getattr(found, name).value for name in expected} == pytest.approx(expected, rel=1e-9)
        f1 = f1_score(labels, decisions, average="macro", sample_weight=weights, zero_division=0.0)
        assert macro_f1(scores, labels, weights=weights) == pytest.approx(f1, rel=1e-9)

    def test_on_real_scores(self):
        for scores, labels in real():
            every = np.arange(scores.shape[1])
            found = evaluate(scores, labels, class_counts=every + 1, target=ClassPrior.uniform(every.size), resamples=2)
            assert found.nll.value == pytest.approx(log_loss(labels, scores, labels=every), rel=1e-9)
            twin = brier_score_loss(labels, scores, labels=every, scale_by_half=False)
            assert found.brier.value == pytest.approx(twin, rel=1e-9)
            assert brier_score(scores, labels) == pytest.approx(twin, rel=1e-9)


class TestPlainDefinitions:
    @pytest.mark.parametrize("steps", [None, 10])
    def test_area_under_the_risk_coverage_curve_item_by_item(self, steps):
        scores, labels = drawn(items=200)
        if steps:  # ties
            scores = np.random.default_rng(0).multinomial(steps, scores) / steps
        weights = target_weights(labels, ClassPrior.from_weights(np.arange(1, 21)))
        confidence, wrong = scores.max(axis=1), scores.argmax(axis=1) != labels
        area = 0.0
        for own, weight in zip(confidence, weights, strict=True):
            accepted = confidence >= own
            area += weight * (weights * wrong)[accepted].sum() / weights[accepted].sum()
        found = risk_coverage_area(scores, labels, weights=weights)
        assert found == pytest.approx(area / weights.sum(), rel=1e-12)

    def test_area_is_the_error_rate_where_confidence_says_nothing_and_least_where_it_says_all(self):
        scores = np.tile([[0.7, 0.3]], (100, 1))
        labels = np.repeat([0, 1], [80, 20])
        assert risk_coverage_area(scores, labels) == pytest.approx(0.2)
        told = np.where(labels[:, None] == 0, [[0.9, 0.1]], [[0.6, 0.4]])
        assert risk_coverage_area(told, labels) == pytest.approx(0.2 * 0.2)
