"""The syntax of class-frequency files: from bytes to (class, value) entries, with every syntax problem named."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from models.calibration.errors import FileProblem, FrequencyFileError

NAME_HEADERS = ("class", "class_name", "name", "label")
INDEX_HEADERS = ("index", "class_id", "class_index", "id")
VALUE_HEADERS = ("count", "counts", "n", "frequency", "prior", "proportion", "fraction", "percent")
MAX_FIELD = 1000
MAX_VALUE = 2**53  # beyond it, float64 no longer holds every whole number

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"\d{1,3}([,'\u2019 \u00a0\u202f]\d{3})+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One class and its value; None where the value was refused (the problem is listed)."""

    key: str | int
    value: float | None
    line: int | None


@dataclass(slots=True, kw_only=True)
class Parsed:
    """`by` says how keys name classes: `name`, `index` (a column that says so) or `position` (a list)."""

    format: str
    by: Literal["name", "index", "position"]
    entries: list[Entry] = field(default_factory=list)
    problems: list[FileProblem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def parse(data: bytes) -> Parsed:
    """Sniff the format and read the entries.

    Raises: FrequencyFileError where nothing can be read at all; smaller problems are listed in the answer.
    """
    text = _decode(data)
    if not text.strip():
        raise _file_error("the file is empty. Send lines of class,count or a JSON object of class names to counts.")
    if text.lstrip()[0] in "{[":
        return _parse_json(text)
    return _parse_csv(text)


def _file_error(message: str) -> FrequencyFileError:
    return FrequencyFileError([FileProblem(line=None, message=message)])


def _decode(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _file_error("the file is UTF-16; class-frequency files are UTF-8. Save it as UTF-8 (CSV UTF-8 in Excel).")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the file is not UTF-8: byte {error.start} is 0x{data[error.start]:02x}. Save it as UTF-8."
        raise _file_error(message) from None
    if "\0" in text:
        raise _file_error("the file holds NUL characters: it is not a text file. Send CSV or JSON.")
    return text


def _parse_csv(text: str) -> Parsed:
    first_line = text.lstrip().splitlines()[0]
    delimiter = next((mark for mark in ("\t", ";") if mark in first_line), ",")
    kind = {"\t": "TSV", ";": "CSV with semicolons", ",": "CSV"}[delimiter]
    reader = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((reader.line_num, cells))
    except csv.Error as error:
        raise FrequencyFileError(
            [FileProblem(line=reader.line_num, message=f"not readable as {kind}: {error}.")]
        ) from None
    header = [cell.casefold() for cell in rows[0][1]]
    values_at = [index for index, name in enumerate(header) if name in VALUE_HEADERS]
    if not values_at:
        return _without_header(rows, kind)
    if len(values_at) > 1:
        named = ", ".join(rows[0][1][index] for index in values_at)
        message = f"one column holds the values; the header has {len(values_at)} ({named}). Keep the one that is meant."
        raise FrequencyFileError([FileProblem(line=rows[0][0], message=message)])
    value_at = values_at[0]
    name_at = next((header.index(name) for name in NAME_HEADERS if name in header), None)
    index_at = next((header.index(name) for name in INDEX_HEADERS if name in header), None)
    key_at = index_at if name_at is None else name_at
    if key_at is None:
        message = f"the header names no class column; it needs one of {', '.join(NAME_HEADERS + INDEX_HEADERS)}."
        raise FrequencyFileError([FileProblem(line=rows[0][0], message=message)])
    by: Literal["name", "index"] = "index" if name_at is None else "name"
    columns = f"classes by {by} from column {header[key_at]!r}, values from column {header[value_at]!r}"
    parsed = Parsed(format=f"{kind}, {columns}", by=by)
    _read_rows(parsed, rows[1:], key_at, value_at, len(header))
    return parsed


def _without_header(rows: list[tuple[int, list[str]]], kind: str) -> Parsed:
    line, first = rows[0]
    if len(first) == 2 and not _NUMBER.fullmatch(first[1]) and not _looks_numeric(first[1]):
        message = (
            f"the header {','.join(first)!r} is not known; it needs a class column ({', '.join(NAME_HEADERS)}, or "
            f"{INDEX_HEADERS[0]} for positions) and a value column ({', '.join(VALUE_HEADERS)})."
        )
        raise FrequencyFileError([FileProblem(line=line, message=message)])
    parsed = Parsed(format=f"{kind} without header, classes by name", by="name")
    _read_rows(parsed, rows, 0, 1, 2)
    return parsed


def _looks_numeric(cell: str) -> bool:
    """A value that was meant as a number, so that its line is no header: 1,000 or 12% or nan or nothing."""
    return (
        not cell or any(mark.isdigit() for mark in cell) or cell.casefold() in ("nan", "inf", "-inf", "true", "false")
    )


def _read_rows(parsed: Parsed, rows: list[tuple[int, list[str]]], key_at: int, value_at: int, width: int) -> None:
    for line, cells in rows:
        if len(cells) != width:
            message = f"{width} columns expected; got {len(cells)}. Quote names that hold the separator."
            if len(cells) == width + 1 and all(cell.isdigit() for cell in cells[-2:]):
                message += " Write numbers without a thousands separator or a decimal comma."
            parsed.problems.append(FileProblem(line=line, message=message))
        elif max(map(len, cells)) > MAX_FIELD:
            parsed.problems.append(FileProblem(line=line, message=f"a field has at most {MAX_FIELD} characters."))
        else:
            value, complaint = _number(cells[value_at])
            if complaint:
                parsed.problems.append(FileProblem(line=line, message=f"class {cells[key_at]!r}: {complaint}"))
            parsed.entries.append(Entry(key=cells[key_at], value=value, line=line))


def _number(cell: str) -> tuple[float | None, str | None]:
    """The value, or what is wrong with it."""
    if not cell:
        return None, "the value is empty. Write 0 for a class without any."
    if cell.endswith("%"):
        return None, f"values carry no percent sign; got {cell!r}. Write fractions or counts."
    if _THOUSANDS.fullmatch(cell):
        return None, f"numbers have no thousands separator; got {cell!r}."
    if re.fullmatch(r"-?\d+,\d+", cell):
        return None, f"the decimal mark is a point; got {cell!r}."
    if not _NUMBER.fullmatch(cell):
        return None, f"the value must be a number; got {cell[:50]!r}."
    return _checked(float(cell), cell)


def _refused(complaint: str) -> tuple[float | None, str | None]:
    return None, complaint


def _checked(value: float, written: str) -> tuple[float | None, str | None]:
    if not math.isfinite(value):
        return None, f"the value must be finite; got {written[:50]}."
    if value < 0:
        return None, f"a frequency is not negative; got {written[:50]}."
    if value > MAX_VALUE:
        return None, f"a count is at most 2**53; got {written[:50]}."
    return value, None


def _parse_json(text: str) -> Parsed:
    try:
        document = json.loads(text, object_pairs_hook=_Object, parse_int=_json_int)
    except json.JSONDecodeError as error:
        message = f"not readable as JSON: {error.msg} (column {error.colno})."
        raise FrequencyFileError([FileProblem(line=error.lineno, message=message)]) from None
    except RecursionError:
        raise _file_error("the JSON is nested too deeply. Send one object of class names to counts.") from None
    if isinstance(document, _Object):
        parsed = Parsed(format="JSON object, classes by name", by="name")
        _read_values(parsed, document.items)
        return parsed
    if all(isinstance(item, _Object) for item in document):
        return _records(document)
    parsed = Parsed(format="JSON list in class order", by="position")
    _read_values(parsed, enumerate(document))
    return parsed


@dataclass(frozen=True, slots=True)
class _Object:
    """A JSON object as its pairs, so that a key that stands twice is seen; a dict would keep the last one silently."""

    items: list[tuple[str, Any]]


def _json_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # a number of a million digits must not cost minutes


def _records(document: list[_Object]) -> Parsed:
    parsed = Parsed(format="JSON list of records, classes by name", by="name")
    found: list[tuple[str | int, Any]] = []
    for number, record in enumerate(document):
        fields = {key.casefold(): value for key, value in record.items}
        key = next((fields[name] for name in NAME_HEADERS if name in fields), None)
        value_name = next((name for name in VALUE_HEADERS if name in fields), None)
        if not isinstance(key, str) or value_name is None:
            rule = f"a record has a class ({', '.join(NAME_HEADERS)}) and a value ({', '.join(VALUE_HEADERS)})"
            parsed.problems.append(FileProblem(line=None, message=f"{rule}; record {number} does not."))
        else:
            found.append((key, fields[value_name]))
    _read_values(parsed, found)
    return parsed


def _read_values(parsed: Parsed, pairs: Iterable[tuple[str | int, Any]]) -> None:
    for key, written in pairs:
        if isinstance(written, bool) or not isinstance(written, (int, float)):
            came = "an object" if isinstance(written, _Object) else repr(str(written)[:50])
            value, complaint = _refused(f"the value must be a number; got {came}.")
        else:
            value, complaint = _checked(float(written), str(written))
        if complaint:
            parsed.problems.append(FileProblem(line=None, message=f"class {key!r}: {complaint}"))
        parsed.entries.append(Entry(key=key, value=value, line=None))
