"""The official list files, in a size that a test can hold."""

from dataclasses import replace

import numpy as np
import pytest

from training.data import InvalidData, load
from training.data.files import Listing
from training.data.official import OFFICIAL, check_counts, folder_names, load_official

SMALL = replace(
    OFFICIAL["imagenet-lt"],
    images={"train": 13, "calibration": 4, "test": 6},
    num_classes=2,
    largest=10,
    smallest=3,
)


@pytest.fixture
def imagenet(tmp_path, write_image):
    """ImageNet-LT with two classes; returns its root."""

    def lines(split, counts):
        for label, (wnid, count) in enumerate(zip(("n01440764", "n01443537"), counts, strict=True)):
            for number in range(count):
                folder, stem = ("val", "ILSVRC2012_val") if split == "test" else ("train", f"{wnid}_{split}")
                yield f"{write_image(f'{folder}/{wnid}/{stem}_{number}.JPEG')} {label}"

    for split, name, counts in (("train", "train", (10, 3)), ("val", "val", (2, 2)), ("test", "test", (3, 3))):
        (tmp_path / f"ImageNet_LT_{name}.txt").write_text("\n".join(lines(split, counts)))
    return tmp_path


def listing(counts) -> Listing:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Listing(paths=tuple(map(str, range(labels.size))), labels=labels, source="")


def exponential(largest: int, smallest: int, classes: int, total: int) -> list[int]:
    """Counts with these extremes and this sum."""
    counts = np.full(classes, smallest)
    counts[0] = largest
    rest = total - counts.sum()
    counts[1:-1] += rest // (classes - 2)
    counts[1 : 1 + rest % (classes - 2)] += 1
    return counts.tolist()


def test_the_published_validation_list_is_the_calibration_set(imagenet):
    data = load_official(SMALL, root=imagenet, corrupt="stop")
    assert data.name == "ImageNet-LT"
    assert data.class_names == ("n01440764", "n01443537")
    assert data.class_counts.tolist() == [10, 3]
    assert data.calibration.labels.tolist() == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [0] * 3 + [1] * 3
    assert data.validation is None
    assert data.image_size == (224, 224)
    assert data.imbalance_ratio is None
    assert "ImageNet_LT_val.txt" in data.drawn
    assert data.items["calibration"] == "0-3 of the lines of ImageNet_LT_val.txt (calibration)"


def test_without_a_list_for_it_a_tenth_of_training_is_the_calibration_set(tmp_path, write_image):
    recipe = replace(
        OFFICIAL["inaturalist-2018"], images={"train": 33, "test": 2}, num_classes=2, largest=30, smallest=3
    )
    for name, counts in (("train", (30, 3)), ("val", (1, 1))):
        lines = [
            f"{write_image(f'train_val2018/{folder}/{name}{number}.jpg')} {label}"
            for label, (folder, count) in enumerate(zip(("Aves/0", "Aves/1"), counts, strict=True))
            for number in range(count)
        ]
        (tmp_path / f"iNaturalist18_{name}.txt").write_text("\n".join(lines))
    data = load_official(recipe, root=tmp_path, image_size=(80, 80), corrupt="stop")
    assert data.class_counts.tolist() == [27, 2]
    assert np.bincount(data.calibration.labels).tolist() == [3, 1]
    assert data.items["test"] == "0-1 of the lines of iNaturalist18_val.txt (test)"
    assert data.class_names == ("0", "1")


@pytest.mark.parametrize("name", ["imagenet-lt", "places-lt", "inaturalist-2018"])
def test_lists_with_the_published_counts_are_accepted(name):
    recipe = OFFICIAL[name]
    train = exponential(recipe.largest, recipe.smallest, recipe.num_classes, recipe.images["train"])
    others = {
        split: listing([number // recipe.num_classes] * recipe.num_classes)
        for split, number in recipe.images.items()
        if split != "train"
    }
    check_counts(recipe, {"train": listing(train), **others})
    changed = [train[0] - 1, *train[1:]]
    with pytest.raises(InvalidData, match=f"not the official lists of {recipe.title}: train images .* instead of"):
        check_counts(recipe, {"train": listing(changed), **others})


def test_the_published_numbers():
    numbers = {
        name: (recipe.num_classes, recipe.images["train"], recipe.largest, recipe.smallest)
        for name, recipe in OFFICIAL.items()
    }
    assert numbers == {
        "imagenet-lt": (1000, 115_846, 1280, 5),
        "places-lt": (365, 62_500, 4980, 5),
        "inaturalist-2018": (8142, 437_513, 1000, 2),
    }


def test_other_lists_are_refused_with_all_that_differs(imagenet):
    with pytest.raises(InvalidData) as refused:
        load("imagenet-lt", root=imagenet)
    for part in ("train images 13 instead of 115,846", "test images 6 instead of 50,000", "largest label 1 instead"):
        assert part in str(refused.value)


def test_missing_lists_are_named(imagenet):
    (imagenet / "ImageNet_LT_val.txt").unlink()
    with pytest.raises(InvalidData, match=r"lacks ImageNet_LT_val\.txt"):
        load("imagenet-lt", root=imagenet)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("train/n01/a", "train/n02/b"), ("n01", "n02")),
        (("data/a/airfield/1", "data/b/bar/indoor/1"), ("a/airfield", "b/bar/indoor")),
        (("x/n01/a", "y/n01/b"), ("x/n01", "y/n01")),
        (("train/a", "train/b"), ("0", "1")),
        (("a", "b"), ("0", "1")),
        (("n01/a", "n02/b"), ("n01", "n02")),
    ],
)
def test_classes_are_called_by_their_folders(paths, names):
    assert folder_names(Listing(paths=paths, labels=np.array([0, 1]), source="")) == names
