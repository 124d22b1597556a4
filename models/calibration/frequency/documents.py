"""JSON: an object of class names to numbers, a list in class order, a list of records, and COCO annotations.

The outermost level is walked member by member. So every member has its line, a key that stands twice is seen, and a
large annotation file never is one tree of Python objects.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from models.calibration.frequency.entries import (
    MAX_FIELD,
    NAME_HEADERS,
    VALUE_HEADERS,
    Entry,
    Kind,
    Parsed,
    Problems,
    refuse,
    shown,
)
from models.calibration.frequency.values import json_number

_SPACE = re.compile(r"[ \t\n\r]*")
_TOO_DEEP = "the JSON is nested too deeply. Send one object of class names to counts."


def _json_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else float(digits)  # a number of a million digits must not cost minutes


class _KeyTwice(ValueError):
    """An inner object that names the same key twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _KeyTwice
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_json_int)


class _Cursor:
    """A place in a JSON text that moves forward only.

    Raises: FrequencyFileError where the text is not JSON, from every method.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._at = 0
        self._line = 1
        self._counted = 0

    @property
    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def peek(self) -> str:
        """The next character that is not white space, empty at the end."""
        found = _SPACE.match(self.text, self._at)
        assert found is not None  # the pattern matches nothing too
        self._at = found.end()
        return self.text[self._at : self._at + 1]

    def value(self) -> Any:
        """The next value, whole."""
        self.peek()
        try:
            value, self._at = _DECODER.raw_decode(self.text, self._at)
        except json.JSONDecodeError as error:
            refuse(f"not readable as JSON: {error.msg} (column {error.colno}).", error.lineno)
        except _KeyTwice:
            refuse("an object names the same key twice. Keep one.", self.line)
        except RecursionError:
            refuse(_TOO_DEEP)
        return value

    def key(self) -> str:
        """A key and its colon."""
        if self.peek() != '"':
            self._expected("a key in double quotes")
        key: str = self.value()
        self._take(":")
        return key

    def members(self) -> Iterator[int]:
        """The line of each member of the object or list that begins here; whoever asks reads the member."""
        closing = "}" if self.peek() == "{" else "]"
        self._at += 1
        if self.peek() != closing:
            yield self.line
            while self.peek() != closing:
                self._take(",")
                self.peek()
                yield self.line
        self._at += 1

    def end(self) -> None:
        if self.peek():
            self._expected("the end of the file")

    def _take(self, mark: str) -> None:
        if self.peek() != mark:
            self._expected(repr(mark))
        self._at += 1

    def _expected(self, what: str) -> None:
        column = self._at - self.text.rfind("\n", 0, self._at)
        came = self.peek()
        refuse(f"not readable as JSON: expected {what}; got {came!r} (column {column}).", self.line)


def read_json(text: str) -> Parsed:
    """An object, a list of numbers or a list of records."""
    cursor = _Cursor(text)
    opening = cursor.peek()
    if opening == "{":
        parsed = Parsed(format="json", described="JSON object, classes by name", matched_by="name")
        for line in cursor.members():
            _add(parsed, line, cursor.key(), cursor.value())
    elif opening == "[":
        members = [(line, cursor.value()) for line in cursor.members()]
        parsed = _list(members)
    else:
        refuse(f"a JSON class-frequency file is an object or a list; it begins with {opening!r}.")
    cursor.end()
    return parsed


def read_coco(text: str) -> Parsed:
    """Annotations counted by the name of their category."""
    cursor = _Cursor(text)
    problems = Problems()
    names: dict[Any, tuple[str, int]] = {}
    counts: Counter[Any] = Counter()
    first: dict[Any, int] = {}
    if cursor.peek() != "{":
        refuse("COCO annotations are a JSON object with `categories` and `annotations`.")
    seen = set()
    for at in cursor.members():
        key = cursor.key()
        if key in seen:
            refuse(f"{key[:50]!r} stands twice. Keep one.", at)
        seen.add(key)
        if cursor.peek() != "[":
            cursor.value()
        elif key == "categories":
            for line in cursor.members():
                _category(cursor.value(), line, names, problems)
        elif key == "annotations":
            for line in cursor.members():
                _annotation(cursor.value(), line, counts, first, problems)
        else:
            for _ in cursor.members():
                cursor.value()
    cursor.end()
    if not {"categories", "annotations"} <= seen:
        refuse("COCO annotations are a JSON object with `categories` and `annotations`; one of them is not there.")
    for identity in sorted(set(counts) - set(names), key=first.__getitem__):
        problems.add(first[identity], f"an annotation has the category id {identity!r}, which no category has.")
    described = f"COCO annotations, {counts.total():,} annotations (not images) counted, classes by category name"
    parsed = Parsed(format="coco", described=described, matched_by="name", declared="counts", problems=problems)
    for identity, (name, line) in names.items():
        parsed.entries.append(Entry(key=name, value=float(counts[identity]), line=line))
    return parsed


def _add(parsed: Parsed, line: int, key: str | int, written: Any) -> None:
    if isinstance(key, str) and len(key) > MAX_FIELD:
        parsed.problems.add(line, f"a class name has at most {MAX_FIELD} characters; got {len(key):,}.")
        return
    value, complaint = json_number(written)
    if complaint:
        which = f"class {key!r}" if isinstance(key, str) else f"number {key + 1} of the list"
        parsed.problems.add(line, f"{which}: {complaint}")
    parsed.entries.append(Entry(key=key, value=value, line=line))


def _list(members: list[tuple[int, Any]]) -> Parsed:
    if members and all(isinstance(value, dict) for _, value in members):
        return _records(members)
    parsed = Parsed(format="json", described="JSON list in class order", matched_by="position")
    for position, (line, value) in enumerate(members):
        _add(parsed, line, position, value)
    return parsed


def _records(members: list[tuple[int, dict[str, Any]]]) -> Parsed:
    parsed = Parsed(format="json", described="JSON list of records, classes by name", matched_by="name")
    declared: set[Kind | None] = set()
    for line, record in members:
        fields = {key.casefold(): value for key, value in record.items()}
        key = next((fields[name] for name in NAME_HEADERS if name in fields), None)
        values = [name for name in VALUE_HEADERS if name in fields]
        if len(fields) < len(record):
            parsed.problems.add(line, f"keys of a record differ in more than case; got {shown(record)}. Keep one.")
        elif not isinstance(key, str) or not values:
            rule = f"a record has a class ({', '.join(NAME_HEADERS)}) and a value ({', '.join(VALUE_HEADERS)})"
            parsed.problems.add(line, f"{rule}; this one does not.")
        elif len(values) > 1:
            parsed.problems.add(line, f"a record has one value; this one has {len(values)} ({', '.join(values)}).")
        else:
            declared.add(VALUE_HEADERS[values[0]])
            _add(parsed, line, key, fields[values[0]])
    if len(declared) == 1:
        parsed.declared = declared.pop()
    return parsed


def _category(found: Any, line: int, names: dict[Any, tuple[str, int]], problems: Problems) -> None:
    identity, name = (found.get("id"), found.get("name")) if isinstance(found, dict) else (None, None)
    if not _is_id(identity) or not isinstance(name, str) or len(name) > MAX_FIELD:
        problems.add(line, f"a category has a whole number `id` and a `name` of at most {MAX_FIELD} characters.")
    elif identity in names:
        problems.add(line, f"category id {identity} stands twice (first in line {names[identity][1]}). Keep one.")
    else:
        names[identity] = (name, line)


def _annotation(found: Any, line: int, counts: Counter[Any], first: dict[Any, int], problems: Problems) -> None:
    identity = found.get("category_id") if isinstance(found, dict) else None
    if not _is_id(identity):
        problems.add(line, "an annotation has a `category_id`, a whole number.")
        return
    first.setdefault(identity, line)
    counts[identity] += 1


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
