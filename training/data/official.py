"""The published long-tailed data sets of large images, by their official list files.

Lists and numbers: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR 2019 (ImageNet-LT, Places-LT);
Van Horn et al., The iNaturalist Species Classification and Detection Dataset, CVPR 2018, as listed by Kang et al.,
Decoupling Representation and Classifier, ICLR 2020.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from training.data.draws import assemble
from training.data.errors import InvalidData
from training.data.files import Corrupt, Listing, read_files
from training.data.lists import read_list
from training.data.splits import DataSplits

IMAGE_SIZE = (224, 224)


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialLists:
    """The list files by split, and the numbers of images that tell whether they are the official ones."""

    title: str
    lists: Mapping[str, str]
    images: Mapping[str, int]  # by split
    num_classes: int
    largest: int  # training images of the largest class
    smallest: int


OFFICIAL = {
    "imagenet-lt": OfficialLists(
        title="ImageNet-LT",
        lists={
            "train": "ImageNet_LT_train.txt",
            "calibration": "ImageNet_LT_val.txt",
            "test": "ImageNet_LT_test.txt",
        },
        images={"train": 115_846, "calibration": 20_000, "test": 50_000},
        num_classes=1000,
        largest=1280,
        smallest=5,
    ),
    "places-lt": OfficialLists(
        title="Places-LT",
        lists={"train": "Places_LT_train.txt", "calibration": "Places_LT_val.txt", "test": "Places_LT_test.txt"},
        images={"train": 62_500, "calibration": 7_300, "test": 36_500},
        num_classes=365,
        largest=4980,
        smallest=5,
    ),
    "inaturalist-2018": OfficialLists(  # its test images have no published labels: papers test on validation
        title="iNaturalist 2018",
        lists={"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"},
        images={"train": 437_513, "test": 24_426},
        num_classes=8142,
        largest=1000,
        smallest=2,
    ),
}


def load_official(
    recipe: OfficialLists, *, root: Path, image_size: tuple[int, int] = IMAGE_SIZE, corrupt: Corrupt
) -> DataSplits:
    """The data set whose lists lie in `root`, where their paths begin too. The published validation list is the
    calibration set; iNaturalist, whose validation list is the test set, holds 10 % of training out instead.

    Raises: InvalidData, also for lists with other counts than the official ones; EmptyClass.
    """
    missing = [name for name in recipe.lists.values() if not (root / name).is_file()]
    if missing:
        raise InvalidData(
            f"{recipe.title} is read by its official lists; {root} lacks {', '.join(missing)}. Put them there, beside "
            "the folders that their lines begin with."
        )
    listings = {split: read_list(root / name, root, split) for split, name in recipe.lists.items()}
    check_counts(recipe, listings)
    read = read_files(listings, root, image_size=image_size, corrupt=corrupt)
    return assemble(
        name=recipe.title,
        class_names=folder_names(listings["train"]),
        parts=read.parts,
        positions=read.positions,
        sources={split: listing.source for split, listing in listings.items()},
        ratio=None,
        given=f"the published validation images ({recipe.lists.get('calibration')})",
        skipped=read.skipped,
    )


def check_counts(recipe: OfficialLists, listings: dict[str, Listing]) -> None:
    """Raises: InvalidData with every number that differs from the official one."""
    counts = np.unique(listings["train"].labels, return_counts=True)[1]
    last = max(int(listing.labels.max()) for listing in listings.values())
    numbers = [(f"{split} images", recipe.images[split], len(listing.paths)) for split, listing in listings.items()]
    numbers += [
        ("training classes", recipe.num_classes, int(counts.size)),
        ("largest label", recipe.num_classes - 1, last),
        ("images in the largest class", recipe.largest, int(counts.max())),
        ("images in the smallest class", recipe.smallest, int(counts.min())),
    ]
    wrong = [f"{what} {got:,} instead of {official:,}" for what, official, got in numbers if got != official]
    if wrong:
        raise InvalidData(
            f"these are not the official lists of {recipe.title}: {'; '.join(wrong)}. Fetch the lists again, or load "
            "them as lists of your own (source: the training list), under a name of their own."
        )


def folder_names(train: Listing) -> tuple[str, ...]:
    """The folder of each class, without what all have in common: `n01440764`, `Insecta/1007`. The index where a class
    has several folders, or two classes share one."""
    parents: dict[int, set[str]] = {}
    for path, label in zip(train.paths, train.labels.tolist(), strict=True):
        parents.setdefault(label, set()).add(str(PurePosixPath(path).parent))
    folders = [min(parents[label]) for label in sorted(parents)]
    if any(len(names) > 1 for names in parents.values()) or len(set(folders)) < len(folders) or "." in folders:
        return tuple(map(str, sorted(parents)))
    common = os.path.commonpath(folders)
    return tuple(str(PurePosixPath(folder).relative_to(common)) for folder in folders)
