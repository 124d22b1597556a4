"""Labelled images for training: the digits of scikit-learn, or an .npz; splits that share no image."""

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import CalibrationError, EmptyClass
from models.calibration.types import IntArray
from models.images import UInt8Array

DIGITS_RATIO = 50.0
DIGITS_TEST, DIGITS_CALIBRATION = 40, 20  # images per class
HOLDOUT = 0.1  # of each class with enough images, where the data bring no held-out set
MIN_FOR_HOLDOUT = 3
SEED = 0


class InvalidData(CalibrationError):
    """A data set that cannot be trained on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """uint8 RGB images `(N, H, W, 3)` and labels `(N,)`."""

    images: UInt8Array
    labels: IntArray

    def subset(self, rows: NDArray[np.int64]) -> "ImageSet":
        return ImageSet(images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSplits:
    """Three sets without a common image. `drawn` says how the calibration set was drawn; `digest` is the SHA-256 of
    all pixels and labels."""

    name: str
    class_names: tuple[str, ...]
    train: ImageSet
    calibration: ImageSet
    test: ImageSet
    drawn: str
    imbalance_ratio: float | None  # that the training images were cut to; None for data as they came
    validation: ImageSet | None = None
    items: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = self.class_counts
        if not counts.all():
            empty = int(counts.argmin())
            raise EmptyClass(
                f"every class needs a training image; class {self.class_names[empty]!r} (index {empty}) has none. "
                "Add some, or take the class out of the data."
            )

    @property
    def class_counts(self) -> IntArray:
        """Training images a class, `(C,)`."""
        return np.bincount(self.train.labels, minlength=len(self.class_names)).astype(np.int64)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.images.shape[1], self.train.images.shape[2]

    @property
    def digest(self) -> str:
        total = hashlib.sha256()
        for part in (self.train, self.calibration, self.test):
            total.update(np.ascontiguousarray(part.images))
            total.update(np.ascontiguousarray(part.labels))
        return total.hexdigest()


def load(source: str, imbalance_ratio: float | None = None) -> DataSplits:
    """`digits`, or the path of an .npz; with a ratio, the training images are cut to a long tail first.

    Raises: InvalidData, EmptyClass.
    """
    if imbalance_ratio is not None and not imbalance_ratio >= 1:
        raise InvalidData(f"an imbalance ratio is largest over smallest class, at least 1; got {imbalance_ratio}.")
    if source == "digits":
        return _digits(DIGITS_RATIO if imbalance_ratio is None else imbalance_ratio)
    return _npz(Path(source), imbalance_ratio)


def long_tail_counts(num_classes: int, largest: int, ratio: float) -> IntArray:
    """n_c = floor(largest * ratio^(-c / (C - 1))), at least 1: the exponential profile of Cui et al., CVPR 2019."""
    exponent = -np.arange(num_classes) / (num_classes - 1)
    return np.maximum(np.floor(largest * ratio**exponent + 1e-9), 1).astype(np.int64)


def _digits(ratio: float) -> DataSplits:
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything = ImageSet(images=np.repeat(grey[..., None], 3, axis=3), labels=digits.target.astype(np.int64))
    rest = int(np.bincount(everything.labels).min()) - DIGITS_TEST - DIGITS_CALIBRATION
    test, calibration, train, _ = _take(everything, (DIGITS_TEST, DIGITS_CALIBRATION, rest))
    return DataSplits(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=_long_tail(train, 10, ratio),
        calibration=calibration,
        test=test,
        drawn=f"{DIGITS_CALIBRATION} images of each class, set aside before training was cut to a long tail",
        imbalance_ratio=ratio,
    )


def _take(data: ImageSet, per_class: tuple[int, ...]) -> list[ImageSet]:
    """Disjoint sets with so many images of each class, and the rest."""
    rng = np.random.default_rng(SEED)
    parts: list[list[NDArray[np.int64]]] = [[] for _ in range(len(per_class) + 1)]
    for label in np.unique(data.labels):
        rows = rng.permutation(np.flatnonzero(data.labels == label))
        for part, piece in zip(parts, np.split(rows, np.cumsum(per_class)), strict=True):
            part.append(piece)
    return [data.subset(np.concatenate(part)) for part in parts]


def _long_tail(data: ImageSet, num_classes: int, ratio: float) -> ImageSet:
    """The first images of each class, by the largest profile of this ratio that every class can fill."""
    available = np.bincount(data.labels, minlength=num_classes)
    largest = int(np.min(available * ratio ** (np.arange(num_classes) / (num_classes - 1))))
    profile = np.minimum(long_tail_counts(num_classes, largest, ratio), available)
    rows = [np.flatnonzero(data.labels == label)[:count] for label, count in enumerate(profile)]
    return data.subset(np.concatenate(rows))


def _npz(path: Path, ratio: float | None) -> DataSplits:
    arrays = _read_arrays(path)
    required = ["x_train", "y_train", "x_test", "y_test"]
    if "x_holdout" in arrays or "y_holdout" in arrays:
        required += ["x_holdout", "y_holdout"]
    missing = [name for name in required if name not in arrays]
    if missing:
        raise InvalidData(f"{path} must hold {', '.join(required)}; it lacks {', '.join(missing)}.")
    parts = {split: _image_set(arrays, split, path) for split in ("train", "test", "holdout") if f"x_{split}" in arrays}
    sizes = {part.images.shape[1:] for part in parts.values()}
    if len(sizes) > 1:
        raise InvalidData(f"all images of {path} must have one size; got {sorted(sizes)}.")
    num_classes = 1 + max(int(part.labels.max(initial=0)) for part in parts.values())
    names = arrays.get("class_names")
    class_names = tuple(map(str, range(num_classes) if names is None else names.tolist()))
    if len(class_names) < num_classes:
        raise InvalidData(f"class_names of {path} has {len(class_names)} names, the labels go up to {num_classes - 1}.")
    train = parts["train"] if ratio is None else _long_tail(parts["train"], len(class_names), ratio)
    calibration = parts.get("holdout")
    if calibration is not None and calibration.labels.size:
        drawn = "the held-out images of the data file"
    else:
        calibration, train = _hold_out(train)
        drawn = f"{HOLDOUT:.0%} of each class with at least {MIN_FOR_HOLDOUT} training images, taken out of training"
    return DataSplits(
        name=path.stem,
        class_names=class_names,
        train=train,
        calibration=calibration,
        test=parts["test"],
        drawn=drawn,
        imbalance_ratio=ratio,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # TypeError: one array, an .npy
        raise InvalidData(
            f"the data are `digits` or an .npz of plain arrays; {path} cannot be read as one: {error}."
        ) from error


def _image_set(arrays: dict[str, NDArray[np.generic]], split: str, path: Path) -> ImageSet:
    images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise InvalidData(
            f"x_{split} of {path} must be uint8 RGB images (N, H, W, 3); got {images.dtype} {images.shape}."
        )
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise InvalidData(
            f"y_{split} of {path} must be {images.shape[0]} whole numbers, one an image; got {labels.dtype} "
            f"{labels.shape}."
        )
    if labels.size and int(labels.min()) < 0:
        raise InvalidData(f"labels are class indices from 0; y_{split} of {path} holds {labels.min()}.")
    return ImageSet(images=np.asarray(images), labels=labels.astype(np.int64))


def _hold_out(train: ImageSet) -> tuple[ImageSet, ImageSet]:
    """Held-out images, and what is left to train on."""
    rng = np.random.default_rng(SEED)
    held: list[NDArray[np.int64]] = []
    for label in np.unique(train.labels):
        rows = rng.permutation(np.flatnonzero(train.labels == label))
        if rows.size >= MIN_FOR_HOLDOUT:
            held.append(rows[: max(1, int(HOLDOUT * rows.size))])
    chosen = np.concatenate(held) if held else np.empty(0, dtype=np.int64)
    left = np.setdiff1d(np.arange(train.labels.size), chosen)
    return train.subset(chosen), train.subset(left)
