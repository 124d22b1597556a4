"""Class-frequency files: from bytes to frequencies by class, every problem reported at once with its line.

Values are matched to classes by name. By index only where the file says so itself: a header `index`, a list in class
order, or whole-number labels of a split list that are no class names.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, get_args

import numpy as np

from models.calibration.frequency.entries import Format, Kind, MatchedBy, Parsed, refuse, shown
from models.calibration.frequency.matching import Missing, values_by_class
from models.calibration.frequency.sniff import FORMATS, MAX_BYTES, MAX_LIST_BYTES, parse
from models.calibration.types import ClassPrior, FloatArray, IntArray

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "MAX_LIST_BYTES",
    "Format",
    "Frequencies",
    "Kind",
    "MatchedBy",
    "Missing",
    "Role",
    "Zeros",
    "read_frequencies",
]

Role = Literal["target", "training"]
Zeros = Literal["error", "impossible", "smooth"]

SMOOTHING = 0.5  # Jeffreys: half an example a class


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frequencies:
    """A frequency file that passed: `values (C,)` in class order, what kind they are, and the prior they make.

    `counts` is there when every value is a whole number. `format_detected` says in words how the file was read;
    `format`, `matched_by`, `header` and `delimiter` (None where there is none) say it to programs.
    """

    values: FloatArray
    kind: Kind
    format_detected: str
    format: Format
    matched_by: MatchedBy
    header: bool
    delimiter: str | None
    prior: ClassPrior
    counts: IntArray | None
    warnings: tuple[str, ...]


def read_frequencies(
    data: bytes | BinaryIO,
    class_names: Sequence[str],
    *,
    role: Role,
    zeros: Zeros = "error",
    missing: Missing = "error",
    format: Format | None = None,
) -> Frequencies:
    """Read a class-frequency file for the given classes.

    Args: data, the file, or a seekable binary file that is read from its start and left open: at most 1 MiB of counts,
        or 64 MiB of examples, which are counted as they stream by. role, `target` (how often the classes occur where
        the model runs; counts, fractions or percentages) or `training` (examples a class the classifier was trained on;
        whole numbers, none 0). zeros, what a zero means for a target: `error`; `impossible`, the class cannot occur;
        `smooth`, not seen yet, so half an example is added to every count. missing, what a class that the file does not
        name means: `error`, or `zero`. format, a name of `FORMATS`; without it the content tells.
    Raises: FrequencyFileError with everything that is wrong, or with the option that has no such value.
    """
    for option, value, known in (("role", role, Role), ("zeros", zeros, Zeros), ("missing", missing, Missing)):
        if value not in get_args(known):
            refuse(f"{option} is one of {', '.join(get_args(known))}; got {value!r}.")
    if format is not None and format not in FORMATS:
        refuse(f"a format is one of {', '.join(FORMATS)}; got {format!r}. Leave it out to have it detected.")
    parsed = parse(io.BytesIO(data) if isinstance(data, bytes) else data, class_names, format)
    values, matched_by = values_by_class(parsed, class_names, missing, may_be_zero=role == "target")
    _check_entries(parsed, values, class_names, role, zeros)
    parsed.problems.raise_if_any()
    whole = bool((values == np.round(values)).all())
    kind = _kind(values, whole, parsed.declared)
    _check_kind(parsed, kind, role, zeros, values)
    parsed.problems.raise_if_any()
    weights = values + SMOOTHING if zeros == "smooth" and role == "target" and (values == 0).any() else values
    return Frequencies(
        values=values,
        kind=kind,
        format_detected=_in_words(parsed, matched_by, kind, values),
        format=parsed.format,
        matched_by=matched_by,
        header=parsed.header,
        delimiter=parsed.delimiter,
        prior=ClassPrior.from_weights(weights),
        counts=values.astype(np.int64) if whole else None,
        warnings=(*parsed.warnings, *_kind_warnings(parsed, kind, values, role)),
    )


def _check_entries(parsed: Parsed, values: FloatArray, class_names: Sequence[str], role: Role, zeros: Zeros) -> None:
    """What is wrong with single values, whatever kind the whole is."""
    if role == "training":
        for entry in parsed.entries:
            if entry.value is not None and entry.value % 1:
                message = f"a training count is a whole number of examples; got {entry.value:g}."
                parsed.problems.add(entry.line, f"class {_name(entry.key, class_names)}: {message}")
    empty = [name for name, value in zip(class_names, values, strict=True) if value == 0]
    if len(empty) == len(class_names):
        parsed.problems.add(None, "all values are 0. At least one class must occur.")
    elif empty and role == "training":
        message = f"every class needs at least one training example; 0 for {shown(empty)}."
        parsed.problems.add(None, f"{message} A class without has no evidence.")
    elif empty and zeros == "error":
        message = (
            f"a zero can mean two things; 0 for {shown(empty)}. Say zeros=impossible if the class cannot occur, or "
            "zeros=smooth if it was only not seen yet."
        )
        parsed.problems.add(None, message)


def _name(key: str | int, class_names: Sequence[str]) -> str:
    """A key as the file has it; for a position, the class that stands there."""
    return repr(class_names[key] if isinstance(key, int) and key < len(class_names) else key)


def _kind(values: FloatArray, whole: bool, declared: Kind | None) -> Kind:
    """What a header declares holds where the numbers agree with it; otherwise the numbers tell."""
    total = values.sum()
    fractions, percentages = abs(total - 1) <= 1e-3, abs(total - 100) <= 0.5
    if declared == "fractions":
        return "fractions" if fractions else "weights"
    if declared == "percentages":
        return "percentages" if percentages else "weights"
    if whole and (total > 1 or declared == "counts"):
        return "counts"
    if fractions:
        return "fractions"
    return "percentages" if percentages else "weights"


def _check_kind(parsed: Parsed, kind: Kind, role: Role, zeros: Zeros, values: FloatArray) -> None:
    if role == "training" and kind != "counts":
        message = f"training counts are whole numbers of examples; got {kind} that sum to {values.sum():g}."
        parsed.problems.add(None, message)
    elif zeros == "smooth" and kind != "counts" and (values == 0).any():
        message = f"zeros=smooth adds half an example to every count and so needs counts; got {kind}. Send counts."
        parsed.problems.add(None, message)


def _kind_warnings(parsed: Parsed, kind: Kind, values: FloatArray, role: Role) -> list[str]:
    total = values.sum()
    if kind != "counts" and parsed.declared == "counts":
        return [
            f"the header says counts, but not all values are whole (they sum to {total:.6g}); they were normalised."
        ]
    if kind == "percentages":
        return [f"the values sum to {total:.6g} and were read as percentages."]
    if kind == "weights" and parsed.declared in ("fractions", "percentages"):
        return [f"the header says {parsed.declared}, but the values sum to {total:.6g}; they were normalised."]
    if kind == "weights":
        return [f"the values are neither counts nor do they sum to 1 (they sum to {total:.6g}); they were normalised."]
    if kind == "counts" and total == 100 and parsed.declared is None and (role == "training" or (values == 0).any()):
        return ["the counts sum to 100: make sure that they are examples and not percentages."]
    return []


def _in_words(parsed: Parsed, matched_by: MatchedBy, kind: Kind, values: FloatArray) -> str:
    labels = f", labels are the classes by {matched_by}" if parsed.matched_by is None else ""
    return f"{parsed.described}{labels}; {values.size:,} classes, {kind}, total {_number(values.sum())}"


def _number(total: float) -> str:
    return f"{int(total):,}" if total % 1 == 0 else f"{total:.6g}"
