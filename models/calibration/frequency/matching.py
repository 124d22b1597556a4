"""From keys to classes: by name, by index where the file says so, or by position in a list."""

import difflib
import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

from models.calibration.frequency.entries import EXAMPLE_FORMATS, Entry, MatchedBy, Parsed, normal, refuse, shown
from models.calibration.types import FloatArray

Missing = Literal["error", "zero"]

_COMPARISONS = 20_000  # names compared to find the nearest: about a second


def values_by_class(
    parsed: Parsed, class_names: Sequence[str], missing: Missing, *, may_be_zero: bool
) -> tuple[FloatArray, MatchedBy]:
    """Values `(C,)` in class order, NaN where a value was refused, and how classes were matched.

    Args: may_be_zero, whether 0 is a way out for a class that the file does not name.
    Adds what is wrong to the problems and warnings of `parsed`.
    """
    names = _Names(class_names)
    by = parsed.matched_by or _by_labels(parsed.entries, names)
    values = np.full(len(class_names), np.nan)
    seen: dict[int, Entry] = {}
    repeated: dict[str, None] = {}
    for entry in parsed.entries:
        index = names.find(str(entry.key)) if by == "name" else _index(entry.key, len(class_names))
        if index is None:
            _unknown(parsed, entry, by, names)
            continue
        earlier = seen.setdefault(index, entry)
        if earlier is not entry and parsed.format in EXAMPLE_FORMATS:
            values[index] += entry.value
        elif earlier is not entry:
            if earlier.value != entry.value:
                _twice(parsed, earlier, entry, class_names[index])
            elif entry.value is not None:
                repeated[class_names[index]] = None
        elif entry.value is not None:
            values[index] = entry.value
    absent = [index for index in range(len(class_names)) if index not in seen]
    if by == "position" and len(parsed.entries) != len(class_names):
        rule = f"a list has one number for each of the {len(class_names)} classes, in class order"
        parsed.problems.add(None, f"{rule}; got {len(parsed.entries)}.")
    elif absent:
        _absent(parsed, [class_names[index] for index in absent], len(class_names), missing, may_be_zero)
        if missing == "zero":
            values[absent] = 0.0
    if repeated:
        parsed.warnings.append(f"classes that stand more than once, with the same value: {shown(repeated)}.")
    if by == "name" and names.respelt:
        parsed.warnings.append(
            f"class names matched only after Unicode normalisation (NFC) or trimming: {shown(names.respelt)}."
        )
    return values, by


class _Names:
    """Class indices by name: as written first, then in normal form where that names one class only."""

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = class_names
        self.respelt: dict[str, None] = {}
        self._exact = {name: index for index, name in enumerate(class_names)}
        self._normal: dict[str, int] = {}
        for index, name in enumerate(class_names):
            self._normal[normal(name)] = -1 if normal(name) in self._normal else index
        self._folded: dict[str, str] = {}
        self._comparisons_left = _COMPARISONS

    def find(self, key: str) -> int | None:
        index = self._exact.get(key)
        if index is None:
            index = self._normal.get(normal(key), -1)
            if index >= 0:
                self.respelt[key] = None
        return None if index < 0 else index

    def nearest(self, key: str) -> str | None:
        """A class of nearly this name. Only a limited number of searches is made: thousands would take minutes."""
        if not self._folded:
            self._folded = {_folded(name): name for name in self.class_names}
        key = _folded(key)
        if key in self._folded:
            return self._folded[key]
        if self._comparisons_left <= 0:
            return None
        self._comparisons_left -= len(self._folded)
        found = difflib.get_close_matches(key, self._folded, n=1)
        return self._folded[found[0]] if found else None


def _folded(name: str) -> str:
    """Without what the eye does not see or people forget: case, compatibility forms, invisible marks, separators."""
    bare = "".join(mark for mark in unicodedata.normalize("NFKC", name) if unicodedata.category(mark) != "Cf")
    return " ".join(bare.casefold().replace("_", " ").replace("-", " ").split())


def _by_labels(entries: Sequence[Entry], names: _Names) -> Literal["name", "index"]:
    """Labels of a split list are names where the model knows them all, and indices where all are whole numbers.

    Where the model knows none and most are whole numbers, the others are mistakes in a list of indices.

    Raises: FrequencyFileError where both readings are possible and differ.
    """
    by_name = [names.find(str(entry.key)) for entry in entries]
    by_index = [_index(entry.key, len(names.class_names)) for entry in entries]
    names.respelt.clear()  # they are looked up once more
    whole = sum(_is_whole(str(entry.key)) for entry in entries)
    if None in by_name and whole < len(entries):
        return "index" if 2 * whole > len(entries) and not any(index is not None for index in by_name) else "name"
    pairs = enumerate(zip(by_name, by_index, strict=True))
    wrong = next((at for at, (name, index) in pairs if name is not None and name != index), None)
    if wrong is not None and (None in by_name or None not in by_index):
        refuse(
            f"the label {entries[wrong].key!r} may be the name or the index of a class, and these differ. Write "
            "`path index` or `path name` as the first line, with the separator of the list.",
            entries[wrong].line,
        )
    return "index" if None in by_name else "name"


def _index(key: str | int, num_classes: int) -> int | None:
    written = str(key)
    return int(written) if _is_whole(written) and int(written) < num_classes else None


def _is_whole(written: str) -> bool:
    return written.isascii() and written.isdecimal()


def _unknown(parsed: Parsed, entry: Entry, by: MatchedBy, names: _Names) -> None:
    """By position, the problem is the length of the list, which is reported once."""
    if by == "index":
        rule = f"class indices are whole numbers from 0 to {len(names.class_names) - 1}"
        parsed.problems.add(entry.line, f"{rule}; got {entry.key!r}.")
    elif by == "name":
        key = str(entry.key)
        hint = _hint(key, parsed, names) if parsed.problems.has_room else ""
        parsed.problems.add(entry.line, f"the model has no class {key!r}.{hint}")


def _hint(key: str, parsed: Parsed, names: _Names) -> str:
    if key.isdigit():
        return _index_hint(parsed)
    nearest = names.nearest(key)
    if nearest is None:
        return ""
    hint = f" Did you mean {nearest!r}?"
    if _folded(key) == _folded(nearest) and not (key + nearest).isascii():
        hint += f" They look alike: the file has {key!a}, the model {nearest!a}."
    return hint


def _index_hint(parsed: Parsed) -> str:
    if parsed.format not in ("csv", "split-list"):
        return ""
    if parsed.header:
        return " To match by position, name the column 'index'."
    line = "index,count" if parsed.format == "csv" else "path,index"
    separator = parsed.delimiter or ","
    return f" To match by position, write `{line.replace(',', separator)}` as the first line."


def _twice(parsed: Parsed, earlier: Entry, entry: Entry, name: str) -> None:
    where = "" if earlier.line is None else f" (first in line {earlier.line})"
    parsed.problems.add(entry.line, f"class {name!r} stands twice with different values{where}. Keep one.")


def _absent(parsed: Parsed, absent: Sequence[str], num_classes: int, missing: Missing, may_be_zero: bool) -> None:
    what = f"{len(absent)} of {num_classes} classes are missing: {shown(absent)}."
    if missing == "zero":
        parsed.warnings.append(f"{what} They were read as 0.")
        return
    way_out = "Say missing=zero if it has none."
    if not may_be_zero:
        way_out = "Every class needs at least one training example."
    elif parsed.format in ("csv", "json"):
        way_out = "Write 0 for a class without any, or say missing=zero."
    parsed.problems.add(None, f"{what} {way_out}")
