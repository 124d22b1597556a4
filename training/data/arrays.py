"""Images that come as arrays: the digits of scikit-learn, or an .npz."""

import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.copies import warn_of_same_images
from training.data.draws import assemble, long_tail, take
from training.data.errors import InvalidData, first_few
from training.data.items import describe
from training.data.splits import DataSplits, ImageSet

DIGITS_RATIO = 50.0
DIGITS_TEST, DIGITS_CALIBRATION = 40, 20  # images per class
MAX_CLASSES = 1_000_000
ARRAY_NAMES = {"train": "train", "test": "test", "calibration": "holdout", "validation": "validation"}  # in an .npz


def load_digits(ratio: float | None) -> DataSplits:
    """The 1,797 digits of scikit-learn, 8 x 8 pixels, cut to a long tail (50 where no ratio is given)."""
    from sklearn.datasets import load_digits as read

    ratio = DIGITS_RATIO if ratio is None else ratio
    digits = read()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    everything = ImageSet(images=np.repeat(grey[..., None], 3, axis=3), labels=digits.target.astype(np.int64))
    rest = int(np.bincount(everything.labels).min()) - DIGITS_TEST - DIGITS_CALIBRATION
    test, calibration, train, _ = take(everything.labels, (DIGITS_TEST, DIGITS_CALIBRATION, rest))
    rows = {"train": train[long_tail(everything.labels[train], 10, ratio)], "calibration": calibration, "test": test}
    return DataSplits(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=everything.subset(rows["train"]),
        calibration=everything.subset(calibration),
        test=everything.subset(test),
        drawn=f"{DIGITS_CALIBRATION} images of each class, set aside before training was cut to a long tail",
        imbalance_ratio=ratio,
        items={split: describe(chosen, "the digits of scikit-learn") for split, chosen in rows.items()},
    )


def load_npz(path: Path, ratio: float | None) -> DataSplits:
    """`x_` uint8 RGB `(N, H, W, 3)` and `y_` class indices `(N,)` for train and test, and where there are such sets for
    holdout (calibration) and validation; class_names where the classes have names.

    Raises: InvalidData, EmptyClass.
    """
    arrays = _read_arrays(path)
    required = [f"{kind}_{split}" for split in ("train", "test") for kind in "xy"]
    for split in ("holdout", "validation"):
        if f"x_{split}" in arrays or f"y_{split}" in arrays:
            required += [f"x_{split}", f"y_{split}"]
    missing = [name for name in required if name not in arrays]
    if missing:
        raise InvalidData(f"{path} must hold {', '.join(required)}; it lacks {', '.join(missing)}.")
    parts = {split: _image_set(arrays, name, path) for split, name in ARRAY_NAMES.items() if f"x_{name}" in arrays}
    sizes = {part.images.shape[1:] for part in parts.values()}
    if len(sizes) > 1:
        raise InvalidData(f"all images of {path} must have one size; got {sorted(sizes)}.")
    class_names = _class_names(arrays, parts, path)
    contents = {split: part.contents for split, part in parts.items()}
    warn_of_same_images(contents, {split: [f"image {row}" for row in range(len(parts[split]))] for split in parts})
    return assemble(
        name=path.stem,
        class_names=class_names,
        parts=dict(parts),
        positions={split: np.arange(len(part)) for split, part in parts.items()},
        sources={split: f"x_{ARRAY_NAMES[split]} in {path.name}" for split in parts},
        ratio=ratio,
        given="the held-out images of the data file",
    )


def _class_names(arrays: dict[str, NDArray[np.generic]], parts: dict[str, ImageSet], path: Path) -> tuple[str, ...]:
    num_classes = 1 + max(int(part.labels.max(initial=0)) for part in parts.values())
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or names.dtype.kind not in "US"):
        raise InvalidData(f"class_names of {path} must be a list of texts; got {names.dtype} {names.shape}.")
    if names is not None and names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8")
    class_names = tuple(map(str, range(num_classes) if names is None else names))
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise InvalidData(f"a classifier needs at least two different classes; {path} has {first_few(class_names)}.")
    if len(class_names) < num_classes:
        raise InvalidData(f"class_names of {path} has {len(class_names)} names, the labels go up to {num_classes - 1}.")
    return class_names


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:  # TypeError: one array, an .npy
        raise InvalidData(
            f"the data are `digits` or an .npz of plain arrays, a folder of images, a list of image files (.txt), or a "
            f"known data set by name (equipoise train --help); {path} cannot be read as an .npz: {error}."
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
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
        raise InvalidData(
            f"labels are class indices from 0, below {MAX_CLASSES:,}; y_{split} of {path} goes from {labels.min()} to "
            f"{labels.max()}."
        )
    return ImageSet(images=np.asarray(images), labels=labels.astype(np.int64))
