"""A classifier whose densities are known, so that the right answer is known too."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from models.calibration.prior import Ledger
from models.calibration.types import ClassPrior, FloatArray, LogitSet


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """Labelled logits of the Bayes classifier of Gaussian classes, and the posterior under any class law."""

    logit_set: LogitSet
    ledger: Ledger
    log_likelihood: FloatArray

    def posterior(self, prior: ClassPrior) -> FloatArray:
        joint = np.exp(self.log_likelihood - self.log_likelihood.max(axis=1, keepdims=True)) * prior.probs
        return joint / joint.sum(axis=1, keepdims=True)


@pytest.fixture
def simulate() -> Callable[..., Simulated]:
    """The head was trained with cross-entropy on a tail of ratio 50; its logits are `confidence` times too large."""

    def build(
        *,
        classes: int = 10,
        per_class: int = 100,
        confidence: float = 1.0,
        trained_with: str = "cross-entropy",
        seed: int = 0,
    ) -> Simulated:
        rng = np.random.default_rng(seed)
        counts = np.maximum((1000 * 50 ** (-np.arange(classes) / (classes - 1))).astype(int), 1)
        centres = rng.normal(size=(classes, 8)) * 0.9
        labels = np.repeat(np.arange(classes), per_class)
        points = centres[labels] + rng.normal(size=(labels.size, 8))
        log_likelihood = points @ centres.T - 0.5 * (centres**2).sum(axis=1)
        ledger = Ledger.by_rule(trained_with, counts)
        logits = confidence * (log_likelihood + ledger.implied_prior.log_probs)
        logit_set = LogitSet(logits=logits, labels=labels, split="calibration", drawn="simulated")
        return Simulated(logit_set=logit_set, ledger=ledger, log_likelihood=log_likelihood)

    return build
