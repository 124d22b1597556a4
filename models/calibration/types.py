"""The types of the calibration algebra: raw logits become debiased logits, debiased logits become adjusted ones.

Raw, debiased and adjusted are three types, so that a prior cannot be taken out twice or put in twice by accident.
C = classes, N = examples; shapes are written `(N, C)`. Everything is float64, frozen, and checked when built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.calibration.errors import (
    CalibrationError,
    InvalidCalibration,
    InvalidLabels,
    InvalidLogits,
    InvalidPrior,
    LeakedSplit,
    ShapeMismatch,
    UnknownClass,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Split = Literal["train", "calibration", "test"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def frozen(values: ArrayLike) -> FloatArray:
    """A read-only float64 copy."""
    array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array


def numbers(values: ArrayLike, error: type[CalibrationError], rule: str) -> NDArray[Any]:
    """The values as an array of integers or floats, not copied where they are one; `error` with `rule` otherwise."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError):
        raise error(f"{rule}; got lists of different lengths or depths.") from None
    if array.dtype.kind not in "iuf":
        raise error(f"{rule}; got {array.dtype}. Convert it to numbers first.")
    return array


def softmax(logits: FloatArray) -> FloatArray:
    """Rows of `(N, C)` to probabilities; entries of minus infinity get exactly 0."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float64)


def log_softmax(logits: FloatArray) -> FloatArray:
    """Logarithm of `softmax`, exact where the probability underflows."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), dtype=np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class ClassPrior:
    """A law over the classes, `(C,)`: no entry negative, the sum 1. A zero says that the class cannot occur.

    Raises: InvalidPrior for anything else; numbers that do not sum to 1 go through `from_weights`.
    """

    probs: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "probs", _checked_weights(self.probs))
        if abs(self.probs.sum() - 1.0) > 1e-6:
            raise InvalidPrior(f"a class prior must sum to 1; got {self.probs.sum():.6g}. Normalise it first.")

    @classmethod
    def uniform(cls, num_classes: int) -> ClassPrior:
        if num_classes < 2:
            raise InvalidPrior(f"a class prior has at least two classes; got {num_classes}.")
        return cls(np.full(num_classes, 1.0 / num_classes))

    @classmethod
    def from_weights(cls, weights: ArrayLike) -> ClassPrior:
        """Counts or any other non-negative numbers `(C,)`, divided by their sum."""
        array = _checked_weights(weights)
        largest = array.max()  # first, so that the sum of huge weights cannot overflow
        return cls(array / largest / (array / largest).sum())

    @classmethod
    def from_log_weights(cls, log_weights: FloatArray) -> ClassPrior:
        """Logarithms of weights `(C,)`; minus infinity for a class that cannot occur."""
        return cls.from_weights(np.exp(log_weights - log_weights.max()))

    @classmethod
    def from_mapping(cls, weights: Mapping[str, float], class_names: Sequence[str]) -> ClassPrior:
        """By class name; every class must be named once.

        Raises: UnknownClass for a name that the model lacks, InvalidPrior for a class without a number.
        """
        unknown = sorted(set(weights) - set(class_names))
        if unknown:
            raise UnknownClass(f"the prior names classes that the model does not have: {', '.join(unknown[:5])}.")
        missing = [name for name in class_names if name not in weights]
        if missing:
            raise InvalidPrior(
                f"a prior by name needs a number for each of the {len(class_names)} classes; "
                f"{len(missing)} are missing, the first is {missing[0]!r}. Write 0 for a class that cannot occur."
            )
        return cls.from_weights([weights[name] for name in class_names])

    @property
    def num_classes(self) -> int:
        return int(self.probs.shape[0])

    @property
    def log_probs(self) -> FloatArray:
        """`(C,)`; minus infinity where the probability is 0."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.probs), dtype=np.float64)


def _checked_weights(values: ArrayLike) -> FloatArray:
    weights = frozen(numbers(values, InvalidPrior, "a class prior is one number a class"))
    if weights.ndim != 1 or weights.size < 2:
        raise InvalidPrior(f"a class prior is one number a class, at least two; got an array of shape {weights.shape}.")
    if not np.isfinite(weights).all():
        raise InvalidPrior(f"a class prior holds finite numbers; entry {int(np.argmin(np.isfinite(weights)))} is not.")
    if (weights < 0).any():
        raise InvalidPrior(f"a class prior has no negative entry; class {int(weights.argmin())} is {weights.min():g}.")
    if not weights.any():
        raise InvalidPrior("a class prior needs at least one class that can occur; all entries are 0.")
    return weights


def check_logits(values: NDArray[Any]) -> None:
    """Raises: ShapeMismatch for anything but `(N, C)`; InvalidLogits for numbers that are not finite in float32."""
    if values.ndim != 2 or values.shape[1] < 2:
        raise ShapeMismatch(f"logits must be (N, C) with at least two classes; got shape {values.shape}.")
    # Of the extremes alone, without an array of the logits' own size; NaN passes into both and fails the comparison.
    lowest, highest = np.minimum.reduce(values, None, initial=0), np.maximum.reduce(values, None, initial=0)
    if not (lowest >= -_FLOAT32_MAX and highest <= _FLOAT32_MAX):
        row, column = np.argwhere(~(np.abs(values) <= _FLOAT32_MAX))[0]
        raise InvalidLogits(
            f"logits must be finite numbers that fit float32; row {row}, class {column} is {values[row, column]}. "
            "Send the classifier's output before softmax; a log of a zero probability is not a logit."
        )


@dataclass(frozen=True, slots=True, eq=False)
class RawLogits:
    """What the classifier says, `(N, C)`, centred when built.

    Per-class scaling is not invariant to a constant added to a row, so the row mean is taken out first: logits and
    their log-softmax are the same `RawLogits`.
    """

    values: FloatArray

    def __post_init__(self) -> None:
        values = numbers(self.values, InvalidLogits, "logits are numbers, one row an example").astype(
            np.float64, copy=False
        )
        check_logits(values)
        object.__setattr__(self, "values", values - values.mean(axis=1, keepdims=True))
        self.values.setflags(write=False)

    @classmethod
    def _of_centred(cls, values: FloatArray) -> RawLogits:
        """Of logits that were checked and centred before: nothing is computed or copied."""
        raw = object.__new__(cls)
        object.__setattr__(raw, "values", values)
        return raw

    def scores(self) -> FloatArray:
        """softmax of the raw logits: what the classifier would have said without Equipoise."""
        return softmax(self.values)


@dataclass(frozen=True, slots=True, eq=False)
class DebiasedLogits:
    """`scale * z~ + offset`, `(N, C)`, together with the prior r that they still imply."""

    values: FloatArray
    implied_prior: ClassPrior

    def adjust(self, target: ClassPrior) -> AdjustedLogits:
        """Put a target prior in: `d + log target - log r` (Saerens, Latinne and Decaestecker 2002).

        Raises: ShapeMismatch when the target has another number of classes.
        """
        if target.num_classes != self.values.shape[1]:
            raise ShapeMismatch(
                f"the target prior must have {self.values.shape[1]} classes as the model has; got {target.num_classes}."
            )
        return AdjustedLogits(self.values + (target.log_probs - self.implied_prior.log_probs), target)

    def scores(self) -> FloatArray:
        """softmax of the debiased logits, under their implied prior: MARC as published."""
        return softmax(self.values)


@dataclass(frozen=True, slots=True, eq=False)
class AdjustedLogits:
    """Logits `(N, C)` whose softmax is the class posterior where `target` is the class law."""

    values: FloatArray
    target: ClassPrior

    def scores(self) -> FloatArray:
        return softmax(self.values)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """The one form of every post-hoc method: a per-class affine map of centred logits, and the prior it leaves.

    Args: scale `(C,)` and offset `(C,)`; implied_prior, the r of the debiased logits, positive for every class;
        method, the name of the fit; parameters in the method's own letters; provenance, what it was fitted on.
    """

    scale: FloatArray
    offset: FloatArray
    implied_prior: ClassPrior
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("scale", "offset"):
            values = frozen(numbers(getattr(self, name), InvalidCalibration, f"{name} is one number a class"))
            if values.shape != (self.num_classes,):
                raise ShapeMismatch(f"{name} must be ({self.num_classes},) like the prior; got {values.shape}.")
            if not np.isfinite(values).all():
                raise InvalidCalibration(f"{name} must be finite; class {int(np.argmin(np.isfinite(values)))} is not.")
            object.__setattr__(self, name, values)
        if not (self.implied_prior.probs > 0).all():
            raise InvalidCalibration("the implied prior of a calibration must be positive for every class.")

    @classmethod
    def identity(cls, implied_prior: ClassPrior) -> Calibration:
        """Leaves the centred logits as they are; their prior is the classifier's own."""
        ones = np.ones(implied_prior.num_classes)
        return cls(scale=ones, offset=0 * ones, implied_prior=implied_prior, method="identity")

    @property
    def num_classes(self) -> int:
        return self.implied_prior.num_classes

    def check_width(self, logits: NDArray[Any]) -> None:
        """Raises: ShapeMismatch when logits `(N, C)` have another number of classes."""
        if logits.shape[1] != self.num_classes:
            raise ShapeMismatch(
                f"logits must be (N, {self.num_classes}) to match the calibration; got {logits.shape}. "
                "Send one number for each class of the model, in its order."
            )

    def debias(self, raw: RawLogits) -> DebiasedLogits:
        """Raises: ShapeMismatch when the logits have another number of classes."""
        self.check_width(raw.values)
        return DebiasedLogits(self.scale * raw.values + self.offset, self.implied_prior)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogitSet:
    """Labelled raw logits: `logits (N, C)`, `labels (N,)` in [0, C), the split they come from and how it was drawn."""

    logits: FloatArray
    labels: IntArray
    split: Split
    drawn: str = ""

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise LeakedSplit(f"a split is one of {', '.join(get_args(Split))}; got {self.split!r}.")
        raw = RawLogits(self.logits)
        labels = np.array(numbers(self.labels, InvalidLabels, "labels are integers, class indices from 0"))
        if labels.shape != (raw.values.shape[0],):
            raise ShapeMismatch(f"labels must be ({raw.values.shape[0]},) like the logits; got {labels.shape}.")
        if labels.dtype.kind not in "iu":
            raise InvalidLabels(f"labels must be integers, class indices from 0; got {labels.dtype}.")
        if labels.size and not (labels.min() >= 0 and labels.max() < raw.values.shape[1]):
            raise InvalidLabels(f"labels must lie in [0, {raw.values.shape[1]}); got {labels.min()} to {labels.max()}.")
        labels = labels.astype(np.int64)
        labels.setflags(write=False)
        object.__setattr__(self, "logits", raw.values)
        object.__setattr__(self, "labels", labels)

    @property
    def raw(self) -> RawLogits:
        return RawLogits._of_centred(self.logits)

    @property
    def num_classes(self) -> int:
        return int(self.logits.shape[1])

    @property
    def class_counts(self) -> IntArray:
        """Examples a class, `(C,)`."""
        return np.bincount(self.labels, minlength=self.num_classes).astype(np.int64)

    def subset(self, rows: NDArray[Any]) -> LogitSet:
        return LogitSet(logits=self.logits[rows], labels=self.labels[rows], split=self.split, drawn=self.drawn)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What a fit did: `objective` is the minimised value (nats), `num_items` the examples it saw."""

    method: str
    objective: float
    iterations: int
    num_items: int
    warnings: tuple[str, ...] = ()
