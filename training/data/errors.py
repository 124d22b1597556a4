"""What can be wrong with a data set."""

from collections.abc import Sequence

from models.calibration.errors import CalibrationError

SHOWN = 5  # names in a message; the count is always given


class InvalidData(CalibrationError):
    """A data set that cannot be trained on."""


class SameImages(UserWarning):
    """Images that are in two splits."""


class LeftOut(UserWarning):
    """Files that are no images, skipped as asked."""


def first_few(names: Sequence[str]) -> str:
    """`a, b, c and 7 more`."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")
