"""The convex problem behind every fit: weighted NLL of `scale * z~ + offset`, pulled towards an anchor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from models.calibration.errors import FitFailed, LeakedSplit, NotEnoughData
from models.calibration.types import FloatArray, LogitSet

# Standard deviations of the Gaussian priors: of the logarithm of the temperature around 0, of the offsets (nats) around
# the closed form's, of the scales around the closed form's as a share of it. They keep a small or separable calibration
# set from driving a parameter to infinity, and fade as the set grows: with 20 examples a class and 100 classes, 0.5 is
# a squared penalty of 1e-3 on the mean loss. Chosen by cross-validation: docs/decisions/0002.
LOG_TEMPERATURE_SD = 0.5
OFFSET_SD = 0.5
SCALE_SD = 0.15

BLOCK = 1 << 18  # numbers of a block of rows: 2 MiB, near enough to the processor for several passes over it
GRADIENT_TOLERANCE = 1e-6  # at which L-BFGS stops, in its scaled variables
ROUNDING = 1e-9
ACCEPTED_GRADIENT = 1e-4  # at which a line search that rounding has stopped still counts as converged


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AffineFit:
    """scale `(C,)` and offset `(C,)` at the minimum; the objective in nats."""

    scale: FloatArray
    offset: FloatArray
    objective: float
    iterations: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Anchor:
    """Where a fit starts and what its penalty pulls towards: one scale for all classes, offsets `(C,)`.

    The standard deviations are those of the Gaussian priors around it, that of the scales as a share of the scale, so
    that a head with larger logits is pulled alike; infinity takes the pull away.
    """

    scale: float
    offset: FloatArray
    scale_sd: float = SCALE_SD
    offset_sd: float = OFFSET_SD


def balanced_weights(logit_set: LogitSet) -> FloatArray:
    """Item weights `(N,)` that give every class present the same mass; they sum to 1."""
    counts = logit_set.class_counts
    return np.asarray(1.0 / (counts[logit_set.labels] * np.count_nonzero(counts)), dtype=np.float64)


def balanced_nll(debiased: FloatArray, logit_set: LogitSet) -> float:
    """Class-balanced negative log-likelihood of `(N, C)` logits, in nats."""
    return float(balanced_weights(logit_set) @ item_nll(debiased, logit_set))


def item_nll(
    logits: FloatArray, logit_set: LogitSet, scale: float = 1.0, offset: FloatArray | float = 0.0
) -> FloatArray:
    """Negative log-likelihood `(N,)`, in nats, of `scale * logits + offset`, a block of rows at a time."""
    losses = np.empty(logit_set.labels.size)
    for rows, block in _blocks(logits, scale, offset):
        labels = logit_set.labels[rows]
        picked = block[np.arange(labels.size), labels]
        largest = block.max(axis=1)
        block -= largest[:, None]
        losses[rows] = np.log(np.exp(block, out=block).sum(axis=1)) + largest - picked
    return losses


def require_every_class(logit_set: LogitSet) -> None:
    """Raises: NotEnoughData for a class without an example: a fit would push what it never sees out of the way."""
    counts = logit_set.class_counts
    if not counts.all():
        raise NotEnoughData(
            f"a fit with parameters for each class needs a labelled example of every class; "
            f"{int((counts == 0).sum())} of {counts.size} have none (first class {int(counts.argmin())}). "
            "Add examples, or use the closed form or choose."
        )


def require_held_out(logit_set: LogitSet) -> None:
    """Raises: LeakedSplit for training data, NotEnoughData for an empty set."""
    if logit_set.split == "train":
        raise LeakedSplit("this fit needs data that the network never saw; got its training split. Hold some out.")
    if not logit_set.labels.size:
        raise NotEnoughData("a calibration is fitted on labelled examples; got none.")


def fit_affine(
    logit_set: LogitSet,
    *,
    anchor: Anchor,
    scale_per_class: bool,
    max_steps: int = 500,
) -> AffineFit:
    """Minimise the weighted NLL plus the penalty by L-BFGS with the analytic gradient; no scale goes below 0.

    Memory beside the logits is a block of rows.

    Args: scale_per_class, one scale a class or one for all.
    Raises: LeakedSplit, NotEnoughData, FitFailed with the optimiser's reason.
    """
    require_held_out(logit_set)
    num_classes = logit_set.num_classes
    num_scales = num_classes if scale_per_class else 1
    weights = balanced_weights(logit_set)
    start = np.concatenate([np.full(num_scales, anchor.scale), anchor.offset])
    scale_sd = anchor.scale_sd * anchor.scale
    deviations = np.concatenate([np.full(num_scales, scale_sd), np.full(num_classes, anchor.offset_sd)])
    objective = penalised_nll(logit_set, weights=weights, anchor=start, deviations=deviations)
    coordinates = _Coordinates.at(logit_set, weights, start, deviations)

    def in_coordinates(step: FloatArray) -> tuple[float, FloatArray]:
        value, gradient = objective(coordinates.theta(step))
        return value, coordinates.gradient(gradient)

    lowest = np.concatenate([-anchor.scale / coordinates.scale_unit, np.full(num_classes, -np.inf)])
    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 1e-14, "gtol": GRADIENT_TOLERANCE}
    result = minimize(
        in_coordinates,
        np.zeros(start.size),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, None) for low in lowest],
        options=options,
    )
    held = (result.x <= lowest) & (result.jac > 0)  # at its bound and pushed against it: no way down
    if not result.success and np.abs(result.jac[~held]).max(initial=0.0) > ACCEPTED_GRADIENT:
        raise FitFailed(
            f"the calibration fit did not converge in {result.nit} steps: {result.message} "
            "Check that the logits are the classifier's output before softmax."
        )
    theta = coordinates.theta(result.x)
    scale = np.broadcast_to(theta[:num_scales], (num_classes,))
    scale = np.where(scale > ROUNDING * anchor.scale, scale, 0.0)  # a bound is met to rounding only
    return AffineFit(scale=scale, offset=theta[num_scales:], objective=float(result.fun), iterations=int(result.nit))


def penalised_nll(
    logit_set: LogitSet, *, weights: FloatArray, anchor: FloatArray, deviations: FloatArray
) -> Callable[[FloatArray], tuple[float, FloatArray]]:
    """theta -> (objective in nats, gradient); theta is 1 or C scales and then C offsets, as long as `anchor`.

    The penalty 0.5 / N ((theta - anchor) / deviations)^2 is that of a Gaussian prior on the mean loss, N being the
    examples. Where these are long-tailed themselves, the class-balanced loss rests on fewer, and the pull is weaker.
    """
    z, labels = logit_set.logits, logit_set.labels
    num_scales = anchor.size - logit_set.num_classes
    penalty = 0.5 / (deviations**2 * labels.size)
    true_logits = z[np.arange(labels.size), labels]
    true_mass = np.bincount(labels, weights=weights, minlength=logit_set.num_classes)
    true_mean = np.bincount(labels, weights=weights * true_logits, minlength=logit_set.num_classes)

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        scale, offset = theta[:num_scales], theta[num_scales:]
        picked = (scale[labels] if num_scales > 1 else scale) * true_logits + offset[labels]
        loss = 0.0
        by_offset: FloatArray = np.negative(true_mass)
        by_scale: FloatArray = np.negative(true_mean)
        for rows, block in _blocks(z, scale, offset):
            largest = block.max(axis=1)
            block -= largest[:, None]
            np.exp(block, out=block)
            total = block.sum(axis=1)
            loss += float(weights[rows] @ (np.log(total) + largest - picked[rows]))
            shares = weights[rows] / total
            by_offset = by_offset + _sum_of_rows(shares, block)
            block *= z[rows]
            by_scale = by_scale + _sum_of_rows(shares, block)
        gap = theta - anchor
        gradient = np.concatenate([by_scale if num_scales > 1 else by_scale.sum(keepdims=True), by_offset])
        return loss + float(penalty @ gap**2), gradient + 2 * penalty * gap

    return objective


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Coordinates:
    """Variables in which the objective is nearly round at `start`, so that L-BFGS takes a fraction of the steps.

    A step of a class's scale moves its scores most where its logits are large, and an offset there could undo it: so
    such a step takes `slope (C,)` times as much off the offset. What is left is measured in units of the curvature.
    """

    start: FloatArray
    slope: FloatArray
    scale_unit: FloatArray
    offset_unit: FloatArray

    @classmethod
    def at(cls, logit_set: LogitSet, weights: FloatArray, start: FloatArray, deviations: FloatArray) -> _Coordinates:
        num_scales = start.size - logit_set.num_classes
        of_scale, mixed, of_offset = _curvature(logit_set, weights, start[:num_scales], start[num_scales:])
        pull = 1.0 / (deviations**2 * logit_set.labels.size)
        of_offset = of_offset + 1e-6 * of_offset.max(initial=0.0) + pull[num_scales:]
        of_offset = np.where(of_offset > 0, of_offset, 1.0)  # every probability underflowed to 0 or 1
        slope = mixed / of_offset
        left = np.maximum(of_scale - mixed * slope, 1e-3 * of_scale)
        left = left if num_scales > 1 else left.sum(keepdims=True)
        left = left + 1e-6 * left.max(initial=0.0) + pull[:num_scales]
        left = np.where(left > 0, left, 1.0)
        return cls(start=start, slope=slope, scale_unit=1 / np.sqrt(left), offset_unit=1 / np.sqrt(of_offset))

    def theta(self, step: FloatArray) -> FloatArray:
        scale = self.scale_unit * step[: self.scale_unit.size]
        offset = self.offset_unit * step[self.scale_unit.size :] - self.slope * scale
        return np.asarray(self.start + np.concatenate([scale, offset]))

    def gradient(self, of_theta: FloatArray) -> FloatArray:
        of_scale, of_offset = of_theta[: self.scale_unit.size], of_theta[self.scale_unit.size :]
        moved = self.slope * of_offset
        of_scale = of_scale - (moved if of_scale.size > 1 else moved.sum())
        return np.concatenate([self.scale_unit * of_scale, self.offset_unit * of_offset])


def _curvature(
    logit_set: LogitSet, weights: FloatArray, scale: FloatArray, offset: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Second derivatives of the NLL, `(C,)` each: by a class's scale, by its scale and offset, by its offset."""
    found = np.zeros((3, logit_set.num_classes))
    for rows, block in _blocks(logit_set.logits, scale, offset):
        block -= block.max(axis=1, keepdims=True)
        np.exp(block, out=block)
        block /= block.sum(axis=1, keepdims=True)
        block -= block**2
        for derivative in reversed(found):  # by the offset first, then once and twice times the logit
            derivative += _sum_of_rows(weights[rows], block)
            block *= logit_set.logits[rows]
    return found[0], found[1], found[2]


def _sum_of_rows(weights: FloatArray, block: FloatArray) -> FloatArray:
    """weights @ block, without the threads of BLAS: on busy cores they wait for one another and double the time."""
    return np.asarray(np.einsum("n,nc->c", weights, block), dtype=np.float64)


def _blocks(
    logits: FloatArray, scale: FloatArray | float, offset: FloatArray | float
) -> Iterator[tuple[slice, FloatArray]]:
    """Slices of rows, each with `scale * logits + offset` of its rows to work in: the same memory every time."""
    rows = max(1, BLOCK // logits.shape[1])
    buffer = np.empty((min(rows, logits.shape[0]), logits.shape[1]))
    for start in range(0, logits.shape[0], rows):
        block = buffer[: min(rows, logits.shape[0] - start)]
        np.multiply(logits[start : start + rows], scale, out=block)
        block += offset
        yield slice(start, start + rows), block
