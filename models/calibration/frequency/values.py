"""How a value is written: plain numbers only, and a hint for every other way that spreadsheets and people have."""

import math
import re
from typing import Any

from models.calibration.frequency.entries import MAX_FIELD, Problems

MAX_VALUE = 2**53  # from here on, float64 no longer holds every whole number

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_THOUSANDS = re.compile(r"[0-9]{1,3}([,'\u2019 \u00a0\u202f][0-9]{3})+(\.[0-9]+)?")
_THOUSANDS_BY_POINTS = re.compile(r"[0-9]{1,3}(\.[0-9]{3})+(\.[0-9]{3}|,[0-9]+)")
_ONE_OR_A_THOUSAND = re.compile(r"[1-9][0-9]{0,2}\.[0-9]{3}")

Checked = tuple[float | None, str | None]


def looks_numeric(cell: str) -> bool:
    """A value that was meant as a number, so that its line is no header: 1,000 or 12% or nan or nothing."""
    return (
        not cell or any(mark.isdigit() for mark in cell) or cell.casefold() in ("nan", "inf", "-inf", "true", "false")
    )


def number(cell: str) -> Checked:
    """The value of a cell, or what is wrong with it."""
    if not cell:
        return _refused("the value is empty. Write 0 for a class without any.")
    if len(cell) > MAX_FIELD:
        return _refused(f"a field has at most {MAX_FIELD} characters; got {len(cell):,}.")
    if cell.endswith("%"):
        return _refused(f"values carry no percent sign; got {cell[:50]!r}. Write fractions or counts.")
    if _THOUSANDS.fullmatch(cell) or _THOUSANDS_BY_POINTS.fullmatch(cell):
        return _refused(f"numbers have no thousands separator; got {cell[:50]!r}.")
    if re.fullmatch(r"-?[0-9]+,[0-9]+", cell):
        return _refused(f"the decimal mark is a point; got {cell[:50]!r}.")
    if not _NUMBER.fullmatch(cell):
        return _refused(f"the value must be a number; got {cell[:50]!r}.")
    return _checked(float(cell), cell)


def json_number(written: Any) -> Checked:
    """The value of a JSON number, or what is wrong with any other JSON value."""
    if isinstance(written, (dict, list)):
        return _refused(f"the value must be a number; got {'an object' if isinstance(written, dict) else 'a list'}.")
    if isinstance(written, bool) or not isinstance(written, (int, float)):
        return _refused(f"the value must be a number; got {str(written)[:50]!r}.")
    return _checked(float(written), str(written))


def check_thousands(cells: list[tuple[int, str]], problems: Problems) -> None:
    """`1.500` beside `480`: a thousand or one? Adds a problem for each such cell; cells are (line, text).

    A point that can only be a decimal mark, as in 0.125 or 12.5, settles it for the whole file.
    """
    doubtful = [(line, cell) for line, cell in cells if _ONE_OR_A_THOUSAND.fullmatch(cell)]
    settled = len(doubtful) < sum("." in cell for _, cell in cells)
    if settled or not any(cell.isdecimal() and cell not in ("0", "1") for _, cell in cells):
        return
    for line, cell in doubtful:
        few, many = f"{float(cell):g}", cell.replace(".", "")
        message = (
            f"{cell!r} may mean {few} or {many}, as other values have no point. Write {many}, or give all a point."
        )
        problems.add(line, message)


def _refused(complaint: str) -> Checked:
    return None, complaint


def _checked(value: float, written: str) -> Checked:
    if not math.isfinite(value):
        return _refused(f"the value must be finite; got {written[:50]}.")
    if value < 0:
        return _refused(f"a frequency is not negative; got {written[:50]}.")
    if value >= MAX_VALUE:
        return _refused(f"a count is less than 2**53; got {written[:50]}.")
    return value + 0.0, None  # -0.0 becomes 0.0
