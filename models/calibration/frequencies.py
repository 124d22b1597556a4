"""Class-frequency files: CSV and JSON, checked completely, every problem reported at once with its line.

Values are matched to classes by name. By position only where the file says so itself: a header `index`, or a JSON list.
"""

import difflib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from models.calibration.errors import FileProblem, FrequencyFileError
from models.calibration.frequency_formats import Entry, Parsed, parse
from models.calibration.types import ClassPrior, FloatArray, IntArray

Role = Literal["target", "training"]
Zeros = Literal["error", "impossible", "smooth"]
Kind = Literal["counts", "fractions", "percentages", "weights"]

MAX_BYTES = 1 << 20
SMOOTHING = 0.5  # Jeffreys: half an example a class


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frequencies:
    """A frequency file that passed: `values (C,)` in class order, what kind they are, and the prior they make.

    `counts` is there when every value is a whole number. `format_detected` says in words how the file was read.
    """

    values: FloatArray
    kind: Kind
    format_detected: str
    prior: ClassPrior
    counts: IntArray | None
    warnings: tuple[str, ...]


def read_frequencies(data: bytes, class_names: Sequence[str], *, role: Role, zeros: Zeros = "error") -> Frequencies:
    """Read a class-frequency file for the given classes.

    Args: role, `target` (how often the classes occur where the model runs; counts, fractions or percentages) or
        `training` (examples a class the classifier was trained on; whole numbers, none 0). zeros, what a zero means for
        a target: `error`; `impossible`, the class cannot occur; `smooth`, not seen yet, so half an example is added to
        every count.
    Raises: FrequencyFileError with everything that is wrong.
    """
    if len(data) > MAX_BYTES:
        _refuse(
            f"a class-frequency file has at most {MAX_BYTES:,} bytes; got {len(data):,}. Send counts, not examples."
        )
    parsed = parse(data)
    problems = list(parsed.problems)
    warnings = list(parsed.warnings)
    values = _by_class(parsed, class_names, problems, warnings)
    if role == "training":
        problems += [_fractional(entry) for entry in parsed.entries if entry.value is not None and entry.value % 1]
    if not problems:
        problems += _check_values(values, class_names, role, zeros)
    if problems:
        raise FrequencyFileError(problems)
    whole = bool((values == np.round(values)).all())
    kind = _kind(values, whole)
    problems += _check_kind(kind, role, zeros, values)
    if problems:
        raise FrequencyFileError(problems)
    warnings += _kind_warnings(kind, values, role)
    weights = values + SMOOTHING if zeros == "smooth" and role == "target" and (values == 0).any() else values
    return Frequencies(
        values=values,
        kind=kind,
        format_detected=parsed.format,
        prior=ClassPrior.from_weights(weights),
        counts=values.astype(np.int64) if whole else None,
        warnings=tuple(warnings),
    )


def _refuse(message: str) -> None:
    raise FrequencyFileError([FileProblem(line=None, message=message)])


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _by_class(
    parsed: Parsed, class_names: Sequence[str], problems: list[FileProblem], warnings: list[str]
) -> FloatArray:
    """Values in class order, NaN where the file has none; adds what it finds to `problems` and `warnings`."""
    values = np.full(len(class_names), np.nan)
    position = {_normal(name): index for index, name in enumerate(class_names)}
    seen: dict[int, Entry] = {}
    for entry in parsed.entries:
        index = position.get(_normal(str(entry.key))) if parsed.by == "name" else _index(entry.key, len(class_names))
        if index is None:
            problems.append(FileProblem(line=entry.line, message=_unknown(entry.key, parsed.by, class_names)))
            continue
        earlier = seen.setdefault(index, entry)
        if earlier is not entry:
            where = "" if earlier.line is None else f" (first in line {earlier.line})"
            if earlier.value == entry.value:
                warnings.append(f"class {class_names[index]!r} stands twice with the same value{where}.")
            else:
                message = f"class {class_names[index]!r} stands twice with different values{where}. Keep one."
                problems.append(FileProblem(line=entry.line, message=message))
        if entry.value is not None:
            values[index] = entry.value
    missing = [name for index, name in enumerate(class_names) if index not in seen]
    if parsed.by == "position" and len(parsed.entries) != len(class_names):
        rule = f"a list has one number for each of the {len(class_names)} classes, in class order"
        problems.append(FileProblem(line=None, message=f"{rule}; got {len(parsed.entries)}."))
    elif missing:
        shown = ", ".join(repr(name) for name in missing[:5]) + (" ..." if len(missing) > 5 else "")
        message = f"{len(missing)} of {len(class_names)} classes are missing: {shown}. Write 0 for a class without any."
        problems.append(FileProblem(line=None, message=message))
    return values


def _index(key: str | int, num_classes: int) -> int | None:
    try:
        index = int(key)
    except ValueError:
        return None
    return index if 0 <= index < num_classes else None


def _unknown(key: str | int, by: str, class_names: Sequence[str]) -> str:
    if by != "name":
        return f"class indices are whole numbers from 0 to {len(class_names) - 1}; got {key!r}."
    by_folded = {_normal(name).casefold(): name for name in class_names}
    nearest = difflib.get_close_matches(_normal(str(key)).casefold(), by_folded, n=1)
    hint = f" Did you mean {by_folded[nearest[0]]!r}?" if nearest else ""
    if not nearest and str(key).isdigit():
        hint = " To match by position, name the column 'index'."
    return f"the model has no class {key!r}.{hint}"


def _check_values(values: FloatArray, class_names: Sequence[str], role: Role, zeros: Zeros) -> list[FileProblem]:
    """What is wrong with complete values, whatever kind they are."""
    if not values.any():
        return [FileProblem(line=None, message="all values are 0. At least one class must occur.")]
    empty = [name for name, value in zip(class_names, values, strict=True) if value == 0]
    shown = ", ".join(repr(name) for name in empty[:5]) + (" ..." if len(empty) > 5 else "")
    if empty and role == "training":
        message = f"every class needs at least one training example; 0 for {shown}. A class without has no evidence."
        return [FileProblem(line=None, message=message)]
    if empty and zeros == "error":
        message = (
            f"a zero can mean two things; 0 for {shown}. Say zeros=impossible if the class cannot occur, or "
            "zeros=smooth if it was only not seen yet."
        )
        return [FileProblem(line=None, message=message)]
    return []


def _kind(values: FloatArray, whole: bool) -> Kind:
    total = values.sum()
    if whole and total > 1:
        return "counts"
    if abs(total - 1) <= 1e-3:
        return "fractions"
    return "percentages" if abs(total - 100) <= 0.5 else "weights"


def _fractional(entry: Entry) -> FileProblem:
    message = f"class {entry.key!r}: a training count is a whole number of examples; got {entry.value:g}."
    return FileProblem(line=entry.line, message=message)


def _check_kind(kind: Kind, role: Role, zeros: Zeros, values: FloatArray) -> list[FileProblem]:
    if role == "training" and kind != "counts":
        message = f"training counts are whole numbers of examples; got {kind} that sum to {values.sum():g}."
        return [FileProblem(line=None, message=message)]
    if zeros == "smooth" and kind != "counts" and (values == 0).any():
        message = f"zeros=smooth adds half an example to every count and so needs counts; got {kind}. Send counts."
        return [FileProblem(line=None, message=message)]
    return []


def _kind_warnings(kind: Kind, values: FloatArray, role: Role) -> list[str]:
    total = values.sum()
    if kind == "percentages":
        return [f"the values sum to {total:.6g} and were read as percentages."]
    if kind == "weights":
        return [f"the values are neither counts nor do they sum to 1 (they sum to {total:.6g}); they were normalised."]
    if kind == "counts" and total == 100 and role == "training":
        return ["the counts sum to 100: make sure that they are examples and not percentages."]
    return []
