"""A folder of images: `train/<class>/…` and `test/<class>/…`, and where there are such sets `calibration/` and
`validation/`. The classes are the folder names, sorted as text."""

from pathlib import Path

import numpy as np

from training.data.draws import assemble
from training.data.errors import InvalidData, first_few
from training.data.files import Corrupt, Listing, read_files
from training.data.splits import DataSplits

SPLITS = ("train", "test", "calibration", "validation")


def load_folder(folder: Path, ratio: float | None, *, image_size: tuple[int, int], corrupt: Corrupt) -> DataSplits:
    """Raises: InvalidData, EmptyClass."""
    splits = [split for split in SPLITS if (folder / split).is_dir()]
    missing = [split for split in SPLITS[:2] if split not in splits]
    if missing:
        raise InvalidData(
            f"an image folder holds train/<class>/ and test/<class>/ (and, if you like, calibration/ and validation/); "
            f"{folder} has no folder named {' and '.join(missing)}."
        )
    classes = {split: _class_folders(folder / split) for split in splits}
    class_names = tuple(sorted(classes["train"]))
    _check_classes(classes)
    listings = {split: _listing(folder, split, class_names) for split in splits}
    read = read_files(listings, folder, image_size=image_size, corrupt=corrupt)
    return assemble(
        name=folder.resolve().name,
        class_names=class_names,
        parts=read.parts,
        positions=read.positions,
        sources={split: listing.source for split, listing in listings.items()},
        ratio=ratio,
        given="the images of calibration/",
        skipped=read.skipped,
    )


def _class_folders(split: Path) -> set[str]:
    entries = [entry for entry in split.iterdir() if not entry.name.startswith(".")]
    stray = sorted(entry.name for entry in entries if not entry.is_dir())
    if stray:
        raise InvalidData(
            f"{split} holds one folder for each class and nothing else; got the files {first_few(stray)}. Move them "
            "into the folder of their class, or away."
        )
    return {entry.name for entry in entries}


def _check_classes(classes: dict[str, set[str]]) -> None:
    """Training and test need the same classes; the other sets may lack some, but bring none of their own."""
    trained = classes["train"]
    if len(trained) < 2:
        raise InvalidData(f"a classifier needs at least two classes; train/ has {len(trained)} class folders.")
    for split, names in classes.items():
        _check_text(split, names)
        odd = sorted(names - trained)
        if odd:
            raise InvalidData(
                f"the sets must agree on the classes; {split}/ has {first_few(odd)}, which train/ lacks. Upper and "
                "lower case count, and so do composed and decomposed accents. Rename the folder, or take it out."
            )
    untested = sorted(trained - classes["test"])
    if untested:
        raise InvalidData(
            f"the sets must agree on the classes; train/ has {first_few(untested)}, which test/ lacks. Upper and lower "
            "case count. Add test images, or an empty folder if there are none."
        )


def _check_text(split: str, names: set[str]) -> None:
    for name in sorted(names):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InvalidData(
                f"class folders are named in UTF-8; {split}/{name!a} is not, as old archives unpack. Rename it."
            ) from error


def _listing(folder: Path, split: str, class_names: tuple[str, ...]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        files = _files_of(folder / split / name)
        paths += [f"{split}/{name}/{file}" for file in files]
        labels += [label] * len(files)
    source = f"the files of {folder.resolve().name}/{split} sorted by class and name"
    return Listing(paths=tuple(paths), labels=np.array(labels, dtype=np.int64), source=source)


def _files_of(folder: Path) -> list[str]:
    """Every file that is not hidden, whatever its ending: one that is no image is reported when it is read."""
    if not folder.exists():
        return []
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders = sorted(entry.name for entry in entries if entry.is_dir())
    if folders:
        raise InvalidData(
            f"the folder of a class holds image files only; {folder} holds the folders {first_few(folders)}. Move "
            "their images up, or make them classes of their own."
        )
    return sorted(entry.name for entry in entries)
