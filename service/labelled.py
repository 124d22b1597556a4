"""Reading a calibration set that a client uploads: labelled logits (.npz or JSON), or an archive of labelled images.

The format is seen from the content.
"""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack
from itertools import islice
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import orjson

from models.calibration.errors import (
    ImageTooLarge,
    InvalidCalibrationSet,
    InvalidImage,
    LeakedSplit,
    NotEnoughData,
    ShapeMismatch,
)
from models.calibration.frequency.entries import normal
from models.calibration.types import FloatArray, IntArray, LogitSet
from service.archive import MAX_IMAGE_BYTES, Member, is_archive, members_of, refuse, sound
from service.errors import LogitsOnly
from service.runtime import arrays

MAX_ARRAY_BYTES = 1 << 30  # of logits or labels, which are held as a whole
MAX_JSON_BYTES = 128 << 20  # which takes several times as much when read
MAX_DRAWN = 1000  # characters
BATCH_IMAGES, BATCH_BYTES = 32, 64 << 20
MAX_LISTED = 20  # problems that are told in full

_NOT_DATA = ("__MACOSX", "Thumbs.db")
_LOGITS = "an .npz file with logits (N, C) and labels (N,), or JSON with the same"

LogitsOf = Callable[[list[bytes]], FloatArray]
AsLogits = Callable[[FloatArray], FloatArray]


def read_labelled(
    file: IO[bytes],
    *,
    class_names: Sequence[str],
    logits_of: LogitsOf | None,
    drawn: str,
    as_logits: AsLogits = lambda rows: rows,
    progress: Callable[[float], None] = lambda share: None,
) -> LogitSet:
    """The labelled logits of an uploaded file, or those that the network gives for its labelled images.

    Args: logits_of, image files to raw logits `(N, C)`, called with 32 files at a time or fewer; None for a model
        without a network. drawn, how the set was drawn, where the file does not say it. as_logits, what becomes of the
        numbers of a file `(N, C)` before they are taken for logits. progress takes the share of images done, after each
        call.
    Raises: InvalidCalibrationSet with everything that is wrong, LogitsOnly for images without a network, LeakedSplit
        for training data, NotEnoughData for fewer than two examples, ShapeMismatch, InvalidLogits.
    """
    head = file.read(512)
    if head.lstrip().startswith(b"{"):
        return _from_json(file, class_names, as_logits, drawn)
    if not is_archive(head):
        refuse(
            f"labelled examples are {_LOGITS}, or a .zip, .tar or .tar.gz of images in one folder a class; this file "
            f"begins with {head[:8]!r}."
        )
    with ExitStack() as archive:
        members = members_of(file, head, archive)
        by_name = {member.name: member for member in members}
        if by_name.keys() & {"logits.npy", "labels.npy"}:
            return _from_npz(by_name, class_names, as_logits, drawn)
        return _from_images(members, class_names, logits_of, drawn, progress)


def _from_json(file: IO[bytes], class_names: Sequence[str], as_logits: AsLogits, drawn: str) -> LogitSet:
    size = file.seek(0, io.SEEK_END)
    if size > MAX_JSON_BYTES:
        refuse(f"labelled logits as JSON have at most {MAX_JSON_BYTES:,} bytes; got {size:,}. Send an .npz file.")
    file.seek(0)
    try:
        document = orjson.loads(file.read())
    except orjson.JSONDecodeError as error:
        refuse(f"the JSON cannot be read: {error}. NaN and infinity are no JSON numbers.")
    if not isinstance(document.get("labels"), list) or "logits" not in document:
        refuse('labelled logits as JSON are {"logits": [[...]], "labels": [...]}, one label a row.')
    split, said = (str(document.get(name) or "") for name in ("split", "drawn"))
    logits = as_logits(arrays.logits_of_json(document["logits"]))
    return _set(logits, document["labels"], class_names, split=split, drawn=said or drawn)


def _from_npz(members: dict[str, Member], class_names: Sequence[str], as_logits: AsLogits, drawn: str) -> LogitSet:
    missing = {"logits.npy", "labels.npy"} - members.keys()
    if missing:
        refuse(f"labelled logits are {_LOGITS}; this .npz file has no {missing.pop()}.")
    logits = as_logits(arrays.logits_of_npy(_array_bytes(members["logits.npy"])))
    labels = _array(members["labels.npy"], kinds="iuU")
    split, said = (
        str(_array(members[name], kinds="U")) if name in members else "" for name in ("split.npy", "drawn.npy")
    )
    return _set(logits, np.atleast_1d(labels).tolist(), class_names, split=split, drawn=said or drawn)


def _array(member: Member, *, kinds: str) -> Any:
    data = _array_bytes(member)
    try:
        return arrays.array_of_npy(data, kinds)
    except ValueError as error:
        refuse(f"{member.name} must be {'whole numbers or ' if 'i' in kinds else ''}text: {error}.")


def _array_bytes(member: Member) -> bytes:
    if member.size > MAX_ARRAY_BYTES:
        refuse(f"an array has at most {MAX_ARRAY_BYTES:,} bytes; {member.name} has {member.size:,}.")
    with sound():
        return member.read()


def _from_images(
    members: Sequence[Member],
    class_names: Sequence[str],
    logits_of: LogitsOf | None,
    drawn: str,
    progress: Callable[[float], None],
) -> LogitSet:
    if logits_of is None:
        raise LogitsOnly(f"this model has no network and takes no images. Send labelled logits: {_LOGITS}.")
    images = _images(members)
    labels = _indices(_folders(images, class_names), class_names)
    _check_enough(len(images))
    large = [image for image in images if image.size > MAX_IMAGE_BYTES]
    _refuse_any(
        (f"{each.name!r} has {each.size:,} bytes, an image at most {MAX_IMAGE_BYTES:,}." for each in large), large
    )
    rows: list[FloatArray] = []
    problems: list[str] = []
    done = 0
    for batch in _batches(images):
        try:
            rows.append(logits_of([data for _, data in batch]))
        except (InvalidImage, ImageTooLarge):
            problems += _undecodable(batch, logits_of)
        if len(problems) > MAX_LISTED:
            break
        done += len(batch)
        progress(done / len(images))
    _refuse_any(problems, problems)
    return LogitSet(logits=np.concatenate(rows), labels=labels, split="calibration", drawn=drawn)


def _images(members: Iterable[Member]) -> list[Member]:
    """Without what file managers leave behind: hidden files, and folders of attributes and previews."""
    return [
        member
        for member in members
        if not any(part.startswith(".") or part in _NOT_DATA for part in PurePosixPath(member.name).parts)
    ]


def _folders(images: Sequence[Member], class_names: Sequence[str]) -> list[str]:
    """The folder of each image that names its class. One folder around all of them is skipped."""
    parts = [PurePosixPath(image.name).parts for image in images]
    around = {each[0] for each in parts}
    if len(around) == 1 and not around & set(class_names) and any(len(each) > 2 for each in parts):
        _check_split(around.pop())
        parts = [each[1:] for each in parts]
    alone = [image.name for image, each in zip(images, parts, strict=True) if len(each) < 2]
    _refuse_any((f"{name!r} lies in no folder; an image lies in the folder of its class." for name in alone), alone)
    return [each[0] for each in parts]


def _batches(images: Sequence[Member]) -> Iterator[list[tuple[str, bytes]]]:
    batch: list[tuple[str, bytes]] = []
    for image in images:
        with sound():
            batch.append((image.name, image.read()))
        if len(batch) == BATCH_IMAGES or sum(len(data) for _, data in batch) > BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _undecodable(batch: Iterable[tuple[str, bytes]], logits_of: LogitsOf) -> list[str]:
    problems = []
    for name, data in batch:
        try:
            logits_of([data])
        except (InvalidImage, ImageTooLarge) as error:
            problems.append(f"{name!r}: {error}")
    return problems


def _set(logits: FloatArray, labels: Sequence[Any], class_names: Sequence[str], *, split: str, drawn: str) -> LogitSet:
    _check_split(split)
    if logits.ndim != 2 or logits.shape[1] != len(class_names):
        raise ShapeMismatch(
            f"logits must be (N, {len(class_names)}) to match the model's classes; got {logits.shape}. Send one number "
            "for each class of the model, in its order."
        )
    if len(labels) != len(logits):
        raise ShapeMismatch(f"labels must be ({len(logits)},) like the logits; got {len(labels)} of them.")
    if len(drawn) > MAX_DRAWN:
        refuse(f"drawn says how the set was drawn in at most {MAX_DRAWN:,} characters; got {len(drawn):,}.")
    _check_enough(len(labels))
    return LogitSet(logits=logits, labels=_indices(labels, class_names), split="calibration", drawn=drawn)


def _check_split(name: str) -> None:
    """Every other name is held-out data, however it is called."""
    if name.strip().casefold().startswith("train"):
        raise LeakedSplit(
            f"a calibration set is data that the network never saw; this one is called {name!r}. Send held-out "
            "examples, or call them otherwise if they are."
        )


def _check_enough(num_items: int) -> None:
    if num_items < 2:
        raise NotEnoughData(f"a calibration set has at least 2 labelled examples; got {num_items}.")


def _indices(labels: Sequence[Any], class_names: Sequence[str]) -> IntArray:
    """Class indices `(N,)`: a text is a class name, compared in normal form, and a whole number an index."""
    by_name = {normal(name): index for index, name in enumerate(class_names)}  # a manifest has none twice

    def find(label: Any) -> int | None:
        if isinstance(label, str):
            return by_name.get(normal(label))
        return label if type(label) is int and 0 <= label < len(class_names) else None  # a bool is an int to Python

    found = [find(label) for label in labels]
    wrong = {repr(label): label for label, index in zip(labels, found, strict=True) if index is None}
    _refuse_any((_unknown(label, class_names) for label in wrong.values()), wrong)
    return np.array(found, dtype=np.int64)


def _unknown(label: Any, class_names: Sequence[str]) -> str:
    if not isinstance(label, str):
        rule = f"a label is a class name or a class index from 0 to {len(class_names) - 1}"
        return f"{rule}; got {repr(label)[:80]}."
    folded = {name.casefold(): name for name in class_names}
    nearest = difflib.get_close_matches(label[:200].casefold(), folded, n=1)
    return f"the model has no class {label[:200]!r}." + (f" Did you mean {folded[nearest[0]]!r}?" if nearest else "")


def _refuse_any(problems: Iterable[str], each: Sized) -> None:
    """Refuse the file if there is one problem or more; the first are told, and made, and the others counted."""
    if len(each):
        more = len(each) - MAX_LISTED
        told = list(islice(problems, MAX_LISTED))
        raise InvalidCalibrationSet([*told, f"{more:,} more are not listed."] if more > 0 else told)
