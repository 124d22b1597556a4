"""Tables of `class,count` (commas, semicolons or tabs, with a header or without) and plain lists of numbers."""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from models.calibration.frequency.entries import (
    INDEX_HEADERS,
    MAX_FIELD,
    NAME_HEADERS,
    VALUE_HEADERS,
    Entry,
    Parsed,
    refuse,
)
from models.calibration.frequency.values import check_thousands, looks_numeric, number

KINDS = {"\t": "TSV", ";": "CSV with semicolons", ",": "CSV"}

Row = tuple[int, list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    key_at: int
    value_at: int
    width: int


def delimiter_of(line: str) -> str | None:
    """The delimiter of a line, seen outside quotes; None where there is none of tab, semicolon, comma."""
    bare = re.sub(r'"[^"]*"', "", line)
    return next((mark for mark in ("\t", ";", ",") if mark in bare), None)


def rows(lines: Iterable[str], delimiter: str) -> Iterator[Row]:
    """Rows that are not empty, with the line on which each begins.

    Raises: FrequencyFileError where quotes do not match; a stray one would swallow the lines up to the next.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    begins = 1
    try:
        for row in reader:
            if any("\n" in cell for cell in row):
                refuse("a cell holds a line break. Quotes begin and end on one line.", begins)
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        refuse(f"not readable as {KINDS[delimiter]}: {error}. Quotes come in pairs.", begins)


def read_table(text: str) -> Parsed:
    """`class,count` with a known header or without one."""
    delimiter = delimiter_of(text.lstrip().split("\n", 1)[0]) or ","
    found = list(rows(io.StringIO(text), delimiter))
    if not found:
        refuse("the table has no cell with text. Send lines of class,count.")
    line, first = found[0]
    header = [cell.casefold() for cell in first]
    if not any(cell in VALUE_HEADERS for cell in header) or (len(first) == 2 and looks_numeric(first[1])):
        return _without_header(found, delimiter)
    value_at = _only_one(line, first, [at for at, cell in enumerate(header) if cell in VALUE_HEADERS], "the values")
    by_name = any(cell in NAME_HEADERS for cell in header)
    known = NAME_HEADERS if by_name else INDEX_HEADERS
    key = next((cell for cell in known if cell in header), None)
    if key is None:
        refuse(f"the header names no class column; it needs one of {', '.join(NAME_HEADERS + INDEX_HEADERS)}.", line)
    key_at = _only_one(line, first, [at for at, cell in enumerate(header) if cell == key], "the classes")
    by = "name" if by_name else "index"
    columns = f"classes by {by} from column {key!r}, values from column {header[value_at]!r}"
    parsed = Parsed(
        format="csv",
        described=f"{KINDS[delimiter]} with header, {columns}",
        matched_by="name" if by_name else "index",
        header=True,
        delimiter=delimiter,
        declared=VALUE_HEADERS[header[value_at]],
    )
    _read_rows(parsed, found[1:], _Columns(key_at=key_at, value_at=value_at, width=len(header)))
    return parsed


def read_numbers(text: str) -> Parsed:
    """One number a line, in class order."""
    parsed = Parsed(format="numbers", described="one number a line, in class order", matched_by="position")
    written = [(at, line.strip()) for at, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for position, (line, cell) in enumerate(written):
        value, complaint = number(cell)
        if complaint:
            parsed.problems.add(line, complaint)
        parsed.entries.append(Entry(key=position, value=value, line=line))
    check_thousands(written, parsed.problems)
    return parsed


def _only_one(line: int, first: list[str], at: list[int], what: str) -> int:
    if len(at) > 1:
        named = ", ".join(first[index] for index in at)
        refuse(f"one column holds {what}; the header has {len(at)} ({named}). Keep the one that is meant.", line)
    return at[0]


def _without_header(found: list[Row], delimiter: str) -> Parsed:
    line, first = found[0]
    if len(first) == 1:
        refuse("a line has a class and a value, separated by a comma, a semicolon or a tab; got one column.", line)
    if len(first) == 2 and not looks_numeric(first[1]):
        refuse(
            f"the header {','.join(first)[:100]!r} is not known; it needs a class column ({', '.join(NAME_HEADERS)}, "
            f"or {INDEX_HEADERS[0]} for positions) and a value column ({', '.join(VALUE_HEADERS)}).",
            line,
        )
    parsed = Parsed(
        format="csv",
        described=f"{KINDS[delimiter]} without header, classes by name",
        matched_by="name",
        delimiter=delimiter,
    )
    _read_rows(parsed, found, _Columns(key_at=0, value_at=1, width=2))
    return parsed


def _read_rows(parsed: Parsed, found: list[Row], columns: _Columns) -> None:
    written = []
    for line, cells in found:
        if len(cells) != columns.width:
            parsed.problems.add(line, _wrong_width(cells, columns.width))
        elif max(map(len, cells)) > MAX_FIELD:
            parsed.problems.add(line, f"a field has at most {MAX_FIELD} characters.")
        else:
            key, cell = cells[columns.key_at], cells[columns.value_at]
            value, complaint = number(cell)
            if complaint:
                parsed.problems.add(line, f"class {key!r}: {complaint}")
            parsed.entries.append(Entry(key=key, value=value, line=line))
            written.append((line, cell))
    check_thousands(written, parsed.problems)


def _wrong_width(cells: list[str], width: int) -> str:
    message = f"{width} columns expected; got {len(cells)}. Quote names that hold the separator."
    if len(cells) == width + 1 and all(cell.isdigit() for cell in cells[-2:]):
        message += " Write numbers without a thousands separator or a decimal comma."
    return message
