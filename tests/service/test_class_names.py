"""Files of class names, as editors and spreadsheets save them."""

import pytest

from models.calibration.errors import InvalidManifest
from service.class_names import read_class_names


@pytest.mark.parametrize(
    "data",
    [
        b"ant\nbumble bee\ncat\n",
        b"\xef\xbb\xbfant\r\nbumble bee\r\ncat",
        b"\n  ant \n\nbumble bee\n\tcat\n\n",
    ],
)
def test_names_are_one_a_line(data: bytes) -> None:
    assert read_class_names(data) == ("ant", "bumble bee", "cat")


def test_a_comma_within_a_name_is_part_of_it() -> None:
    assert read_class_names(b"Ant, red\nBee\n") == ("Ant, red", "Bee")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"ant,bee,cat\n", "one name a line; got one line, 'ant,bee,cat'"),
        (b"ant\n", "at least two classes; got 1"),
        (b"", "at least two classes; got 0"),
        (b"ant\nb\xe4r\n", "not UTF-8: byte 5 is 0xe4"),
        ("ant\nbee\n".encode("utf-16"), "not UTF-8: byte 0 is 0xff"),
        ("ant\nbee\n".encode("utf-16-le"), "NUL"),
        (b"ant\nbee\nant\n", "'ant' stands twice"),
    ],
)
def test_what_is_no_list_of_names_is_refused(data: bytes, word: str) -> None:
    with pytest.raises(InvalidManifest) as caught:
        read_class_names(data)
    assert word in str(caught.value)
