"""Lists of examples: `path label` split lists and listings of image folders, counted while they stream by.

Memory follows the number of different labels, which is limited by the number of classes, not the length of the list.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from models.calibration.frequency.entries import (
    MAX_FIELD,
    NAME_HEADERS,
    PATH_HEADERS,
    VALUE_HEADERS,
    Entry,
    MatchedBy,
    Parsed,
    Problems,
    normal,
    refuse,
)
from models.calibration.frequency.tables import KINDS, Row, delimiter_of, rows

MAX_LINE = 8192
SPACES = " "

# The first of them holds the classes: beside a `label`, an `id` or `index` numbers the rows.
_LABEL_HEADERS = ("class", "class_name", "name", "class_id", "class_index", "label", "index", "id")

_IMAGE = r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|ppm|pgm|npy)"
_PATH = re.compile(rf".*{_IMAGE}", re.IGNORECASE)
_PATH_ALONE = re.compile(rf'.*{_IMAGE}"?', re.IGNORECASE)
_PATH_AND_LABEL = re.compile(rf"(.+{_IMAGE})[ \t]+(.+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the lines of a list are built. `label_at` is None for a listing, `matched_by` where labels must tell."""

    format: Literal["split-list", "folder-listing"]
    delimiter: str
    label_at: int | None = None
    width: int = 2
    matched_by: MatchedBy | None = None
    header: str | None = None


def layout_of(line: str) -> Layout | None:
    """The layout that the first line of a file shows; None where it is no list of images."""
    line = line.strip()
    delimiter = delimiter_of(line) or SPACES
    named = _by_header(line, delimiter)
    if named is not None:
        return named
    if _PATH_ALONE.fullmatch(line):
        return _listing()
    path = _PATH.match(line)
    if path is None:
        return None
    rest = line[path.end() :].lstrip('"')
    return Layout(format="split-list", delimiter=rest[0] if rest[:1] in KINDS else SPACES, label_at=1)


def layout_for(name: Literal["split-list", "folder-listing"], line: str) -> Layout:
    """The layout of a list that its sender has named, whatever its first line looks like."""
    found = layout_of(line)
    if found is not None and found.format == name:
        return found
    if name == "folder-listing":
        return _listing()
    return Layout(format="split-list", delimiter=delimiter_of(line.strip()) or SPACES, label_at=1)


def read_list(source: BinaryIO, layout: Layout, num_classes: int) -> Parsed:
    """Examples a label (or folder), each entry with the first line of its label."""
    parsed = Parsed(
        format=layout.format,
        described=_described(layout),
        matched_by=layout.matched_by,
        header=layout.header is not None,
        delimiter=None if layout.format == "folder-listing" else layout.delimiter,
        declared="counts",
    )
    tally = _Tally(2 * num_classes + 1000)
    text = io.TextIOWrapper(source, encoding="utf-8-sig", newline=None)
    try:
        read = _folders if layout.label_at is None else _labels
        read(_lines(text), layout, tally, parsed)
    finally:
        text.detach()  # the file belongs to the caller, who closes it
    parsed.entries += [Entry(key=key, value=float(count), line=line) for key, (count, line) in tally.found.items()]
    if not parsed.entries and not parsed.problems.listed:
        refuse("the list names no image. Send lines of `path label`, or of `class/file.jpg`.")
    return parsed


class _Tally:
    """Examples of each label and the line on which it was first seen, by the normal form of the label."""

    def __init__(self, limit: int) -> None:
        self.found: dict[str, tuple[int, int]] = {}
        self._by_spelling: dict[str, list[int]] = {}
        self._limit = limit

    def add(self, label: str, line: int) -> None:
        known = self._by_spelling.get(label)
        if known is None:
            if len(self._by_spelling) >= self._limit:
                refuse(f"more than {self._limit:,} different labels; are the columns in the order path, label?", line)
            known = self._by_spelling[label] = [0, line]
        known[0] += 1

    def close(self) -> None:
        for label, (count, line) in self._by_spelling.items():
            before, first = self.found.get(normal(label), (0, line))
            self.found[normal(label)] = (before + count, first)


def _by_header(line: str, delimiter: str) -> Layout | None:
    cells = [cell.strip().strip('"').casefold() for cell in line.split(None if delimiter == SPACES else delimiter)]
    if not any(cell in PATH_HEADERS for cell in cells) or any(cell in VALUE_HEADERS for cell in cells):
        return None
    if len(cells) == 1:
        return _listing(header=cells[0])
    label = next((name for name in _LABEL_HEADERS if name in cells), None)
    if label is None:
        return None
    return Layout(
        format="split-list",
        delimiter=delimiter,
        label_at=cells.index(label),
        width=len(cells),
        matched_by=None if label == "label" else "name" if label in NAME_HEADERS else "index",
        header=label,
    )


def _listing(header: str | None = None) -> Layout:
    return Layout(format="folder-listing", delimiter=SPACES, matched_by="name", header=header)


def _described(layout: Layout) -> str:
    if layout.label_at is None:
        return "listing of image folders, classes by the name of the folder (its place in a sorted list plays no part)"
    how = "spaces" if layout.delimiter == SPACES else KINDS[layout.delimiter]
    header = "without header" if layout.header is None else f"with header, labels from column {layout.header!r}"
    return f"split list of paths and labels, {how}, {header}"


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    number = 0
    try:
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                refuse(f"a line of a list has at most {MAX_LINE:,} characters.", number)
            yield line
    except UnicodeDecodeError:
        refuse("the file is not UTF-8 somewhere after this line. Save it as UTF-8.", max(number, 1))


def _labels(lines: Iterator[str], layout: Layout, tally: _Tally, parsed: Parsed) -> None:
    assert layout.label_at is not None
    found = _spaced(lines, layout) if layout.delimiter == SPACES else rows(lines, layout.delimiter)
    if layout.header is not None:
        next(found, None)
    for line, cells in found:
        if len(cells) != layout.width:
            parsed.problems.add(line, f"a line has {layout.width} columns, the path first; got {len(cells)}.")
            continue
        _count(cells[layout.label_at], line, tally, parsed.problems)
    tally.close()


def _spaced(lines: Iterator[str], layout: Layout) -> Iterator[Row]:
    """A name may hold spaces, and so may a path: the label begins after the ending of the image file."""
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if not line:
            continue
        found = _PATH_AND_LABEL.fullmatch(line) if layout.width == 2 else None
        if found is not None:
            yield number, [found[1], found[2]]
        else:
            yield number, line.split() if layout.width > 2 else line.rsplit(None, 1)


def _folders(lines: Iterator[str], layout: Layout, tally: _Tally, parsed: Parsed) -> None:
    skipped, first = 0, 0
    found = ((number, path) for number, line in enumerate(lines, start=1) if (path := line.strip().strip('"')))
    if layout.header is not None:
        next(found, None)
    for number, path in found:
        if not _PATH_ALONE.fullmatch(path):
            skipped, first = skipped + 1, first or number
            continue
        parts = path.replace("\\", "/").rsplit("/", 2)
        if len(parts) < 2 or parts[-2] in ("", ".", ".."):
            parsed.problems.add(number, "the path has no folder; the folder that holds a file is its class.")
        else:
            _count(parts[-2], number, tally, parsed.problems)
    tally.close()
    if skipped:
        parsed.warnings.append(
            f"lines that name no image file were not counted: {skipped:,} (the first is line {first})."
        )


def _count(label: str, line: int, tally: _Tally, problems: Problems) -> None:
    label = label.strip()
    if not label:
        problems.add(line, "the label is empty.")
    elif len(label) > MAX_FIELD:
        problems.add(line, f"a label has at most {MAX_FIELD} characters; got {len(label):,}.")
    else:
        tally.add(label, line)
