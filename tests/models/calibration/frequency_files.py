"""Reading a class-frequency file in a test, and what is wrong with one, as its messages."""

import pytest

from models.calibration.errors import FrequencyFileError
from models.calibration.frequencies import read_frequencies

CLASSES = ("cat", "dog", "snow leopard")


def read(text, role="target", classes=CLASSES, **options):
    data = text.encode() if isinstance(text, str) else text  # bytes or a file otherwise
    return read_frequencies(data, classes, role=role, **options)


def problems(text, **options):
    with pytest.raises(FrequencyFileError) as error:
        read(text, **options)
    return [str(problem) for problem in error.value.problems]
