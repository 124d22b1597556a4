import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.calibration.apply import ScoreMap
from models.calibration.errors import ShapeMismatch
from models.calibration.types import Calibration, ClassPrior, RawLogits

SKEWED = ClassPrior.from_weights([600, 30, 10, 1])
CALIBRATION = Calibration(
    scale=[0.5, 1.0, 2.0, 0.0], offset=[3.0, -0.2, 0.3, 40.0], implied_prior=SKEWED, method="marc"
)


def reference(calibration, target, logits):
    debiased = calibration.debias(RawLogits(logits))
    return (debiased if target is None else debiased.adjust(target)).scores()


class TestAScoreMap:
    @settings(deadline=None)
    @given(
        arrays(np.float32, st.tuples(st.integers(1, 5), st.just(4)), elements=st.floats(-30, 30, width=32)),
        st.sampled_from([None, ClassPrior.uniform(4), SKEWED, ClassPrior.from_weights([1, 0, 2, 3])]),
    )
    def test_gives_the_scores_of_the_algebra(self, logits, target):
        # float32 against float64, logits up to 30 times a scale up to 2: exponents of 60 carry errors of 60 * 2^-23
        scores = ScoreMap.of(CALIBRATION, target)(logits)
        np.testing.assert_allclose(scores, reference(CALIBRATION, target, logits), atol=2e-5)
        assert scores.dtype == np.float32

    def test_leaves_the_logits_as_they_were(self):
        logits = np.ones((2, 4), dtype=np.float32)
        ScoreMap.of(CALIBRATION, None)(logits)
        assert (logits == 1).all()

    def test_an_impossible_class_scores_exactly_zero(self):
        scores = ScoreMap.of(CALIBRATION, ClassPrior.from_weights([1, 0, 1, 1]))(np.zeros((3, 4), dtype=np.float32))
        assert (scores[:, 1] == 0).all()

    def test_rows_score_alike_alone_and_together(self):
        logits = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 5
        score = ScoreMap.of(CALIBRATION, SKEWED)
        alone = np.concatenate([score(row[None]) for row in logits])
        np.testing.assert_allclose(score(logits), alone, atol=1e-6)

    def test_8142_classes_with_extreme_logits_and_priors_stay_finite(self):
        rng = np.random.default_rng(0)
        calibration = Calibration(
            scale=np.ones(8142),
            offset=rng.normal(size=8142) * 1e4,
            implied_prior=ClassPrior.from_weights(np.geomspace(1e9, 1, 8142)),
            method="marc",
        )
        logits = (rng.normal(size=(3, 8142)) * 1e4).astype(np.float32)
        scores = ScoreMap.of(calibration, ClassPrior.uniform(8142))(logits)
        np.testing.assert_allclose(scores.sum(axis=1), 1.0, atol=1e-5)

    def test_refuses_a_target_of_other_classes(self):
        with pytest.raises(ShapeMismatch, match="must have 4 classes"):
            ScoreMap.of(CALIBRATION, ClassPrior.uniform(3))
