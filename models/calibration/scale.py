"""The temperature: one scale for all logits, by a bounded search on its logarithm."""

from dataclasses import dataclass, replace

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
    present = np.flatnonzero(logit_set.class_counts)
    if present.size == 1:
        return ScaleFit(scale=1.0, objective=0.0, iterations=0, warnings=(_lacking(logit_set, present.size),))
    if present.size < logit_set.num_classes:
        # Examples of some classes follow a law under which the others cannot occur: these leave the softmax.
        seen = replace(
            logit_set,
            logits=logit_set.logits[:, present],
            labels=np.searchsorted(present, logit_set.labels),
        )
        fit = fit_scale(seen, offset[present])
        return replace(fit, warnings=(*fit.warnings, _lacking(logit_set, present.size)))
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


def _lacking(logit_set: LogitSet, present: int) -> str:
    rest = "the temperature stays 1" if present == 1 else "the temperature is that of the others"
    missing = logit_set.num_classes - present
    return (
        f"{missing} of {logit_set.num_classes} classes have no labelled example: {rest}. Add examples of every class."
    )
