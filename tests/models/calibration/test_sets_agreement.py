import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin

from models.calibration.sets import fit_sets
from models.calibration.types import ClassPrior, DebiasedLogits, LogitSet, softmax


class Fitted(ClassifierMixin, BaseEstimator):
    """A classifier whose input is its own scores."""

    def __init__(self, num_classes=2):
        self.num_classes = num_classes
        self.classes_ = np.arange(num_classes)

    def fit(self, x, y):
        return self

    def __sklearn_is_fitted__(self):
        return True

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(axis=1)


def drawn(rng, counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    logits = 1.5 * rng.normal(size=(labels.size, len(counts)))
    logits[np.arange(labels.size), labels] += 1.0
    return LogitSet(logits=logits, labels=labels, split="calibration")


@pytest.mark.parametrize("coverage", [0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(("classes", "per_class"), [(2, 10), (3, 33), (10, 10), (30, 7)])
def test_equal_weights_give_the_sets_of_mapie_and_the_top_class(classes, per_class, coverage):
    rng = np.random.default_rng(classes)
    uniform = ClassPrior.uniform(classes)
    fitted_on, new = drawn(rng, [per_class] * classes), drawn(rng, [40] * classes)
    rule = fit_sets(fitted_on, DebiasedLogits(fitted_on.logits, uniform), target=uniform, coverage=coverage)
    sets = rule.predict(DebiasedLogits(new.logits, uniform).adjust(uniform))
    mapie = SplitConformalClassifier(Fitted(classes), confidence_level=coverage, conformity_score="lac", prefit=True)
    mapie.conformalize(softmax(fitted_on.logits), fitted_on.labels)
    decisions, theirs = mapie.predict_set(softmax(new.logits))
    theirs = theirs[:, :, 0]
    np.testing.assert_array_equal(sets, theirs | (np.arange(classes) == decisions[:, None]))
