"""List files: one image a line, `path label`, for training and test, and where there are such sets validation and
calibration. The label, an index from 0, is what follows the last space; a path may hold spaces."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from training.data.draws import assemble
from training.data.errors import InvalidData, first_few
from training.data.files import Corrupt, Listing, read_files
from training.data.splits import DataSplits

MAX_DIGITS = 9  # of a label


def load_lists(
    lists: dict[str, Path],
    ratio: float | None,
    *,
    root: Path,
    class_names: Path | Sequence[str] | None,
    image_size: tuple[int, int],
    corrupt: Corrupt,
) -> DataSplits:
    """Images that lists name.

    Args: lists, by the name of the split. root, where relative paths begin. class_names in the order of the labels, or
        a text file with one a line; without them the classes are called by their index.
    Raises: InvalidData, EmptyClass.
    """
    listings = {split: read_list(path, root, split) for split, path in lists.items()}
    names = _read_names(class_names) if isinstance(class_names, Path) else class_names
    complete = check_labels(listings) if names is None else _checked_names(tuple(names), listings)
    read = read_files(listings, root, image_size=image_size, corrupt=corrupt)
    return assemble(
        name=lists["train"].stem,
        class_names=complete,
        parts=read.parts,
        positions=read.positions,
        sources={split: listing.source for split, listing in listings.items()},
        ratio=ratio,
        given=f"the images of {lists['calibration'].name}" if "calibration" in lists else "",
        skipped=read.skipped,
    )


def read_list(path: Path, root: Path, split: str) -> Listing:
    """Paths below `root` become relative to it. Blank lines are passed over; the position of an image counts the
    others, from 0. Raises: InvalidData with the lines that cannot be read.
    """
    paths: list[str] = []
    labels: list[int] = []
    wrong: list[str] = []
    for number, line in enumerate(_lines(path), start=1):
        name, _, label = line.strip().replace("\t", " ").rpartition(" ")
        if not name and not label:
            continue
        if not name.strip() or not (label.isascii() and label.isdigit() and len(label) <= MAX_DIGITS):
            wrong.append(f"line {number} is {line.strip()[:80]!r}")
            continue
        paths.append(_relative(line.strip()[: -len(label)].strip(), root))
        labels.append(int(label))
    if wrong:
        raise InvalidData(
            f"each line of a list is a path, a space and a label, a whole number from 0; in {path.name} "
            f"{first_few(wrong)}."
        )
    if not paths:
        raise InvalidData(f"a list names at least one image; {path} names none.")
    return Listing(
        paths=tuple(paths), labels=np.array(labels, dtype=np.int64), source=f"the lines of {path.name} ({split})"
    )


def check_labels(listings: dict[str, Listing]) -> tuple[str, ...]:
    """The indices as class names. Raises: InvalidData for labels with a gap, which mostly means labels from 1."""
    used = np.unique(np.concatenate([listing.labels for listing in listings.values()]))
    gap = np.flatnonzero(used != np.arange(used.size))
    if gap.size:
        raise InvalidData(
            f"labels count from 0 without a gap; the lists use {used.size} labels from {used[0]} to {used[-1]}, and "
            f"label {gap[0]} is not among them. Renumber them, or give class_names if the class has no images yet."
        )
    if used.size < 2:
        raise InvalidData("a classifier needs at least two classes; the lists use label 0 alone.")
    return tuple(map(str, used.tolist()))


def _checked_names(names: tuple[str, ...], listings: dict[str, Listing]) -> tuple[str, ...]:
    for split, listing in listings.items():
        largest = int(listing.labels.max())
        if largest >= len(names):
            raise InvalidData(
                f"every label needs a class name; the {split} list has label {largest}, class_names has {len(names)} "
                "names. Add the missing names in the order of the labels."
            )
    if len(set(names)) < len(names) or len(names) < 2:
        raise InvalidData(f"class_names are at least two different names; got {first_few(names)}.")
    return names


def _read_names(path: Path) -> tuple[str, ...]:
    return tuple(name for line in _lines(path) if (name := line.strip()))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")  # a \r before it goes with the other white space
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"a list is a text file in UTF-8; {path} cannot be read as one: {error}.") from error


def _relative(name: str, root: Path) -> str:
    inside = Path(os.path.normpath(name))  # two spellings of one path are one file
    full = Path(os.path.normpath(root / inside))
    base = Path(os.path.normpath(root))
    return full.relative_to(base).as_posix() if full.is_relative_to(base) else inside.as_posix()
