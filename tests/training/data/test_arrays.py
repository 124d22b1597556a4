from pathlib import Path

import numpy as np
import pytest

from models.calibration.errors import EmptyClass
from training.data import InvalidData, SameImages, load, long_tail_counts
from training.data.items import positions

SIZE = (4, 5, 3)


def arrays(counts=(10, 6, 2), test=2, **changes):
    """Images that all differ, so that one seen twice can be told."""
    labels = np.repeat(np.arange(len(counts)), counts)
    tests = np.repeat(np.arange(len(counts)), test)
    pixels = np.random.default_rng(0).integers(0, 256, (labels.size + tests.size, *SIZE), dtype=np.uint8)
    made = {"x_train": pixels[: labels.size], "y_train": labels, "x_test": pixels[labels.size :], "y_test": tests}
    return {name: value for name, value in (made | changes).items() if value is not None}


def saved(folder: Path, **changes) -> str:
    np.savez(folder / "data.npz", **arrays(**changes))
    return str(folder / "data.npz")


def holdout() -> dict[str, np.ndarray]:
    """A held-out set of one image, so that training stays whole."""
    return {"x_holdout": np.full((1, *SIZE), 7, np.uint8), "y_holdout": np.zeros(1, np.int64)}


def images_of(part) -> set[bytes]:
    return {image.tobytes() for image in part.images}


def test_the_digits_have_the_stated_tail_and_balanced_held_out_sets():
    data = load("digits")
    assert data.class_counts.tolist() == [114, 73, 47, 30, 20, 12, 8, 5, 3, 2]
    assert np.bincount(data.test.labels).tolist() == [40] * 10
    assert np.bincount(data.calibration.labels).tolist() == [20] * 10
    assert data.train.images.dtype == np.uint8
    assert data.train.images.max() == 255
    assert data.image_size == (8, 8)


def test_the_digits_are_the_same_each_time_and_no_image_is_in_two_sets():
    data = load("digits")
    assert data.digest == load("digits").digest
    assert load("digits", 10).digest != data.digest
    seen = [images_of(part) for part in (data.train, data.calibration, data.test)]
    assert len(set.union(*seen)) == sum(map(len, seen)) == 314 + 200 + 400


@pytest.mark.parametrize(
    ("classes", "largest", "ratio", "begins", "ends", "total"),
    [
        (10, 5000, 100, [5000, 2997, 1796], [139, 83, 50], 12_406),  # CIFAR-10-LT
        (10, 5000, 200, [5000, 2775, 1540], [81, 45, 25], 11_203),
        (100, 500, 100, [500, 477, 455], [5, 5, 5], 10_847),  # CIFAR-100-LT
        (100, 500, 200, [500, 473, 449], [2, 2, 2], 9_502),
    ],
)
def test_the_long_tails_are_the_usual_ones(classes, largest, ratio, begins, ends, total):
    counts = long_tail_counts(classes, largest, ratio)
    assert counts[:3].tolist() == begins
    assert counts[-3:].tolist() == ends
    assert counts.sum() == total


def test_without_a_held_out_set_a_tenth_of_each_class_is_taken_out_of_training(tmp_path):
    data = load(saved(tmp_path, counts=(40, 20, 3, 2)))
    assert np.bincount(data.calibration.labels, minlength=4).tolist() == [4, 2, 1, 0]
    assert data.class_counts.tolist() == [36, 18, 2, 2]
    assert "10%" in data.drawn
    assert not images_of(data.train) & images_of(data.calibration)


def test_a_given_held_out_set_is_used_and_training_stays_whole(tmp_path):
    held = {"x_holdout": np.zeros((3, *SIZE), np.uint8), "y_holdout": np.arange(3)}
    data = load(saved(tmp_path, **held))
    assert data.calibration.labels.tolist() == [0, 1, 2]
    assert data.class_counts.tolist() == [10, 6, 2]


def test_a_validation_set_of_the_file_is_kept_apart(tmp_path):
    shown = {"x_validation": np.ones((2, *SIZE), np.uint8), "y_validation": np.array([2, 0])}
    data = load(saved(tmp_path, **shown))
    assert data.validation.labels.tolist() == [2, 0]
    assert data.items["validation"] == "0-1 of x_validation in data.npz"
    assert data.digest != load(saved(tmp_path)).digest


def test_an_empty_validation_set_is_none(tmp_path):
    empty = {"x_validation": np.empty((0, *SIZE), np.uint8), "y_validation": np.empty(0, np.int64)}
    assert load(saved(tmp_path, **empty)).validation is None


@pytest.mark.parametrize("ratio", [None, 5])
def test_the_items_say_which_images_of_the_file_were_taken(tmp_path, ratio):
    path = saved(tmp_path, counts=(40, 20, 12))
    data = load(path, ratio)
    with np.load(path) as file:
        for split, part in {"train": data.train, "calibration": data.calibration}.items():
            rows, source = positions(data.items[split])
            assert source == "x_train in data.npz"
            assert {image.tobytes() for image in file["x_train"][rows]} == images_of(part)


def test_the_items_of_the_digits_add_up():
    items = load("digits").items
    assert {split: positions(text)[0].size for split, text in items.items()} == {
        "train": 314,
        "calibration": 200,
        "test": 400,
    }
    assert {positions(text)[1] for text in items.values()} == {"the digits of scikit-learn"}


def test_a_cut_that_keeps_all_images_keeps_each_with_its_label(tmp_path):
    mixed = {
        "y_train": np.tile([1, 0, 2], 6),
        "x_holdout": np.zeros((1, *SIZE), np.uint8),
        "y_holdout": np.zeros(1, int),
    }
    path = saved(tmp_path, **mixed)
    data = load(path, imbalance_ratio=1)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    with np.load(path) as file:
        np.testing.assert_array_equal(data.train.images[:6], file["x_train"][1::3])


def test_an_imbalance_ratio_cuts_the_training_images_only(tmp_path):
    data = load(saved(tmp_path, counts=(30, 30, 30), test=5), imbalance_ratio=10)
    left = data.class_counts + np.bincount(data.calibration.labels, minlength=3)
    assert left.tolist() == [30, 9, 3]
    assert np.bincount(data.test.labels).tolist() == [5, 5, 5]
    assert data.imbalance_ratio == 10


def test_the_long_tail_follows_the_sizes_of_the_classes_in_whatever_order_they_come(tmp_path):
    data = load(saved(tmp_path, counts=(5, 120, 30), **holdout()), 10)
    assert data.class_counts.tolist() == [5, 50, 15]


def test_a_ratio_that_leaves_a_class_empty_is_refused(tmp_path):
    with pytest.raises(InvalidData, match="the largest class of these data would have 40 images"):
        load(saved(tmp_path, counts=(40, 40, 40)), 50)


@pytest.mark.parametrize("ratio", [0.5, 0, -1, float("nan")])
def test_an_imbalance_ratio_below_one_is_refused(ratio):
    with pytest.raises(InvalidData, match="at least 1"):
        load("digits", ratio)


def test_the_same_images_in_two_sets_are_pointed_out(tmp_path):
    made = arrays()
    with pytest.warns(SameImages, match="2 images of validation are also images of train, .*: image 0 is image 0"):
        load(saved(tmp_path, x_validation=made["x_train"][:2], y_validation=made["y_train"][:2]))


def test_a_test_set_without_images_is_refused(tmp_path):
    with pytest.raises(InvalidData, match="needs test images"):
        load(saved(tmp_path, x_test=np.empty((0, *SIZE), np.uint8), y_test=np.empty(0, np.int64)))


def test_class_names_as_bytes_are_read_as_text(tmp_path):
    assert load(saved(tmp_path, class_names=np.array(["ä".encode(), b"b", b"c"]))).class_names == ("ä", "b", "c")


def test_class_names_come_from_the_file(tmp_path):
    assert load(saved(tmp_path, class_names=np.array(["ant", "bee", "cat"]))).class_names == ("ant", "bee", "cat")
    assert load(saved(tmp_path)).class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"x_train": None}, "lacks x_train"),
        ({"y_test": None}, "lacks y_test"),
        ({"x_holdout": np.zeros((1, *SIZE), np.uint8)}, "lacks y_holdout"),
        ({"y_validation": np.zeros(1, np.int64)}, "lacks x_validation"),
        ({"x_train": np.zeros((18, *SIZE), np.float32)}, "x_train .* uint8 RGB .* float32"),
        ({"x_train": np.zeros((18, 4, 5), np.uint8)}, r"x_train .* \(18, 4, 5\)"),
        ({"x_test": np.zeros((6, 9, 9, 3), np.uint8)}, "one size"),
        ({"y_train": np.zeros(3, np.int64)}, "y_train .* 18 whole numbers"),
        ({"y_train": np.zeros(18)}, "y_train .* float64"),
        ({"class_names": np.array("abc")}, "a list of texts"),
        ({"class_names": np.array(["a", "a", "b"])}, "two different classes"),
        ({"counts": (5,)}, "at least two different classes"),
        ({"y_train": np.full(18, 2**63, dtype=np.uint64)}, "below 1,000,000"),
        ({"y_train": np.full(18, -1)}, "from 0, below 1,000,000; y_train .* -1 to"),
        ({"class_names": np.array(["ant", "bee"])}, "2 names, the labels go up to 2"),
    ],
)
def test_wrong_arrays_are_refused_by_name(tmp_path, changes, says):
    with pytest.raises(InvalidData, match=says):
        load(saved(tmp_path, **changes))


def test_a_class_without_training_images_is_refused_by_name(tmp_path):
    path = saved(tmp_path, counts=(10, 0, 2), class_names=np.array(["ant", "bee", "cat"]))
    with pytest.raises(EmptyClass, match="'bee'"):
        load(path)


def test_a_name_too_many_is_a_class_without_images(tmp_path):
    with pytest.raises(EmptyClass, match="'dog'"):
        load(saved(tmp_path, class_names=np.array(["ant", "bee", "cat", "dog"])))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 cut off"])
def test_a_file_that_is_no_npz_is_refused(tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InvalidData, match="cannot be read"):
        load(str(tmp_path / "data.npz"))


def test_a_single_array_is_refused(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(InvalidData, match="cannot be read"):
        load(str(tmp_path / "data.npy"))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidData, match=r"`digits` or an \.npz"):
        load(str(tmp_path / "nowhere.npz"))


def test_an_npz_with_pickled_objects_is_refused_and_not_unpickled(tmp_path):
    path = saved(tmp_path, class_names=np.array(["ant", object()], dtype=object))
    with pytest.raises(InvalidData, match="cannot be read"):
        load(path)
