"""Reading an archive where it lies: nothing is unpacked to disk, no name in it is used as a path, and what it may
unpack to is bounded.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, NoReturn

from models.calibration.errors import CalibrationError, InvalidCalibrationSet

MAX_MEMBERS = 200_000  # of an archive
MAX_UNPACKED_BYTES = 4 << 30  # of all files of an archive together; they are read a batch at a time
MAX_IMAGE_BYTES = 32 << 20

_ZIP, _EMPTY_ZIP, _GZIP, _TAR = b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"ustar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file in an archive; `size` is what it unpacks to, which the reader holds it to."""

    name: str
    size: int
    read: Callable[[], bytes]


def is_archive(head: bytes) -> bool:
    """Whether a file that begins so is a .zip (an .npz among them), a .tar or a .tar.gz."""
    return head.startswith((_ZIP, _EMPTY_ZIP, _GZIP)) or head[257:].startswith(_TAR)


def members_of(file: IO[bytes], head: bytes, archive: ExitStack) -> list[Member]:
    """The files of an archive in their order; it stays open with the stack. Raises: InvalidCalibrationSet."""
    with sound():
        return _members(file, head, archive)


def _members(file: IO[bytes], head: bytes, archive: ExitStack) -> list[Member]:
    file.seek(0)
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        return _bounded(_of_zip(archive.enter_context(zipfile.ZipFile(file))))
    unpacked: Any = archive.enter_context(gzip.GzipFile(fileobj=file)) if head.startswith(_GZIP) else file
    stream = archive.enter_context(TarStream(unpacked, MAX_IMAGE_BYTES))
    tar = archive.enter_context(tarfile.TarFile(fileobj=stream))
    members = _bounded(_of_tar(tar))
    stream.seek(tar.offset)
    if stream.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:  # tarfile stops without a word there
        raise tarfile.TarError(f"what follows {len(members)} files is no end")
    return members


class TarStream(io.BufferedReader):
    """Gives no more at once than `largest` bytes: tarfile reads a header whole, however long it says it is."""

    def __init__(self, raw: Any, largest: int) -> None:
        super().__init__(raw)
        self._largest = largest + tarfile.BLOCKSIZE

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= self._largest:
            raise tarfile.TarError("a header is larger than any file may be")
        return super().read(size)


def _bounded(members: Iterable[Member]) -> list[Member]:
    """Stops at the first file over the limits, before what lies behind it is unpacked to be looked at."""
    taken, total = [], 0
    for member in members:
        taken.append(member)
        total += member.size
        if len(taken) > MAX_MEMBERS or total > MAX_UNPACKED_BYTES:
            refuse(f"an archive unpacks to at most {MAX_MEMBERS:,} files and {MAX_UNPACKED_BYTES:,} bytes in all.")
    return taken


def _of_zip(archive: zipfile.ZipFile) -> Iterator[Member]:
    for info in archive.infolist():
        if info.is_dir():
            continue
        _check_name(info.filename)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack without a bound
            refuse(f"{info.filename!r} is packed in an unusual way ({info.compress_type}). Make an ordinary .zip.")

        def read(info: zipfile.ZipInfo = info) -> bytes:
            with archive.open(info) as file:
                return file.read(info.file_size)  # a size, because without one a wrong header has no bound

        yield Member(name=info.filename, size=info.file_size, read=read)


def _of_tar(archive: tarfile.TarFile) -> Iterator[Member]:
    for info in archive:
        if info.isdir():
            continue
        _check_name(info.name)
        if not info.isreg() or info.issparse():
            refuse(f"{info.name!r} is not a plain file. An archive of images holds no links and no devices.")

        def read(info: tarfile.TarInfo = info) -> bytes:
            file = archive.extractfile(info)
            assert file is not None  # a plain file
            return file.read()

        yield Member(name=info.name, size=info.size, read=read)


def _check_name(name: str) -> None:
    """No name is used as a path; one that climbs is still no folder of a class."""
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        refuse(f"{name!r} climbs out of the archive. Pack the folder from where it lies.")


@contextmanager
def sound() -> Iterator[None]:
    """Raises: InvalidCalibrationSet for whatever goes wrong with an archive."""
    try:
        yield
    except CalibrationError:
        raise
    except Exception as error:  # what zipfile, tarfile, gzip and zlib raise has no common base
        refuse(f"the archive is damaged or cut off: {error}. Pack it again and send it whole.")


def refuse(problem: str) -> NoReturn:
    raise InvalidCalibrationSet([problem])
