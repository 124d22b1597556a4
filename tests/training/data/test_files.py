"""What happens when the files are read: corrupt ones, missing ones, the same one twice."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from models.calibration.errors import EmptyClass
from training.data import ImageFiles, ImageSet, InvalidData, LeftOut, SameImages, load
from training.data import files as reading
from training.data.items import positions

COUNTS = {"train": {"auk": 12, "wren": 3}, "test": {"auk": 2, "wren": 2}}
CORRUPT = ("train/auk/003.png", "train/auk/007.png", "test/wren/001.png")


@pytest.fixture
def damaged(image_folder):
    """A folder in which three files are no complete images."""
    folder = image_folder(**COUNTS)
    (folder / CORRUPT[0]).write_bytes(b"")
    (folder / CORRUPT[1]).write_bytes(b"no image")
    whole = (folder / CORRUPT[2]).read_bytes()
    (folder / CORRUPT[2]).write_bytes(whole[: len(whole) // 2])
    return folder


def test_corrupt_files_stop_the_load_and_are_named(damaged):
    with pytest.raises(InvalidData, match=r"3 of 19 do not: train/auk/003\.png, .*007.*empty body.*--corrupt skip"):
        load(str(damaged), image_size=8)


@pytest.mark.parametrize("image_size", [8, 100])
def test_corrupt_files_are_left_out_and_listed_where_that_is_asked(damaged, image_size):
    with pytest.warns(LeftOut, match=r"3 of 19 files are no images and are left out: train/auk/003\.png, "):
        data = load(str(damaged), image_size=image_size, corrupt="skip")
    assert data.skipped == CORRUPT
    assert data.test.labels.tolist() == [0, 0, 1]
    assert data.items["test"] == "0-2 of the files of birds/test sorted by class and name"
    rows = np.concatenate([positions(data.items[split])[0] for split in ("train", "calibration")])
    assert sorted(rows.tolist()) == [0, 1, 2, 4, 5, 6, *range(8, 15)]


@pytest.mark.filterwarnings("ignore::training.data.LeftOut")
def test_positions_pass_over_a_file_in_the_middle(damaged):
    data = load(str(damaged), image_size=100, corrupt="skip")
    for split in ("train", "calibration"):
        rows, _ = positions(data.items[split])
        names = [f"train/auk/{row:03}.png" if row < 12 else f"train/wren/{row - 12:03}.png" for row in rows]
        assert sorted(getattr(data, split).paths) == names


def test_skipping_nothing_changes_nothing(image_folder):
    folder = str(image_folder(**COUNTS))
    assert load(folder, image_size=8, corrupt="skip").digest == load(folder, image_size=8).digest


@pytest.mark.filterwarnings("ignore::training.data.LeftOut")
def test_a_class_of_corrupt_files_is_empty(image_folder):
    folder = image_folder(**COUNTS)
    for file in (folder / "train/wren").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(EmptyClass, match="'wren'"):
        load(str(folder), image_size=8, corrupt="skip")


@pytest.mark.parametrize("corrupt", ["stop", "skip"])
def test_missing_files_stop_the_load_in_any_case(write_list, tmp_path, corrupt):
    train, test = write_list("train.txt", {0: 3, 1: 3}), write_list("test.txt", {0: 1, 1: 1})
    (tmp_path / "train/1/2.png").unlink()
    with pytest.raises(InvalidData, match=r"1 of 8 cannot: train/1/2\.png \(No such file"):
        load(str(train), test_list=test, image_size=8, corrupt=corrupt)


def test_a_file_in_two_lists_is_refused(write_list):
    train, test = write_list("train.txt", {0: 3, 1: 3}), write_list("test.txt", {0: 1, 1: 1})
    test.write_text(test.read_text() + "./train/1/2.png 1\n")
    with pytest.raises(InvalidData, match=r"given again: train/1/2\.png \(in train and in test\)"):
        load(str(train), test_list=test, image_size=8)


def test_a_file_twice_in_one_list_is_refused(write_list):
    train, test = write_list("train.txt", {0: 3, 1: 3}), write_list("test.txt", {0: 1, 1: 1})
    train.write_text(train.read_text() + "train/1/2.png 0\n")
    with pytest.raises(InvalidData, match=r"train/1/2\.png \(twice in train\)"):
        load(str(train), test_list=test, image_size=8)


def test_a_copy_of_a_training_image_in_the_test_set_is_pointed_out(image_folder):
    folder = image_folder(**COUNTS)
    shutil.copy(folder / "train/auk/004.png", folder / "test/auk/copy.png")
    with pytest.warns(SameImages, match=r"1 images of test .* test/auk/copy\.png is train/auk/004\.png"):
        load(str(folder), image_size=8)


@pytest.mark.parametrize("image_size", [8, 100])
def test_a_copy_within_training_is_not_held_out(image_folder, image_size):
    folder = image_folder(train={"auk": 20, "wren": 20}, test={"auk": 1, "wren": 1})
    for name in ("auk", "wren"):
        for number in range(15):
            image = folder / f"train/{name}/{number:03}.png"
            shutil.copy(image, image.with_name(f"copy{number}.png"))
    data = load(str(folder), image_size=image_size)
    assert len(data.calibration) == 6
    assert not set(data.calibration.contents) & set(data.train.contents)


def test_copies_between_any_two_sets_are_pointed_out(image_folder):
    folder = image_folder(**COUNTS, validation={"auk": 2})
    shutil.copy(folder / "test/auk/001.png", folder / "validation/auk/001.png")
    with pytest.warns(SameImages, match=r"1 images of validation .* of test.*validation/auk/001\.png is test/auk/001"):
        load(str(folder), image_size=8)


def test_a_name_that_is_no_text_is_written_down_as_text(image_folder):
    folder = image_folder(**COUNTS)
    (Path(os.fsdecode(os.fsencode(folder) + b"/train/auk/\xe9.png"))).write_bytes(b"no image")
    with pytest.warns(LeftOut):
        assert load(str(folder), image_size=8, corrupt="skip").skipped == ("train/auk/\\udce9.png",)


def test_the_size_of_images_in_files_is_part_of_the_digest(image_folder):
    folder = str(image_folder(**COUNTS))
    assert load(folder, image_size=100).digest != load(folder, image_size=120).digest


def test_small_images_that_would_fill_the_memory_stay_in_files(image_folder, monkeypatch):
    folder = str(image_folder(**COUNTS))
    monkeypatch.setattr(reading, "MAX_BYTES", 19 * 8 * 8 * 3)
    assert isinstance(load(folder, image_size=8).train, ImageSet)
    monkeypatch.setattr(reading, "MAX_BYTES", 19 * 8 * 8 * 3 - 1)
    assert isinstance(load(folder, image_size=8).train, ImageFiles)


def test_more_files_than_wait_at_a_time_keep_their_order(image_folder, monkeypatch):
    folder = str(image_folder(**COUNTS))
    whole = load(folder, image_size=8).digest
    monkeypatch.setattr(reading, "CHUNK", 4)
    assert load(folder, image_size=8).digest == whole


def test_a_fingerprint_is_of_path_size_and_content(image_folder):
    folder = image_folder(**COUNTS)
    data = load(str(folder), image_size=100)
    content = (folder / "test/auk/000.png").read_bytes()
    expected = hashlib.sha256(b"test/auk/000.png\0%d\0" % len(content) + hashlib.sha256(content).digest())
    assert data.test.fingerprints[0].tobytes() == expected.digest()
