from dataclasses import replace

import numpy as np
import pytest

from training.data import InvalidData, load
from training.data.items import check_items, describe, positions


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([3, 1, 2, 7], "1-3,7 of the digits"),
        ([0], "0 of the digits"),
        ([5, 4], "4-5 of the digits"),
        ([], "none of the digits"),
    ],
)
def test_positions_become_ranges_and_back(rows, text):
    rows = np.array(rows, dtype=np.int64)
    assert describe(rows, "the digits") == text
    back, source = positions(text)
    assert back.tolist() == sorted(rows.tolist())
    assert source == "the digits"


@pytest.mark.parametrize("text", ["", "1-3", "a-b of the digits", "1-3 of ", "1,,2 of the digits"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(InvalidData, match="ranges of a source"):
        positions(text)


def test_an_image_in_two_splits_is_refused_with_its_position():
    items = {"train": "0-5 of the digits", "test": "6-9 of the digits", "calibration": "4,10 of the digits"}
    with pytest.raises(InvalidData, match="train and calibration share 1 images of the digits, the first is image 4"):
        check_items(items, {"train": 6, "test": 4, "calibration": 2})


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ({"train": "0-5 of x_train"}, "must describe train, test; got train"),
        ({"train": "0-5 of x_train", "test": "0-2 of x_test"}, "test has 4 images, its items describe 3"),
    ],
)
def test_items_describe_every_image_of_every_split(items, says):
    with pytest.raises(InvalidData, match=says):
        check_items(items, {"train": 6, "test": 4})


def test_the_same_positions_in_two_sources_are_different_images():
    check_items({"train": "0-5 of x_train", "test": "0-5 of x_test"}, {"train": 6, "test": 6})


def test_splits_are_checked_when_they_are_built():
    data = load("digits")
    with pytest.raises(InvalidData, match="calibration and test share 400"):
        replace(data, calibration=data.test, items=data.items | {"calibration": data.items["test"]})
