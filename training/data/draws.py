"""How images are chosen: long tails and held-out sets. All of it is decided by the labels and a fixed seed."""

import numpy as np
from numpy.typing import NDArray

from models.calibration.types import IntArray
from training.data.copies import copied
from training.data.errors import InvalidData
from training.data.items import describe
from training.data.splits import DataSplits, Images

HOLDOUT = 0.1  # of each class with enough images, where the data bring no held-out set
MIN_FOR_HOLDOUT = 3
HELD_OUT = f"{HOLDOUT:.0%} of each class with at least {MIN_FOR_HOLDOUT} training images, taken out of training"
SEED = 0


def long_tail_counts(num_classes: int, largest: int, ratio: float) -> IntArray:
    """n_c = floor(largest * ratio^(-c / (C - 1))), at least 1: the exponential profile of Cui et al., CVPR 2019."""
    exponent = -np.arange(num_classes) / max(num_classes - 1, 1)
    return np.maximum(np.floor(largest * ratio**exponent + 1e-9), 1).astype(np.int64)


def long_tail(labels: IntArray, num_classes: int, ratio: float) -> IntArray:
    """Rows of the first images of each class, by the largest profile of this ratio that every class can fill; the
    classes with more images come first in it, classes of one size in their order.

    Raises: InvalidData for a ratio that leaves a class empty.
    """
    available = np.bincount(labels, minlength=num_classes)
    ranked = np.argsort(-available, kind="stable")
    steps = np.arange(num_classes) / max(num_classes - 1, 1)
    largest = int(np.min(available[ranked] * ratio**steps) + 1e-9)
    if largest < ratio:
        raise InvalidData(
            f"a long tail leaves every class an image; cut to the imbalance ratio {ratio:g}, the largest class of "
            f"these data would have {largest} images. Choose a smaller ratio, or none."
        )
    counts = np.empty(num_classes, dtype=np.int64)
    counts[ranked] = np.minimum(long_tail_counts(num_classes, largest, ratio), available[ranked])
    return np.concatenate([np.flatnonzero(labels == label)[:count] for label, count in enumerate(counts)])


def take(labels: IntArray, per_class: tuple[int, ...]) -> list[IntArray]:
    """Rows of disjoint sets with so many images of each class, and of the rest."""
    rng = np.random.default_rng(SEED)
    parts: list[list[IntArray]] = [[] for _ in range(len(per_class) + 1)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        for part, piece in zip(parts, np.split(rows, np.cumsum(per_class)), strict=True):
            part.append(piece)
    return [np.concatenate(part) for part in parts]


def hold_out(labels: IntArray, twice: NDArray[np.bool_] | None = None) -> tuple[IntArray, IntArray]:
    """Rows of the held-out images, and of what is left to train on; an image that is there `twice (N,)` stays with its
    copy in training."""
    rng = np.random.default_rng(SEED)
    held: list[IntArray] = []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        if rows.size >= MIN_FOR_HOLDOUT:
            single = rows if twice is None else rows[~twice[rows]]
            held.append(single[: max(1, int(HOLDOUT * rows.size))])
    chosen = np.concatenate(held) if held else np.empty(0, dtype=np.int64)
    return chosen, np.setdiff1d(np.arange(labels.size), chosen)


def assemble(
    *,
    name: str,
    class_names: tuple[str, ...],
    parts: dict[str, Images],
    positions: dict[str, IntArray],
    sources: dict[str, str],
    ratio: float | None,
    given: str,
    skipped: tuple[str, ...] = (),
) -> DataSplits:
    """The splits of data that come with a training and a test set, cut to a long tail where a ratio is given.

    Args: by the name of the split: parts, the images; positions, their positions in the source; sources, its name in
        words. given, what a calibration set that the data bring is called; without one it is taken out of training.
    Raises: EmptyClass, InvalidData.
    """
    if not len(parts["test"]):
        raise InvalidData("a training needs test images to report on; the test set has none. Add some.")
    parts = {split: part for split, part in parts.items() if split in ("train", "test") or len(part)}
    labels = parts["train"].labels
    rows = np.arange(labels.size) if ratio is None else long_tail(labels, len(class_names), ratio)
    chosen = {split: np.arange(len(part)) for split, part in parts.items()} | {"train": rows}
    come_from = {split: split for split in parts}
    drawn = given
    if "calibration" not in parts:
        held, left = hold_out(labels[rows], copied(parts["train"].subset(rows).contents))
        chosen |= {"train": rows[left], "calibration": rows[held]}
        come_from["calibration"] = "train"
        drawn = HELD_OUT
    return DataSplits(
        name=name,
        class_names=class_names,
        drawn=drawn,
        imbalance_ratio=ratio,
        skipped=skipped,
        items={
            split: describe(positions[origin][chosen[split]], sources[origin]) for split, origin in come_from.items()
        },
        **_subsets(parts, chosen, come_from),
    )


def _subsets(parts: dict[str, Images], chosen: dict[str, IntArray], come_from: dict[str, str]) -> dict[str, Images]:
    made: dict[str, Images] = {}
    for split, origin in come_from.items():
        whole = np.array_equal(chosen[split], np.arange(len(parts[origin])))
        made[split] = parts[origin] if whole else parts[origin].subset(chosen[split])  # a subset is a copy
    return made
