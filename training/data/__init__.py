"""Labelled images for training, in splits that share no image: arrays, a folder, list files, or a known data set."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.arrays import load_digits, load_npz
from training.data.cifar import TITLES, load_cifar
from training.data.draws import long_tail_counts
from training.data.errors import InvalidData, LeftOut, SameImages
from training.data.files import Corrupt
from training.data.folders import load_folder
from training.data.lists import load_lists
from training.data.official import IMAGE_SIZE, OFFICIAL, load_official
from training.data.splits import DataSplits, ImageFiles, Images, ImageSet

__all__ = [
    "Corrupt",
    "DataSplits",
    "ImageFiles",
    "ImageSet",
    "Images",
    "InvalidData",
    "LeftOut",
    "SameImages",
    "load",
    "long_tail_counts",
]

LIST_SUFFIX = ".txt"
OF_FILES = {"image_size", "corrupt"}
OF_LISTS = {"root", "test_list", "calibration_list", "validation_list", "class_names"}
OPTIONS: dict[str, set[str]] = {  # by the kind of source, what it can be asked for
    "digits": {"imbalance_ratio"},
    "an .npz": {"imbalance_ratio"},
    "an image folder": {"imbalance_ratio"} | OF_FILES,
    "a list of images": {"imbalance_ratio"} | OF_FILES | OF_LISTS,
    "CIFAR": {"imbalance_ratio", "root", "download", "calibration_per_class"},
    "an official long-tailed data set": {"root"} | OF_FILES,
}


def load(
    source: str,
    imbalance_ratio: float | None = None,
    *,
    image_size: int | tuple[int, int] | None = None,
    root: Path | str | None = None,
    corrupt: Corrupt | None = None,
    download: bool = False,
    calibration_per_class: int | None = None,
    test_list: Path | str | None = None,
    calibration_list: Path | str | None = None,
    validation_list: Path | str | None = None,
    class_names: Path | str | Sequence[str] | None = None,
) -> DataSplits:
    """The data for a training and its calibration.

    Args:
        source: `digits`; the path of an .npz; a folder with `train/<class>/` and `test/<class>/`; a list of training
            images (.txt, `path label` a line), together with test_list; `cifar10` or `cifar100`; `imagenet-lt`,
            `places-lt` or `inaturalist-2018`.
        imbalance_ratio: largest over smallest class that the training images are cut to; the digits have 50 without it.
        image_size: side, or height and width, in pixels that images of a folder or a list are scaled to.
        root: the folder of a known data set; of a list, where its relative paths begin (its own folder without it).
        corrupt: "stop" (as without it) at files that are no images, or "skip" them.
        download: fetch CIFAR where root lacks it.
        calibration_per_class: images of each class for calibration, of those that CIFAR's long tail leaves over.
        test_list, calibration_list, validation_list: lists like the source.
        class_names: of a list, in the order of the labels; or a text file with one a line.
    Raises: InvalidData, EmptyClass.
    """
    given: dict[str, Any] = {
        "imbalance_ratio": imbalance_ratio,
        "image_size": image_size,
        "root": root,
        "corrupt": corrupt,
        "download": download or None,
        "calibration_per_class": calibration_per_class,
        "test_list": test_list,
        "calibration_list": calibration_list,
        "validation_list": validation_list,
        "class_names": class_names,
    }
    kind = _kind(source, test_list)
    _check(kind, {name: value for name, value in given.items() if value is not None})
    base = None if root is None else Path(root)
    policy: Corrupt = corrupt or "stop"
    if kind == "digits":
        return load_digits(imbalance_ratio)
    if kind == "an .npz":
        return load_npz(Path(source), imbalance_ratio)
    if kind == "CIFAR":
        return load_cifar(
            source,
            imbalance_ratio,
            root=_required_root(base, source),
            download=download,
            calibration_per_class=calibration_per_class,
        )
    if kind == "an official long-tailed data set":
        size = IMAGE_SIZE if image_size is None else _size(image_size, kind)
        return load_official(OFFICIAL[source], root=_required_root(base, source), image_size=size, corrupt=policy)
    size = _size(image_size, kind)
    if kind == "an image folder":
        return load_folder(Path(source), imbalance_ratio, image_size=size, corrupt=policy)
    lists = {"train": source, "test": test_list, "calibration": calibration_list, "validation": validation_list}
    return load_lists(
        {split: Path(path) for split, path in lists.items() if path is not None},
        imbalance_ratio,
        root=Path(source).parent if base is None else base,
        class_names=Path(class_names) if isinstance(class_names, str) else class_names,
        image_size=size,
        corrupt=policy,
    )


def _kind(source: str, test_list: object) -> str:
    if source == "digits":
        return "digits"
    if source in TITLES:
        return "CIFAR"
    if source in OFFICIAL:
        return "an official long-tailed data set"
    if Path(source).is_dir():
        return "an image folder"
    if not Path(source).exists() and not source.endswith((".npz", LIST_SUFFIX)):
        raise InvalidData(
            f"there is no data set, file or folder named {source}. Known by name: "
            f"{', '.join(['digits', *TITLES, *OFFICIAL])}."
        )
    return "a list of images" if test_list is not None or source.endswith(LIST_SUFFIX) else "an .npz"


def _check(kind: str, given: dict[str, Any]) -> None:
    unknown = sorted(given.keys() - OPTIONS[kind])
    if unknown:
        raise InvalidData(
            f"{kind} takes {', '.join(sorted(OPTIONS[kind]))}; {', '.join(unknown)} would change nothing here. "
            "Leave it out."
        )
    ratio, spare = given.get("imbalance_ratio", 1), given.get("calibration_per_class", 1)
    if not 1 <= ratio < math.inf:
        raise InvalidData(f"an imbalance ratio is largest over smallest class, at least 1 and finite; got {ratio}.")
    if spare < 1:
        raise InvalidData(f"calibration_per_class is a number of images, at least 1; got {spare}.")
    if given.get("corrupt", "stop") not in ("stop", "skip"):
        raise InvalidData(f"corrupt is 'stop' or 'skip'; got {given['corrupt']!r}.")
    if kind == "a list of images" and "test_list" not in given:
        raise InvalidData("a list of training images needs a list of test images beside it (--test-list).")


def _size(image_size: int | tuple[int, int] | None, kind: str) -> tuple[int, int]:
    if image_size is None:
        raise InvalidData(
            f"{kind} needs an image size (--image-size), the side in pixels that images are scaled to and the network "
            "takes: 32 or 64 for small images, 224 for photographs."
        )
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if len(size) != 2 or min(size) < 1:
        raise InvalidData(f"image_size is a side, or height and width, of at least 1 pixel; got {image_size}.")
    return size


def _required_root(root: Path | None, source: str) -> Path:
    if root is None:
        raise InvalidData(f"{source} needs the folder where its files lie (--root).")
    return root
