"""The prior that logits imply, from labelled examples: by definition, and as an estimate that few examples carry."""

import numpy as np

from models.calibration.affine import (
    BLOCK,
    LOG_TEMPERATURE_SD,
    OFFSET_SD,
    Anchor,
    fit_affine,
    require_every_class,
)
from models.calibration.errors import NotEnoughData, ShapeMismatch
from models.calibration.scale import MAX_TEMPERATURE, fit_scale
from models.calibration.types import ClassPrior, LogitSet, softmax

RESTART = 1e-9  # of the fixed point: the share of a uniform law that makes it unique


def estimate_implied_prior(
    logit_set: LogitSet, expected: ClassPrior, *, deviation: float = OFFSET_SD
) -> tuple[float, ClassPrior]:
    """T and r of the calibrated logits z~ / T, at the maximum of the class-balanced likelihood of z~ / T - log r.

    With many examples this is the fixed point of `measure_implied_prior` at the right temperature. With few it stays
    near the expected law, where the fixed point is noise: with 5 examples a class it costs a point of accuracy, this
    gains some (docs/decisions/0002).

    Args: expected, what the rule says. deviation, standard deviation in nats of log r around log expected.
    Raises: NotEnoughData when a class has no labelled example, LeakedSplit for training data, FitFailed.
    """
    require_every_class(logit_set)
    if expected.num_classes != logit_set.num_classes:
        raise ShapeMismatch(
            f"the labelled logits have {logit_set.num_classes} classes, the expected prior {expected.num_classes}. "
            "Give logits and counts of the same classifier."
        )
    offset = -expected.log_probs
    scale = fit_scale(logit_set, offset).scale
    anchor = Anchor(scale=scale, offset=offset, scale_sd=LOG_TEMPERATURE_SD, offset_sd=deviation)
    fit = fit_affine(logit_set, anchor=anchor, scale_per_class=False)
    temperature = 1.0 / max(float(fit.scale[0]), 1.0 / MAX_TEMPERATURE)
    return temperature, ClassPrior.from_log_weights(-fit.offset)


def measure_implied_prior(logit_set: LogitSet) -> ClassPrior:
    """The fixed point r = M r, where column j of M is the mean prediction over the examples of class j.

    A calibrated posterior predicts r on average exactly on data that follow r, and on no other law. M is a matrix of
    transition probabilities, and r its stationary law; `RESTART` makes that unique where the classifier never takes one
    class for another, and is far below what examples can tell.

    Returns: r, `(C,)`; a class that is never predicted gets the smallest positive number.
    Raises: NotEnoughData when a class has no labelled example.
    """
    counts = logit_set.class_counts
    if not counts.all():
        raise NotEnoughData(
            f"measuring the implied prior needs a labelled example of every class; class {int(counts.argmin())} has "
            "none. Add labelled logits."
        )
    num_classes = logit_set.num_classes
    by_class = np.zeros((num_classes, num_classes))  # row j: mean prediction over the examples of class j
    rows = max(1, BLOCK // num_classes)
    order = np.argsort(logit_set.labels, kind="stable")
    for start in range(0, order.size, rows):
        block = order[start : start + rows]
        labels, first = np.unique(logit_set.labels[block], return_index=True)
        by_class[labels] += np.add.reduceat(softmax(logit_set.logits[block]), first, axis=0)
    by_class *= ((RESTART - 1.0) / counts)[:, None]
    by_class[np.diag_indices(num_classes)] += 1.0
    r = np.linalg.solve(by_class.T, np.full(num_classes, RESTART / num_classes))
    return ClassPrior.from_weights(np.maximum(r, np.finfo(np.float64).tiny))
