"""Our fits beside those of a well-kept library, on the same examples."""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from models.calibration.prior import Ledger
from models.calibration.temperature import fit_temperature, fit_vector_scaling
from models.calibration.types import LogitSet, softmax


class Classifier(ClassifierMixin, BaseEstimator):
    """Its features are its logits."""

    def __init__(self, classes: int = 2) -> None:
        self.classes = classes
        self.classes_ = np.arange(classes)

    def fit(self, features, labels):
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def decision_function(self, features):
        return features

    def predict(self, features):
        return features.argmax(axis=1)


def test_the_temperature_is_that_of_scikit_learn(simulate):
    # equal counts: the class-balanced loss is the plain one; 5,000 examples: our pull of log T to 0 is worth 2e-4
    sample = simulate(per_class=500, confidence=2.3, trained_with="balanced-sampling")
    logits, labels = sample.logit_set.logits, sample.logit_set.labels
    theirs = CalibratedClassifierCV(FrozenEstimator(Classifier(10)), method="temperature").fit(logits, labels)
    ours, _ = fit_temperature(sample.logit_set, sample.ledger)
    np.testing.assert_allclose(ours.debias(sample.logit_set.raw).scores(), theirs.predict_proba(logits), atol=2e-3)


def test_two_classes_are_logistic_regression(simulate):
    # of two classes, d_1 - d_0 = (a_0 + a_1) z / 2 + b: one slope and one intercept on the difference of the logits
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 400)
    difference = 1.5 * (2 * labels - 1) + rng.normal(size=800) + 0.4
    logit_set = LogitSet(logits=np.stack([-difference / 2, difference / 2], axis=1), labels=labels, split="calibration")
    ours, _ = fit_vector_scaling(logit_set, Ledger.by_rule("balanced-sampling", [5, 5]))
    theirs = LogisticRegression(C=np.inf, tol=1e-10).fit(difference[:, None], labels)
    scores = softmax(ours.debias(logit_set.raw).values)
    np.testing.assert_allclose(scores, theirs.predict_proba(difference[:, None]), atol=1e-4)
