"""What every reader of a class-frequency file hands over: entries, how their keys name classes, and all problems."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

from models.calibration.errors import FileProblem, FrequencyFileError

Format = Literal["csv", "numbers", "json", "coco", "split-list", "folder-listing"]
MatchedBy = Literal["name", "index", "position"]
Kind = Literal["counts", "fractions", "percentages", "weights"]

# Formats that list examples: entries that meet the same class are added up, and a file may be long.
EXAMPLE_FORMATS: tuple[Format, ...] = ("coco", "split-list", "folder-listing")

NAME_HEADERS = ("class", "class_name", "name", "label")
INDEX_HEADERS = ("index", "class_id", "class_index", "id")
PATH_HEADERS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
# What the header says that its column holds; "frequency" is used for all of them.
VALUE_HEADERS: dict[str, Kind | None] = {
    "count": "counts",
    "counts": "counts",
    "n": "counts",
    "image_count": "counts",
    "instance_count": "counts",
    "frequency": None,
    "prior": "fractions",
    "proportion": "fractions",
    "fraction": "fractions",
    "percent": "percentages",
    "percentage": "percentages",
}
MAX_FIELD = 1000
MAX_LISTED = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One class and its value; None where the value was refused (the problem is listed)."""

    key: str | int
    value: float | None
    line: int | None


@dataclass(slots=True)
class Problems:
    """Everything that is wrong: the first `MAX_LISTED` lines in full, the rest as a number.

    A problem of the whole file (line None) is always listed: there are only a few kinds of them.
    """

    listed: list[FileProblem] = field(default_factory=list)
    more: int = 0

    def add(self, line: int | None, message: str) -> None:
        if line is None or self.has_room:
            self.listed.append(FileProblem(line=line, message=message))
        else:
            self.more += 1

    @property
    def has_room(self) -> bool:
        return len(self.listed) < MAX_LISTED

    def raise_if_any(self) -> None:
        """Raises: FrequencyFileError in the order of the lines, what concerns the whole file last."""
        if not self.listed:
            return
        listed = sorted(self.listed, key=lambda problem: (problem.line is None, problem.line or 0))
        if self.more:
            listed.append(FileProblem(line=None, message=f"{self.more:,} more problems are counted and not listed."))
        raise FrequencyFileError(listed)


@dataclass(slots=True, kw_only=True)
class Parsed:
    """Entries as the file has them. `matched_by` is None where the keys themselves must tell (`path label` lists).

    `described` says in words how the file was read; `declared` is the kind of values that a header names.
    """

    format: Format
    described: str
    matched_by: MatchedBy | None
    header: bool = False
    delimiter: str | None = None
    declared: Kind | None = None
    entries: list[Entry] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    warnings: list[str] = field(default_factory=list)


def refuse(message: str, line: int | None = None) -> NoReturn:
    """Raises: FrequencyFileError, where reading cannot go on."""
    raise FrequencyFileError([FileProblem(line=line, message=message)])


def normal(name: str) -> str:
    """The form in which names are compared: NFC, without white space around."""
    return unicodedata.normalize("NFC", name).strip()


def shown(names: Iterable[str]) -> str:
    """The first five of them."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:5]) + (" ..." if len(listed) > 5 else "")
