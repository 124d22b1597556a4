"""The temperature: one scale for all logits, by a bounded search on its logarithm."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from models.calibration.affine import LOG_TEMPERATURE_SD, balanced_weights, item_nll, require_held_out
from models.calibration.types import FloatArray, LogitSet

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleFit:
    """scale, which is 1 / T; the objective in nats; a warning where the search ended at its limit."""

    scale: float
    objective: float
    iterations: int
    warnings: tuple[str, ...]


def fit_scale(logit_set: LogitSet, offset: FloatArray) -> ScaleFit:
    """The minimiser of the class-balanced NLL of `scale * z~ + offset`, with the pull of log T to 0.

    Args: offset `(C,)`, what the prior takes; it is not scaled.
    Raises: LeakedSplit for training data, NotEnoughData for none.
    """
    require_held_out(logit_set)
    low, high = -np.log(MAX_TEMPERATURE), -np.log(MIN_TEMPERATURE)  # of log scale
    penalty = 0.5 / (LOG_TEMPERATURE_SD**2 * logit_set.labels.size)
    weights = balanced_weights(logit_set)

    def objective(log_scale: float) -> float:
        losses = item_nll(logit_set.logits, logit_set, float(np.exp(log_scale)), offset)
        return float(weights @ losses) + penalty * float(log_scale) ** 2

    result = minimize_scalar(objective, bounds=(low, high), method="bounded", options={"xatol": 1e-8})
    warnings: tuple[str, ...] = ()
    if result.x - low < 1e-3:
        limit = f"the temperature ran into its upper limit, {MAX_TEMPERATURE:g}"
        why = "the logits do not tell the classes apart, or are far larger than log probabilities are"
        warnings = (f"{limit}: {why}. Check that they are the output before softmax.",)
    if high - result.x < 1e-3:
        limit = f"the temperature ran into its lower limit, {MIN_TEMPERATURE:g}"
        warnings = (f"{limit}: the logits are far smaller than log probabilities are. Multiply them by a constant.",)
    return ScaleFit(
        scale=float(np.exp(result.x)),
        objective=float(result.fun),
        iterations=int(result.nfev),
        warnings=warnings,
    )
