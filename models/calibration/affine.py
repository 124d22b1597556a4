"""The convex problem behind every fit: class-balanced NLL of `scale * z~ + offset`, pulled towards an anchor."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from models.calibration.errors import FitFailed, LeakedSplit, NotEnoughData
from models.calibration.types import FloatArray, LogitSet, log_softmax

# Standard deviations of the Gaussian priors: of the logarithm of the temperature around 0, of the scales around the
# closed form's, of the offsets (nats) around the closed form's. They keep a small or separable calibration set from
# driving a parameter to infinity, and fade as the set grows: with 20 examples a class and 100 classes, 0.5 is a squared
# penalty of 1e-3 on the mean loss.
LOG_TEMPERATURE_SD = 0.5
OFFSET_SD = 0.5
SCALE_SD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AffineFit:
    scale: FloatArray
    offset: FloatArray
    objective: float
    iterations: int


def balanced_weights(logit_set: LogitSet) -> FloatArray:
    """Item weights `(N,)` that give every class present the same mass; they sum to 1."""
    counts = logit_set.class_counts
    return np.asarray(1.0 / (counts[logit_set.labels] * np.count_nonzero(counts)), dtype=np.float64)


def balanced_nll(debiased: FloatArray, logit_set: LogitSet) -> float:
    """Class-balanced negative log-likelihood of `(N, C)` logits, in nats."""
    picked = log_softmax(debiased)[np.arange(logit_set.labels.size), logit_set.labels]
    return -float(balanced_weights(logit_set) @ picked)


def require_held_out(logit_set: LogitSet) -> None:
    """Raises: LeakedSplit for training data, NotEnoughData for an empty set."""
    if logit_set.split == "train":
        raise LeakedSplit("this fit needs data that the network never saw; got its training split. Hold some out.")
    if not logit_set.labels.size:
        raise NotEnoughData("a calibration is fitted on labelled examples; got none.")


def fit_affine(
    logit_set: LogitSet, *, anchor_scale: float, anchor_offset: FloatArray, scale_per_class: bool, max_steps: int = 500
) -> AffineFit:
    """Minimise the class-balanced NLL plus the penalty, by L-BFGS with the analytic gradient.

    Args: anchor_scale and anchor_offset `(C,)`, where the fit starts and what the penalty pulls towards;
        scale_per_class, one scale a class or one for all.
    Raises: LeakedSplit, NotEnoughData, FitFailed with the optimiser's reason.
    """
    require_held_out(logit_set)
    num_classes = logit_set.num_classes
    num_scales = num_classes if scale_per_class else 1
    start = np.concatenate([np.full(num_scales, anchor_scale), anchor_offset])
    objective = penalised_nll(logit_set, anchor=start, num_scales=num_scales)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": max_steps, "ftol": 1e-12})
    if not result.success:
        raise FitFailed(
            f"the calibration fit did not converge in {result.nit} steps: {result.message} "
            "Check that the logits are the classifier's output before softmax."
        )
    scale = np.broadcast_to(result.x[:num_scales], (num_classes,)).copy()
    return AffineFit(scale=scale, offset=result.x[num_scales:], objective=float(result.fun), iterations=int(result.nit))


def penalised_nll(
    logit_set: LogitSet, *, anchor: FloatArray, num_scales: int
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """theta -> (objective in nats, gradient), theta being `num_scales` scales (1 or C) and then C offsets.

    The penalty pulls both towards `anchor`.
    """
    z, labels = logit_set.logits, logit_set.labels
    weights = balanced_weights(logit_set)
    rows = np.arange(labels.size)
    deviations = np.concatenate([np.full(num_scales, SCALE_SD), np.full(logit_set.num_classes, OFFSET_SD)])
    penalty = 0.5 / (deviations**2 * labels.size)

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        log_probs = log_softmax(theta[:num_scales] * z + theta[num_scales:])
        residual = np.exp(log_probs)
        residual[rows, labels] -= 1.0
        residual *= weights[:, None]
        gap = theta - anchor
        loss = -weights @ log_probs[rows, labels] + penalty @ gap**2
        by_class = (residual * z).sum(axis=0)
        by_scale = by_class if num_scales > 1 else by_class.sum(keepdims=True)
        return float(loss), np.concatenate([by_scale, residual.sum(axis=0)]) + 2 * penalty * gap

    return objective
