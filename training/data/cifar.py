"""CIFAR-10 and CIFAR-100 by name through torchvision, and the long-tailed subset that most papers use.

The subset is that of Cao et al. (LDAM, NeurIPS 2019), which NBN, PaCo and BCL share: n_j = int(n_max ratio^(-j/(C-1))),
numpy's legacy generator with seed 0, the classes in ascending order, of each the first n_j of its shuffled images.
torchvision reads the official batches only (it compares their MD5), so the subset is the published one.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from models.calibration.types import IntArray
from training.data.draws import HELD_OUT, hold_out
from training.data.errors import InvalidData
from training.data.items import describe
from training.data.splits import DataSplits, ImageSet

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
SUBSET_SEED = 0


def load_cifar(
    name: str, ratio: float | None, *, root: Path, download: bool, calibration_per_class: int | None
) -> DataSplits:
    """`cifar10` or `cifar100`; `root` holds the folder of the official batches (`cifar-10-batches-py`).

    Args: ratio, of the long tail, or None for all images. download, fetch what `root` lacks. calibration_per_class, so
        many images of each class that the subset leaves over, the same ones for every ratio; a class that leaves too
        few over gives up training images, and the name says so. Without it 10 % of each class is held out of training.
    Raises: InvalidData.
    """
    title = TITLES[name]
    train, class_names = _read(name, root, train=True, download=download)
    test, _ = _read(name, root, train=False, download=download)
    counts = subset_counts(np.bincount(train.labels), ratio)
    rows, rest = subset_rows(train.labels, counts, calibration_per_class or 0)
    short = int((np.bincount(train.labels[rows], minlength=counts.size) < counts).sum())
    label = f"{title}, all images" if ratio is None else f"{title}-LT, imbalance ratio {ratio:g}, LDAM seed-0 subset"
    if calibration_per_class is None:
        held, left = hold_out(train.labels[rows])
        rows, rest = rows[left], rows[held]
        label, drawn = f"{label} without 10 % held out for calibration", HELD_OUT
    else:
        drawn = f"{calibration_per_class} images of each class that the training images leave over"
        if short and ratio is None:
            label = f"{title} without {calibration_per_class} images of each class, held out for calibration"
        elif short:
            label = (
                f"{title}-LT, imbalance ratio {ratio:g}, not the standard subset: the {short} largest classes gave "
                "images to calibration"
            )
    return DataSplits(
        name=label,
        class_names=class_names,
        train=train.subset(rows),
        calibration=train.subset(rest),
        test=test,
        drawn=drawn,
        imbalance_ratio=ratio,
        items={
            "train": describe(rows, f"the official {title} training images"),
            "calibration": describe(rest, f"the official {title} training images"),
            "test": describe(np.arange(len(test)), f"the official {title} test images"),
        },
    )


def subset_counts(available: IntArray, ratio: float | None) -> IntArray:
    """Images of each class, `(C,)`, from those available. Raises: InvalidData for a ratio that leaves a class empty."""
    if ratio is None:
        return available
    last = available.size - 1
    counts = np.array([int(available.max() * ratio ** (-label / last)) for label in range(last + 1)])
    if not counts.all():
        raise InvalidData(
            f"a long tail leaves every class an image; with {available.max()} images in the largest class the "
            f"imbalance ratio is at most {available.max()}; got {ratio:g}."
        )
    return np.minimum(counts, available)


def subset_rows(labels: IntArray, counts: IntArray, spare: int) -> tuple[IntArray, IntArray]:
    """Rows of the subset, class after class, and of `spare` images of each class that are not in it.

    The spare ones are the last of the shuffled class, whatever the counts. Raises: InvalidData for too many of them.
    """
    available = np.bincount(labels)
    if spare >= available.min():
        raise InvalidData(
            f"calibration_per_class must leave training images; the smallest class has {available.min()} images, got "
            f"{spare}."
        )
    draw = np.random.RandomState(SUBSET_SEED)  # legacy: the published subset was drawn with it
    rows, rest = [], []
    for label, count in enumerate(counts):
        order = np.flatnonzero(labels == label)
        draw.shuffle(order)
        rows.append(order[: min(count, order.size - spare)])
        rest.append(order[order.size - spare :])
    return np.concatenate(rows), np.concatenate(rest)


def _read(name: str, root: Path, *, train: bool, download: bool) -> tuple[ImageSet, tuple[str, ...]]:
    from torchvision import datasets

    kind: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn at the pickles of Python 2 that the batches are
            warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
            data = kind(root, train=train, download=download)
    except (RuntimeError, OSError) as error:
        raise InvalidData(
            f"{TITLES[name]} is read from its official files in {root / kind.base_folder}, which are not there or not "
            f"complete ({error}). Fetch them (--download), or unpack {kind.filename} into {root}."
        ) from error
    images = ImageSet(images=np.ascontiguousarray(data.data), labels=np.array(data.targets, dtype=np.int64))
    return images, tuple(data.classes)
