"""Which source takes which options."""

import pytest

from training.data import InvalidData, load


@pytest.mark.parametrize(
    ("source", "options", "says"),
    [
        ("digits", {"image_size": 8}, "digits takes imbalance_ratio; image_size would change nothing"),
        ("digits", {"root": "somewhere"}, "root would change nothing"),
        ("some.npz", {"corrupt": "skip"}, "an .npz takes imbalance_ratio; corrupt would"),
        ("cifar10", {"image_size": 32, "root": "somewhere"}, "CIFAR takes .*; image_size would"),
        ("imagenet-lt", {"imbalance_ratio": 100, "root": "somewhere"}, "imbalance_ratio would change nothing"),
        ("digits", {"calibration_per_class": 20}, "calibration_per_class would change nothing"),
        ("digits", {"download": True}, "download would change nothing"),
        ("cifar100", {}, "cifar100 needs the folder"),
        ("places-lt", {}, "places-lt needs the folder"),
        ("cifar100", {"root": "somewhere", "calibration_per_class": 0}, "at least 1; got 0"),
        ("imagenet-lt", {"root": "somewhere", "corrupt": "ignore"}, "'stop' or 'skip'; got 'ignore'"),
        ("digits", {"imbalance_ratio": float("inf")}, "at least 1 and finite; got inf"),
        ("imagenet-lt", {"root": "somewhere", "image_size": 0}, "at least 1 pixel; got 0"),
        ("imagenet-lt", {"root": "somewhere", "image_size": (224, 224, 3)}, "height and width"),
    ],
)
def test_options_that_do_not_fit_the_source_are_refused(source, options, says):
    with pytest.raises(InvalidData, match=says):
        load(source, **options)


def test_a_source_that_nothing_is_called_is_refused_with_what_there_is():
    with pytest.raises(InvalidData, match=r"file or folder named cifar1000\. Known by name: digits, cifar10, "):
        load("cifar1000")
