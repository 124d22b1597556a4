"""What processes saw of a model's traffic, in bounded memory: it adds up, and its class law can be estimated."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import CalibrationError, InvalidLogits, ShapeMismatch
from models.calibration.types import FloatArray, IntArray, RawLogits, frozen, softmax

Priorities = NDArray[np.uint64]
Rows = NDArray[np.float32]

FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_BYTES = 128 * 2**20  # of the sample
ROWS_PER_CLASS, MIN_ROWS = 100, 10_000  # beyond that the calibration set, not the sample, limits an estimate


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """Counts over all items seen, and a random sample of their raw logits.

    Everything is of the raw, centred logits: no recalibration makes it out of date, and an estimate can fit its own
    calibration. Each item gets a random priority when it is added; the sample is the `capacity` items of the lowest
    ones (bottom-k sampling, Cohen and Kaplan, PODC 2007), so that however items were split over processes and in
    whatever order their traffic is merged, the sample is the same uniform one. Nothing is changed in place: `add` and
    `merge` return another Traffic. `add` copies the sample whenever a row enters it, full or not, so add some hundred
    rows at a time.

    Args: model, whose logits these are: any text that is equal for equal networks; capacity, the rows that the sample
        holds at most; num_items seen; score_sums `(C,)` of softmax(z~), and decisions `(C,)`, how often each class was
        the largest, over all items; priorities `(k,)`, rising; logits `(k, C)` float32, the sample in their order.
    """

    model: str
    capacity: int
    num_items: int
    score_sums: FloatArray
    decisions: IntArray
    priorities: Priorities
    logits: Rows

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise CalibrationError(f"a sample of traffic holds at least one row; got a capacity of {self.capacity}.")
        num_classes = self.num_classes
        rows = self.priorities.size
        if self.decisions.shape != (num_classes,) or self.logits.shape != (rows, num_classes):
            raise ShapeMismatch(
                f"traffic of {num_classes} classes needs decisions ({num_classes},) and logits ({rows}, "
                f"{num_classes}); got {self.decisions.shape} and {self.logits.shape}."
            )
        if rows != min(self.capacity, self.num_items) or int(self.decisions.sum()) != self.num_items:
            raise CalibrationError(
                f"traffic of {self.num_items} items and capacity {self.capacity} holds as many decisions and a full "
                f"sample; got {int(self.decisions.sum())} decisions and {rows} rows."
            )
        object.__setattr__(self, "score_sums", frozen(self.score_sums))
        for name in ("decisions", "priorities", "logits"):
            view = getattr(self, name).view()  # the sample is large: no copy, and the caller's own array stays writable
            view.setflags(write=False)
            object.__setattr__(self, name, view)

    @classmethod
    def none_yet(cls, model: str, num_classes: int, *, capacity: int | None = None) -> Traffic:
        """Of no item. Without a capacity: 100 rows a class, at least 10,000, at most 128 MiB.

        Raises: CalibrationError for fewer than two classes or no row.
        """
        if num_classes < 2:
            raise CalibrationError(f"traffic is of at least two classes; got {num_classes}.")
        if capacity is None:
            capacity = min(max(ROWS_PER_CLASS * num_classes, MIN_ROWS), MAX_BYTES // (4 * num_classes))
        return cls(
            model=model,
            capacity=capacity,
            num_items=0,
            score_sums=np.zeros(num_classes),
            decisions=np.zeros(num_classes, dtype=np.int64),
            priorities=np.empty(0, dtype=np.uint64),
            logits=np.empty((0, num_classes), dtype=np.float32),
        )

    @property
    def num_classes(self) -> int:
        return int(self.score_sums.size)

    @property
    def sample(self) -> RawLogits:
        """A uniform random sample of all items seen, without replacement."""
        return RawLogits(self.logits.astype(np.float64))

    def add(self, raw: RawLogits, rng: np.random.Generator) -> Traffic:
        """With the items of one batch more; rng draws their priorities, and must differ between processes.

        Raises: ShapeMismatch when the logits have another number of classes, InvalidLogits for a row that does not fit
            float32 once its mean is taken out.
        """
        if raw.values.shape[1] != self.num_classes:
            raise ShapeMismatch(f"the traffic is of {self.num_classes} classes; got logits {raw.values.shape}.")
        if raw.values.size and max(raw.values.max(), -raw.values.min()) > FLOAT32_MAX:
            row = int(np.abs(raw.values).max(axis=1).argmax())
            raise InvalidLogits(
                f"traffic keeps centred logits in float32; row {row} exceeds it by the distance of its classes. "
                "Leave the row out: no classifier means such logits."
            )
        num_items = raw.values.shape[0]
        priorities: Priorities = rng.integers(0, 2**64, size=(num_items,), dtype=np.uint64)
        drawn = np.arange(num_items)
        if self.priorities.size == self.capacity:
            drawn = np.flatnonzero(priorities < self.priorities.max())
        kept = self._lowest(priorities[drawn], raw.values[drawn].astype(np.float32))
        return replace(
            self,
            num_items=self.num_items + num_items,
            score_sums=self.score_sums + softmax(raw.values).sum(axis=0),
            decisions=self.decisions + np.bincount(raw.values.argmax(axis=1), minlength=self.num_classes),
            priorities=kept[0],
            logits=kept[1],
        )

    def merge(self, other: Traffic) -> Traffic:
        """Of the items of both, which must not overlap: associative and commutative.

        Raises: CalibrationError when the two are not of the same model, classes and capacity.
        """
        mine = (self.model, self.num_classes, self.capacity)
        theirs = (other.model, other.num_classes, other.capacity)
        if mine != theirs:
            raise CalibrationError(
                "traffic adds up for one model, number of classes and capacity; got "
                f"{mine} and {theirs}. Keep the traffic of each model apart."
            )
        kept = self._lowest(other.priorities, other.logits)
        return replace(
            self,
            num_items=self.num_items + other.num_items,
            score_sums=self.score_sums + other.score_sums,
            decisions=self.decisions + other.decisions,
            priorities=kept[0],
            logits=kept[1],
        )

    def _lowest(self, priorities: Priorities, logits: Rows) -> tuple[Priorities, Rows]:
        if not priorities.size:
            return self.priorities, self.logits
        together = np.concatenate([self.priorities, priorities])
        kept = np.argsort(together, kind="stable")[: self.capacity]
        return together[kept], np.concatenate([self.logits, logits])[kept]
