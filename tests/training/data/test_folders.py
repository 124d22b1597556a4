import numpy as np
import pytest
from PIL import Image

from models.calibration.errors import EmptyClass
from models.images import decode_image
from training.data import ImageFiles, ImageSet, InvalidData, load

PLAIN = {"train": {"wren": 12, "auk": 5}, "test": {"auk": 2, "wren": 2}}


def test_small_images_are_decoded_as_serving_decodes_them(image_folder):
    folder = image_folder(**PLAIN)
    data = load(str(folder), image_size=8)
    assert isinstance(data.test, ImageSet)
    expected = decode_image((folder / "test/auk/001.png").read_bytes(), height=8, width=8)
    np.testing.assert_array_equal(data.test.images[1], expected)


def test_classes_are_the_folder_names_sorted_as_text(image_folder):
    counts = {"10": 3, "9": 3, "Zoo": 3, "auk": 3}
    data = load(str(image_folder(train=counts, test=counts)), image_size=8)
    assert data.class_names == ("10", "9", "Zoo", "auk")
    assert data.name == "birds"
    assert data.test.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3


def test_without_a_calibration_folder_a_tenth_of_each_class_is_held_out(image_folder):
    data = load(str(image_folder(train={"auk": 30, "wren": 2}, test={"auk": 1, "wren": 1})), image_size=8)
    assert np.bincount(data.calibration.labels, minlength=2).tolist() == [3, 0]
    assert data.class_counts.tolist() == [27, 2]
    assert data.items["test"] == "0-1 of the files of birds/test sorted by class and name"


def test_calibration_and_validation_folders_are_used_and_may_lack_a_class(image_folder):
    folder = image_folder(**PLAIN, calibration={"wren": 4}, validation={"auk": 3})
    data = load(str(folder), image_size=8)
    assert data.calibration.labels.tolist() == [1] * 4
    assert data.validation.labels.tolist() == [0] * 3
    assert data.class_counts.tolist() == [5, 12]
    assert data.drawn == "the images of calibration/"


def test_large_images_stay_in_their_files(image_folder):
    folder = image_folder(**PLAIN)
    data = load(str(folder), image_size=(65, 40))
    assert isinstance(data.train, ImageFiles)
    assert data.image_size == (65, 40)
    assert data.test.paths == ("test/auk/000.png", "test/auk/001.png", "test/wren/000.png", "test/wren/001.png")
    assert len(data.train) == 17 - 2
    assert not set(data.train.paths) & set(data.calibration.paths)
    assert [path.split("/")[1] for path in data.train.paths] == [data.class_names[i] for i in data.train.labels]


def test_the_digest_of_files_follows_their_content_name_and_labels(image_folder):
    folder = image_folder(**PLAIN)
    first = load(str(folder), image_size=100).digest
    assert load(str(folder), image_size=100).digest == first
    (folder / "test/auk/001.png").rename(folder / "test/auk/002.png")
    renamed = load(str(folder), image_size=100).digest
    Image.new("RGB", (20, 16)).save(folder / "test/auk/002.png")
    changed = load(str(folder), image_size=100).digest
    assert len({first, renamed, changed}) == 3


def test_a_long_tail_is_cut_out_of_a_folder_too(image_folder):
    data = load(str(image_folder(train={"a": 20, "b": 20}, test={"a": 1, "b": 1})), 10, image_size=8)
    held = np.bincount(data.calibration.labels, minlength=2)
    assert (data.class_counts + held).tolist() == [20, 2]


def test_hidden_files_are_no_images(image_folder):
    folder = image_folder(**PLAIN)
    (folder / "train/.DS_Store").write_bytes(b"x")
    (folder / "train/auk/._000.png").write_bytes(b"x")
    assert load(str(folder), image_size=8).skipped == ()


def test_a_class_without_training_images_is_refused_by_name(image_folder):
    with pytest.raises(EmptyClass, match="'auk'"):
        load(str(image_folder(train={"auk": 0, "wren": 3}, test={"auk": 1, "wren": 1})), image_size=8)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": {"auk": 1, "wren": 1}}, "no folder named test"),
        ({"test": {"auk": 1, "wren": 1}}, "no folder named train"),
        ({"train": {"auk": 1, "wren": 1}, "test": {"auk": 1, "Wren": 1}}, "test/ has Wren, which train/ lacks"),
        ({"train": {"auk": 1, "wren": 1}, "test": {"auk": 1}}, "train/ has wren, which test/ lacks"),
        ({**PLAIN, "calibration": {"gull": 1}}, "calibration/ has gull, which train/ lacks"),
        ({**PLAIN, "validation": {"gull": 1}}, "validation/ has gull, which train/ lacks"),
        ({"train": {"auk": 1}, "test": {"auk": 1}}, "at least two classes; train/ has 1"),
    ],
)
def test_splits_that_do_not_fit_together_are_refused(image_folder, splits, says):
    with pytest.raises(InvalidData, match=says):
        load(str(image_folder(**splits)), image_size=8)


def test_images_beside_the_class_folders_are_refused(image_folder):
    folder = image_folder(**PLAIN)
    (folder / "train/lost.png").write_bytes(b"x")
    with pytest.raises(InvalidData, match=r"one folder for each class .* lost\.png"):
        load(str(folder), image_size=8)


def test_folders_in_a_class_folder_are_refused(image_folder):
    folder = image_folder(**PLAIN)
    (folder / "train/auk/young").mkdir()
    with pytest.raises(InvalidData, match=r"image files only.*young"):
        load(str(folder), image_size=8)


def test_a_folder_needs_an_image_size(image_folder):
    with pytest.raises(InvalidData, match="an image folder needs an image size"):
        load(str(image_folder(**PLAIN)))
