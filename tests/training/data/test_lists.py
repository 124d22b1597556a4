import numpy as np
import pytest

from models.calibration.errors import EmptyClass
from training.data import InvalidData, load
from training.data.lists import read_list


@pytest.fixture
def lists(write_list):
    """A training list of 12, 5 and 3 images and a test list of 2 each; load them with the options given."""
    train, test = write_list("train.txt", {0: 12, 1: 5, 2: 3}), write_list("test.txt", {0: 2, 1: 2, 2: 2})

    def loaded(**options):
        return load(str(train), test_list=test, **{"image_size": 8, **options})

    return loaded


def test_lists_name_training_and_test_images(lists):
    data = lists()
    assert data.class_names == ("0", "1", "2")
    assert data.name == "train"
    assert (data.class_counts + np.bincount(data.calibration.labels, minlength=3)).tolist() == [12, 5, 3]
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.items["test"] == "0-5 of the lines of test.txt (test)"


def test_validation_and_calibration_lists_are_used(lists, write_list):
    data = lists(validation_list=write_list("val.txt", {2: 3}), calibration_list=write_list("cal.txt", {0: 1, 1: 2}))
    assert data.validation.labels.tolist() == [2, 2, 2]
    assert data.calibration.labels.tolist() == [0, 1, 1]
    assert data.class_counts.tolist() == [12, 5, 3]
    assert data.drawn == "the images of cal.txt"


def test_paths_begin_at_the_root(lists, tmp_path, write_list):
    (tmp_path / "lists").mkdir()
    for name in ("train.txt", "test.txt"):
        (tmp_path / name).rename(tmp_path / "lists" / name)
    options = {"test_list": tmp_path / "lists/test.txt", "image_size": 8}
    assert len(load(str(tmp_path / "lists/train.txt"), root=tmp_path, **options).test) == 6
    with pytest.raises(InvalidData, match=r"26 of 26 cannot: train/0/0\.png .* and 21 more\. Paths .*lists; check"):
        load(str(tmp_path / "lists/train.txt"), **options)


def test_class_names_come_as_they_are_or_from_a_file(lists, tmp_path):
    assert lists(class_names=["auk", "gull", "wren"]).class_names == ("auk", "gull", "wren")
    (tmp_path / "names.txt").write_text("auk\r\nherring gull\r\n\r\nwren\r\n")
    assert lists(class_names=tmp_path / "names.txt").class_names == ("auk", "herring gull", "wren")
    assert lists(class_names=str(tmp_path / "names.txt")).class_names == ("auk", "herring gull", "wren")


@pytest.mark.parametrize(
    ("names", "says"),
    [(["auk", "gull"], "label 2, class_names has 2"), (["auk", "gull", "auk"], "two different names")],
)
def test_class_names_that_do_not_fit_are_refused(lists, names, says):
    with pytest.raises(InvalidData, match=says):
        lists(class_names=names)


def test_a_named_class_without_images_is_empty(lists):
    with pytest.raises(EmptyClass, match="'wren'"):
        lists(class_names=["auk", "gull", "tern", "wren"])


@pytest.mark.parametrize(
    "text",
    [
        "a b/c d.png 1\ne.png 0\n",
        "a b/c d.png 1\r\ne.png 0\r\n",  # from Windows
        "\n\na b/c d.png 1\n   \ne.png 0",
        "a b/c d.png\t1\ne.png   0\n",
        "\ufeffa b/c d.png 1\ne.png 0\n",  # with a byte-order mark
        "./a b//c d.png 1\nx/../e.png 0\n",
    ],
)
def test_spaces_in_paths_blank_lines_and_line_ends_are_understood(tmp_path, text):
    (tmp_path / "list.txt").write_bytes(text.encode())
    listing = read_list(tmp_path / "list.txt", tmp_path, "train")
    assert listing.paths == ("a b/c d.png", "e.png")
    assert listing.labels.tolist() == [1, 0]


def test_absolute_paths_below_the_root_become_relative(tmp_path):
    (tmp_path / "list.txt").write_text(f"{tmp_path}/in/a.png 0\n/elsewhere/b.png 1\n")
    assert read_list(tmp_path / "list.txt", tmp_path / "in", "train").paths == ("a.png", "/elsewhere/b.png")


@pytest.mark.parametrize(
    "line", ["a.png", "a.png one", "a.png -1", "a.png 1.0", "a.png 1_0", "a.png ²", "7", "a 1234567890"]
)
def test_a_line_without_path_or_label_is_refused_with_its_number(tmp_path, line):
    (tmp_path / "list.txt").write_text(f"good.png 0\n\n{line}\n")
    with pytest.raises(InvalidData, match=f"in list.txt line 3 is '{line}'"):
        read_list(tmp_path / "list.txt", tmp_path, "train")


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_list_is_refused(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InvalidData, match="names none"):
        read_list(tmp_path / "list.txt", tmp_path, "train")


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidData, match="text file in UTF-8"):
        read_list(tmp_path / "list.txt", tmp_path, "train")


def test_a_list_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidData, match="cannot be read"):
        load(str(tmp_path / "none.txt"), test_list=tmp_path / "none.txt", image_size=8)


@pytest.mark.parametrize(("counts", "says"), [({1: 2, 2: 2}, "from 1 to 2, and label 0"), ({0: 2, 5: 2}, "label 1 is")])
def test_labels_with_a_gap_are_refused(write_list, counts, says):
    train, test = write_list("train.txt", counts), write_list("test.txt", counts)
    with pytest.raises(InvalidData, match=says):
        load(str(train), test_list=test, image_size=8)


def test_one_class_alone_is_refused(write_list):
    train, test = write_list("train.txt", {0: 3}), write_list("test.txt", {0: 3})
    with pytest.raises(InvalidData, match="at least two classes"):
        load(str(train), test_list=test, image_size=8)


def test_a_class_with_test_images_alone_is_empty(write_list):
    train, test = write_list("train.txt", {0: 3, 1: 3}), write_list("test.txt", {0: 1, 1: 1, 2: 1})
    with pytest.raises(EmptyClass, match="'2'"):
        load(str(train), test_list=test, image_size=8)


def test_a_training_list_alone_is_refused(write_list):
    with pytest.raises(InvalidData, match="--test-list"):
        load(str(write_list("train.txt", {0: 1, 1: 1})), image_size=8)


def test_lists_need_an_image_size(lists):
    with pytest.raises(InvalidData, match=r"a list of images needs an image size \(--image-size\)"):
        lists(image_size=None)
