"""What every figure is made of: how sure each decision was, whether it was right, and what it cost.

Rows come as scores or, better, as one of the three types of logits, whose log scores do not underflow. They are read in
blocks, so that 50,000 items of 1,000 classes need no second copy.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.calibration.errors import CalibrationError, InvalidLabels, NotEnoughData, ShapeMismatch
from models.calibration.types import (
    AdjustedLogits,
    ClassPrior,
    DebiasedLogits,
    FloatArray,
    IntArray,
    RawLogits,
    log_softmax,
    numbers,
)

Scored = FloatArray | RawLogits | DebiasedLogits | AdjustedLogits  # an array holds scores, never logits
Binning = Literal["width", "mass"]

NUM_BINS = 15
LOG_OF_ZERO = float(np.log(np.nextafter(0.0, 1.0)))  # a score of exactly 0 costs 744 nats, so that figures stay finite
ENTRIES_AT_ONCE = 2_000_000
ROW_SUM_TOLERANCE = 1e-3  # scores of a float16 network


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Per item, `(N,)`: the decision, its score `confidence`, `correct` as 0 or 1, the loss -log score of the true
    class in nats, and the Brier score in [0, 2]."""

    decision: IntArray
    confidence: FloatArray
    correct: FloatArray
    loss: FloatArray
    brier: FloatArray


def outcomes(scored: Scored, labels: IntArray) -> Outcomes:
    """Raises: ShapeMismatch, InvalidLabels, NotEnoughData, CalibrationError for rows that are no probabilities."""
    check_labelled(_rows(scored), labels)
    decision = np.empty(labels.size, dtype=np.int64)
    confidence, loss, brier = (np.empty(labels.size) for _ in range(3))
    for part, scores, log_score in score_blocks(scored, labels):
        truth = np.arange(len(scores)), labels[part]
        decision[part] = scores.argmax(axis=1)
        confidence[part] = scores.max(axis=1)
        loss[part] = -log_score
        gaps = scores.copy()
        gaps[truth] -= 1.0
        brier[part] = np.einsum("nc,nc->n", gaps, gaps)
    correct = (decision == labels).astype(np.float64)
    return Outcomes(decision=decision, confidence=confidence, correct=correct, loss=loss, brier=brier)


def score_blocks(scored: Scored, labels: IntArray) -> Iterator[tuple[slice, FloatArray, FloatArray]]:
    """Blocks of rows: which rows, their scores `(b, C)` and the log score of each row's true class `(b,)`.

    Raises: CalibrationError for an array whose rows are no probabilities.
    """
    rows = _rows(scored)
    at_once = max(1, ENTRIES_AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), at_once):
        part = slice(start, min(start + at_once, len(rows)))
        block = np.asarray(rows[part], dtype=np.float64)
        truth = np.arange(len(block)), labels[part]
        if isinstance(scored, np.ndarray):
            _check_probabilities(block, start)
            with np.errstate(divide="ignore"):
                scores, log_score = block, np.log(block[truth])
        else:
            log_scores = log_softmax(block)
            scores, log_score = np.exp(log_scores), log_scores[truth]
        yield part, scores, np.where(np.isneginf(log_score), LOG_OF_ZERO, log_score)


def class_gaps(scored: Scored, labels: IntArray, weights: FloatArray, num_bins: int = NUM_BINS) -> FloatArray:
    """Of each class and bin `(C, num_bins)`: the weighted sum of score of the class minus whether it is the true one.

    Raises: as `outcomes`, and CalibrationError for no bins.
    """
    rows = _rows(scored)
    check_labelled(rows, labels)
    edges, num_classes = bin_edges(num_bins), rows.shape[1]
    sums = np.zeros(num_classes * num_bins)
    for part, scores, _ in score_blocks(scored, labels):
        cells = np.searchsorted(edges, scores, side="left") + np.arange(num_classes) * num_bins
        gaps = scores.copy()
        gaps[np.arange(len(scores)), labels[part]] -= 1.0
        gaps *= weights[part, None]
        sums += np.bincount(cells.ravel(), weights=gaps.ravel(), minlength=sums.size)
    return sums.reshape(num_classes, num_bins)


def target_weights(labels: IntArray, target: ClassPrior) -> FloatArray:
    """What each item weighs where the classes follow `target`: `target_y / m_y` with m the counts of these labels.

    Exact for label shift; no item is drawn twice or thrown away. The mass of classes without an item is lost: the
    weights `(N,)` sum to the mass of those present.

    Raises: InvalidLabels for a label that the prior does not have, NotEnoughData.
    """
    check_labels(labels, target.num_classes)
    present = np.bincount(labels, minlength=target.num_classes)
    return np.asarray(target.probs[labels] / present[labels], dtype=np.float64)


def checked_weights(weights: FloatArray | None, num_items: int) -> FloatArray:
    """Ones where there are none.

    Raises: ShapeMismatch, CalibrationError for a negative or infinite weight and where all are 0.
    """
    if weights is None:
        return np.ones(num_items)
    array = numbers(weights, CalibrationError, "weights are numbers").astype(np.float64)
    if array.shape != (num_items,):
        raise ShapeMismatch(f"weights are ({num_items},), one for each item; got {array.shape}.")
    if not array.size:
        raise NotEnoughData("metrics need at least one labelled example; got none.")
    if not np.isfinite(array).all() or array.min() < 0 or not array.any():
        raise CalibrationError("weights are finite, not negative, and not all 0; leave them out to weigh items alike.")
    return array


def bin_edges(num_bins: int) -> FloatArray:
    """The inner edges of equal-width bins (low, high] of [0, 1], `(num_bins - 1,)`. Raises: CalibrationError."""
    if num_bins < 1:
        raise CalibrationError(f"scores need at least one bin; got {num_bins}.")
    return np.arange(1, num_bins) / num_bins


def bins_of(confidence: FloatArray, weights: FloatArray, *, binning: Binning = "width", num_bins: int) -> IntArray:
    """The bin of each item `(N,)`, from 0.

    `width`: bins (low, high] of equal width. `mass`: bins of equal weight, as far as ties allow; an item lies where the
    weight of all items of its confidence or less ends, so that equal items share a bin and their order says nothing.

    Raises: CalibrationError for no bins or another binning.
    """
    edges = bin_edges(num_bins)
    if binning == "width":
        return np.searchsorted(edges, confidence, side="left").astype(np.int64)
    if binning != "mass":
        raise CalibrationError(f"bins have equal `width` or equal `mass`; got {binning!r}.")
    if not confidence.size:
        return np.zeros(0, dtype=np.int64)
    _, level = np.unique(confidence, return_inverse=True)
    up_to = np.bincount(level, weights=weights).cumsum()
    share = up_to * num_bins / max(up_to[-1], np.finfo(np.float64).tiny)
    by_level = np.clip(np.ceil(share - 1e-9).astype(np.int64) - 1, 0, num_bins - 1)  # 1e-9: rounding of the sum
    return np.asarray(by_level[level], dtype=np.int64)


def check_labelled(rows: FloatArray, labels: IntArray) -> None:
    """Raises: ShapeMismatch, InvalidLabels, NotEnoughData."""
    if rows.ndim != 2 or labels.shape != rows.shape[:1]:
        raise ShapeMismatch(f"scores and logits are (N, C) and labels (N,); got {rows.shape} and {labels.shape}.")
    if np.isnan(rows).any():
        raise CalibrationError(f"scores and logits hold no NaN; row {int(np.isnan(rows).any(axis=1).argmax())} does.")
    check_labels(labels, rows.shape[1])


def check_labels(labels: IntArray, num_classes: int | None = None) -> None:
    """Raises: InvalidLabels, NotEnoughData."""
    if not labels.size:
        raise NotEnoughData("metrics need at least one labelled example; got none.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise InvalidLabels(f"labels are class indices, integers from 0; got {labels.dtype} from {labels.min()}.")
    if num_classes is not None and labels.max() >= num_classes:
        raise InvalidLabels(f"labels must lie in [0, {num_classes}); got {labels.min()} to {labels.max()}.")


def _rows(scored: Scored) -> FloatArray:
    return scored if isinstance(scored, np.ndarray) else scored.values


def _check_probabilities(block: FloatArray, start: int) -> None:
    sound = (block.min(axis=1) >= 0) & (np.abs(block.sum(axis=1) - 1.0) <= ROW_SUM_TOLERANCE)  # False for NaN too
    if not sound.all():
        row = int(np.argmin(sound))
        raise CalibrationError(
            f"scores are probabilities, each row not negative and of sum 1; row {start + row} sums to "
            f"{block[row].sum():.6g}, its least is {block[row].min():.6g}. Pass logits as RawLogits, DebiasedLogits or "
            "AdjustedLogits."
        )
