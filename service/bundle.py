"""Reading a bundle: a folder or a .tar of it, complete in itself, checked against the checksums in its manifest."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import cast, get_args

import numpy as np
import orjson

from models.calibration.errors import CalibrationError
from models.calibration.manifest import CALIBRATION_SET_FILE, MANIFEST_FILE, MODEL_FILE, Manifest
from models.calibration.packing import pack_logits
from models.calibration.types import LogitSet, Split
from service.archive import TarStream
from service.errors import InvalidBundle

MAX_MEMBERS = 100  # of an archive: room for what packers add, and for nothing else

ReadFile = Callable[[str], bytes | None]  # None for a file that is not there


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bundle:
    """A manifest and the files that it lists, by name; their checksums are right."""

    manifest: Manifest
    files: Mapping[str, bytes]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the manifest, and so of everything: it holds the checksums of the files."""
        return hashlib.sha256(orjson.dumps(self.manifest.to_json(), option=orjson.OPT_SORT_KEYS)).hexdigest()


def read_bundle(path: Path, name: str | None = None) -> Bundle:
    """Args: name, what messages call it instead of its path. Raises: InvalidBundle, saying what is wrong."""
    try:
        if path.is_dir():
            return _check(_from_folder(path))
        with path.open("rb") as file:
            stream = TarStream(file, largest=path.stat().st_size)
            with stream, tarfile.open(fileobj=stream, mode="r:") as archive:
                return _check(_from_archive(archive))
    except (CalibrationError, tarfile.TarError, OSError) as error:
        raise InvalidBundle(
            f"{name or path} is not a sound bundle: {error} A bundle is a folder with {MANIFEST_FILE}, or an "
            "uncompressed .tar of it, as `equipoise export` and `equipoise import` write it."
        ) from error


def bundle_of(manifest: Manifest, model: bytes | None, calibration_set: LogitSet | None) -> Bundle:
    """A bundle of parts that were made here; the manifest's `files` are filled in."""
    files = {} if model is None else {MODEL_FILE: model}
    if calibration_set is not None:
        files[CALIBRATION_SET_FILE] = pack_logits(calibration_set)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    return Bundle(manifest=replace(manifest, files=digests), files=files)


def read_calibration_set(data: bytes) -> LogitSet:
    """The labelled logits of `calibration_set.npz`. Raises: InvalidBundle."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            split, drawn = str(arrays["split"]), str(arrays["drawn"])
            if split not in get_args(Split):
                raise InvalidBundle(f"a split is one of {', '.join(get_args(Split))}; got {split!r}.")
            return LogitSet(logits=arrays["logits"], labels=arrays["labels"], split=cast(Split, split), drawn=drawn)
    except InvalidBundle:
        raise
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidBundle(f"{CALIBRATION_SET_FILE} holds logits, labels, split and drawn; {error}") from error


def _check(read: ReadFile) -> Bundle:
    text = read(MANIFEST_FILE)
    if text is None:
        raise InvalidBundle(f"it has no {MANIFEST_FILE}.")
    try:
        manifest = Manifest.from_json(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise InvalidBundle(f"{MANIFEST_FILE} is not JSON: {error}.") from error
    files = {name: _checked_file(read, name, digest) for name, digest in manifest.files.items()}
    if manifest.input_size is not None and MODEL_FILE not in files:
        raise InvalidBundle(f"its manifest describes a network but lists no {MODEL_FILE}.")
    if CALIBRATION_SET_FILE in files:
        classes = read_calibration_set(files[CALIBRATION_SET_FILE]).num_classes
        if classes != manifest.num_classes:
            raise InvalidBundle(
                f"{CALIBRATION_SET_FILE} has logits of {classes} classes, the manifest {manifest.num_classes}."
            )
    return Bundle(manifest=manifest, files=files)


def _checked_file(read: ReadFile, name: str, digest: str) -> bytes:
    if name in ("", ".", "..", MANIFEST_FILE) or "/" in name or "\\" in name or "\0" in name:
        raise InvalidBundle(f"its manifest lists {name!r}; the files of a bundle lie in its own folder, by plain name.")
    data = read(name)
    if data is None:
        raise InvalidBundle(f"its manifest lists {name}, which is missing. Copy the whole bundle again.")
    actual = hashlib.sha256(data).hexdigest()
    if actual != digest:
        raise InvalidBundle(
            f"{name} has the SHA-256 {actual}, its manifest says {digest}: it was damaged or exchanged. Copy it again."
        )
    return data


def _from_folder(folder: Path) -> ReadFile:
    def read(name: str) -> bytes | None:
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InvalidBundle(f"{name} is a link that leads out of the folder. Put the file itself there.")
        return path.read_bytes() if path.is_file() else None

    return read


def _from_archive(archive: tarfile.TarFile) -> ReadFile:
    """Reads members in place; nothing is unpacked. The bundle is at the top, or alone in one folder."""
    members = {str(PurePosixPath(member.name)): member for member in islice(archive, MAX_MEMBERS + 1)}
    if len(members) > MAX_MEMBERS:
        raise InvalidBundle(f"it has more than {MAX_MEMBERS} members; a bundle has three files.")
    for name, member in members.items():
        if name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise InvalidBundle(f"its member {name!r} climbs out of the folder.")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise InvalidBundle(f"its member {name!r} is not a plain file. A bundle holds no links and no devices.")
    tops = {PurePosixPath(name).parent for name in members if PurePosixPath(name).name == MANIFEST_FILE}
    top = min(tops, key=lambda folder: len(folder.parts), default=PurePosixPath())

    def read(name: str) -> bytes | None:
        member = members.get(str(top / name))
        content = None if member is None else archive.extractfile(member)
        return None if content is None else content.read()

    return read
