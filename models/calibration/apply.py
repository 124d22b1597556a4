"""A calibration and a target prior as two arrays: the whole of what a request costs after the network."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import ShapeMismatch
from models.calibration.types import Calibration, ClassPrior

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreMap:
    """softmax(scale * z~ + shift) in float32, with shift = offset + log target - log r.

    The same scores as `Calibration.debias(...).adjust(target).scores()` to about 1e-6, for callers that score all day
    with one calibration and one prior. Nothing is checked: logits that are not finite give NaN.

    Args: scale `(C,)` and shift `(C,)`; a shift of minus infinity is a class that cannot occur.
    """

    scale: Float32Array
    shift: Float32Array

    @classmethod
    def of(cls, calibration: Calibration, target: ClassPrior | None) -> ScoreMap:
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
        return cls(calibration.scale.astype(np.float32), centred.astype(np.float32))

    def __call__(self, logits: Float32Array) -> Float32Array:
        """Scores `(N, C)` of raw logits `(N, C)`; the logits are not changed."""
        ones = np.ones((self.scale.size, 1), dtype=np.float32)  # a product with it sums a row faster than np.add.reduce
        scores = logits - (logits @ ones) / np.float32(self.scale.size)
        scores *= self.scale
        scores += self.shift
        scores -= np.maximum.reduce(scores, axis=1, keepdims=True)
        np.exp(scores, out=scores)
        scores /= scores @ ones
        return scores
