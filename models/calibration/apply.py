"""A calibration and a target prior as two arrays: the whole of what a request costs after the network."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from models.calibration.errors import InvalidLogits, ShapeMismatch
from models.calibration.types import Calibration, ClassPrior

Float32Array = NDArray[np.float32]
LogitArray = NDArray[Any]  # float32 as networks give it, or float64


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMap:
    """softmax(scale * z~ + shift), with shift = offset + log target - log r.

    The same scores as `Calibration.debias(...).adjust(target).scores()`, in float32 to about 1e-6, for callers that
    score all day with one calibration and one prior.

    Args: scale `(C,)` and shift `(C,)` in one dtype, which logits must have too; a shift of minus infinity is a class
        that cannot occur.
    """

    scale: LogitArray
    shift: LogitArray
    _ones: LogitArray = field(init=False, repr=False)
    _mean: LogitArray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # A product with ones sums a row faster than np.add.reduce.
        ones = np.ones((self.scale.size, 1), dtype=self.scale.dtype)
        object.__setattr__(self, "_ones", ones)
        object.__setattr__(self, "_mean", ones / self.scale.size)

    @classmethod
    def of(cls, calibration: Calibration, target: ClassPrior | None, dtype: DTypeLike = np.float32) -> ScoreMap:
        """Args: target, None for the softmax of the debiased logits. Raises: ShapeMismatch."""
        shift = calibration.offset
        if target is not None:
            if target.num_classes != calibration.num_classes:
                raise ShapeMismatch(
                    f"the target prior must have {calibration.num_classes} classes as the model has; "
                    f"got {target.num_classes}."
                )
            shift = shift + (target.log_probs - calibration.implied_prior.log_probs)
        possible = np.isfinite(shift)
        centred = shift - shift[possible].mean()  # the softmax does not see it, and float32 holds small numbers better
        return cls(calibration.scale.astype(dtype), centred.astype(dtype))

    def __call__(self, logits: LogitArray) -> LogitArray:
        """Scores `(N, C)` of raw logits `(N, C)`; the logits are not changed.

        Raises: InvalidLogits where they are not all finite, or so large that their sum is not. Where only the distance
        of one from the mean is too large for the type, its row is NaN.
        """
        means = logits @ self._mean
        if not isfinite(sum(means[:, 0].tolist())):
            raise InvalidLogits(
                "logits must be finite numbers; those of some row are not, or too large for their type."
            )
        scores: LogitArray = logits - means
        scores *= self.scale
        scores += self.shift
        scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores @ self._ones
        return scores
