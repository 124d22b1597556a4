"""CIFAR by name, on generated batches in the form of the official ones; only their MD5 cannot be the same."""

import hashlib
import pickle

import numpy as np
import pytest
from torchvision import datasets

from training.data import InvalidData, load
from training.data.cifar import subset_counts, subset_rows
from training.data.items import positions

PER_CLASS = {"cifar10": 60, "cifar100": 30}
CLASSES = {"cifar10": 10, "cifar100": 100}
KINDS = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


def pickled(content) -> bytes:
    """As Python 2 and the NumPy of 2009 wrote it."""
    data = pickle.dumps(content, protocol=2)
    return data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(b"\x89\x88\x87", b"K\x00K\x01\x87")


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Write small batches, class by class in turn, and let torchvision expect their MD5."""

    def write(name: str):
        kind, classes = KINDS[name], CLASSES[name]
        folder = tmp_path / kind.base_folder
        folder.mkdir()
        draw = np.random.default_rng(classes)
        sums = {}

        def put(file: str, content) -> None:
            (folder / file).write_bytes(pickled(content))
            sums[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()

        for files, per_class in ((kind.train_list, PER_CLASS[name]), (kind.test_list, 2)):
            labels = np.split(np.tile(np.arange(classes), per_class), len(files))
            for (file, _), part in zip(files, labels, strict=True):
                key = "labels" if name == "cifar10" else "fine_labels"
                put(file, {"data": draw.integers(0, 256, (part.size, 3072), dtype=np.uint8), key: part.tolist()})
        put(kind.meta["filename"], {kind.meta["key"]: [f"class {label}" for label in range(classes)]})
        for listed in ("train_list", "test_list"):
            monkeypatch.setattr(kind, listed, [[file, sums[file]] for file, _ in getattr(kind, listed)])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": sums[kind.meta["filename"]]})
        return tmp_path

    return write


def as_published(labels: np.ndarray, ratio: float) -> list[np.ndarray]:
    """The subset by the recipe of the LDAM lineage, on numpy's global generator."""
    classes = np.unique(labels)
    largest = labels.size // classes.size
    state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(0)  # noqa: NPY002
        chosen = []
        for label in classes:
            number = int(largest * (1 / ratio) ** (label / (classes.size - 1.0)))
            rows = np.where(labels == label)[0]
            np.random.shuffle(rows)  # noqa: NPY002
            chosen.append(rows[:number])
        return chosen
    finally:
        np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize(
    ("classes", "ratio", "total", "smallest", "groups"),
    [
        (10, 10, 20_431, 500, (10, 0, 0)),
        (10, 50, 13_996, 100, (9, 1, 0)),
        (10, 100, 12_406, 50, (8, 2, 0)),
        (10, 200, 11_203, 25, (7, 3, 0)),
        (100, 10, 19_573, 50, (69, 31, 0)),
        (100, 50, 12_608, 10, (41, 41, 18)),
        (100, 100, 10_847, 5, (35, 35, 30)),
        (100, 200, 9_502, 2, (30, 31, 39)),
    ],
)
def test_the_long_tails_have_the_published_counts(classes, ratio, total, smallest, groups):
    counts = subset_counts(np.full(classes, 50_000 // classes), ratio)
    assert counts.sum() == total
    assert counts.min() == smallest
    assert ((counts > 100).sum(), ((counts >= 20) & (counts <= 100)).sum(), (counts < 20).sum()) == groups


def test_the_counts_of_cifar_10_one_by_one():
    counts = {ratio: subset_counts(np.full(10, 5000), ratio).tolist() for ratio in (10, 50, 100, 200)}
    assert counts == {
        10: [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500],
        50: [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100],
        100: [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50],
        200: [5000, 2775, 1540, 854, 474, 263, 146, 81, 45, 25],
    }


@pytest.mark.parametrize(
    ("classes", "first", "second", "last"),
    [
        (10, [3980, 38330, 48360, 45720], [5971, 3321, 5211, 39351], [22049, 38169, 22069, 25079]),
        (100, [9000, 25400, 28300, 44500], [27701, 30701, 43601, 8801], [34899, 15399, 36399, 36199]),
    ],
)
@pytest.mark.parametrize("ratio", [10, 100])
def test_the_seed_0_subset_of_50_000_labels_in_turn_never_changes(classes, first, second, last, ratio):
    labels = np.arange(50_000) % classes
    counts = subset_counts(np.bincount(labels), ratio)
    rows, _ = subset_rows(labels, counts, 0)
    starts = np.cumsum(counts) - counts
    assert [rows[start : start + 4].tolist() for start in starts[[0, 1, -1]]] == [first, second, last]
    np.testing.assert_array_equal(rows, np.concatenate(as_published(labels, ratio)))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_data_set_by_name_is_its_ldam_subset_and_its_whole_test_set(cifar, name):
    root = cifar(name)
    data = load(name, 5, root=root)
    labels = np.tile(np.arange(CLASSES[name]), PER_CLASS[name])
    published = as_published(labels, 5)
    taken = [positions(data.items[split]) for split in ("train", "calibration")]
    assert sorted(np.concatenate([rows for rows, _ in taken])) == sorted(np.concatenate(published))
    assert len({source for _, source in taken}) == 1
    assert len(data.test) == 2 * CLASSES[name]
    assert data.class_names[:2] == ("class 0", "class 1")
    assert data.image_size == (32, 32)
    assert "imbalance ratio 5, LDAM seed-0 subset without 10 %" in data.name


def test_pixels_and_labels_are_those_of_the_batches(cifar):
    root = cifar("cifar10")
    data = load("cifar10", 5, root=root, calibration_per_class=2)
    source = datasets.CIFAR10(root, train=True)
    rows = np.concatenate(as_published(np.array(source.targets), 5))
    standard = data.train.labels > 0  # class 0 gave two images to calibration
    np.testing.assert_array_equal(data.train.images[standard], source.data[rows[60:]])
    np.testing.assert_array_equal(data.train.labels[standard], np.array(source.targets)[rows[60:]])


def test_the_same_call_gives_the_same_lists_whatever_was_drawn_before(cifar):
    root = cifar("cifar100")
    first = load("cifar100", 10, root=root, calibration_per_class=3)
    np.random.seed(7)  # noqa: NPY002
    again = load("cifar100", 10, root=root, calibration_per_class=3)
    assert first.items == again.items
    assert first.digest == again.digest
    np.testing.assert_array_equal(first.train.images, again.train.images)


def test_calibration_images_are_left_over_by_the_cut_and_the_largest_classes_are_capped(cifar):
    data = load("cifar10", 5, root=cifar("cifar10"), calibration_per_class=12)
    assert np.bincount(data.calibration.labels).tolist() == [12] * 10
    counts = subset_counts(np.full(10, 60), 5)  # 60, 50, 41, ...
    assert data.class_counts.tolist() == np.minimum(counts, 48).tolist()
    assert data.name.startswith("CIFAR-10-LT, imbalance ratio 5, not the standard subset: the 2 largest classes gave")
    train, calibration = (set(positions(data.items[split])[0].tolist()) for split in ("train", "calibration"))
    assert not train & calibration


def test_the_calibration_images_are_the_same_for_every_ratio(cifar):
    root = cifar("cifar100")
    items = [
        load("cifar100", ratio, root=root, calibration_per_class=3).items["calibration"] for ratio in (2, 10, None)
    ]
    assert len(set(items)) == 1


def test_without_a_ratio_all_images_are_used(cifar):
    root = cifar("cifar10")
    whole = load("cifar10", root=root)
    assert whole.name == "CIFAR-10, all images without 10 % held out for calibration"
    assert whole.class_counts.tolist() == [54] * 10
    capped = load("cifar10", root=root, calibration_per_class=5)
    assert capped.name == "CIFAR-10 without 5 images of each class, held out for calibration"
    assert capped.class_counts.tolist() == [55] * 10


def test_a_subset_that_leaves_enough_over_keeps_its_name():
    labels = np.arange(600) % 10
    counts = np.full(10, 40)
    rows, spare = subset_rows(labels, counts, 20)
    assert (np.bincount(labels[rows]) == counts).all()
    assert np.bincount(labels[spare]).tolist() == [20] * 10
    assert not set(rows.tolist()) & set(spare.tolist())


def test_more_calibration_images_than_a_class_has_are_refused(cifar):
    with pytest.raises(InvalidData, match="smallest class has 60 images, got 60"):
        load("cifar10", 5, root=cifar("cifar10"), calibration_per_class=60)


def test_a_ratio_that_empties_a_class_is_refused(cifar):
    with pytest.raises(InvalidData, match="at most 60; got 61"):
        load("cifar10", 61, root=cifar("cifar10"))


def test_files_that_are_not_the_official_ones_are_refused_unread(cifar, monkeypatch):
    root = cifar("cifar10")
    monkeypatch.undo()  # torchvision expects the official MD5 again
    with pytest.raises(InvalidData, match="--download"):
        load("cifar10", 100, root=root)


def test_missing_files_are_refused_with_the_folder(tmp_path):
    with pytest.raises(InvalidData, match=r"cifar-100-python.*not there"):
        load("cifar100", 100, root=tmp_path)
