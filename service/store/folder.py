"""A folder of files named by their SHA-256: each is there whole or not at all, and checked when it is read.

Our own and not obstore's local store, which neither asks the disk to keep what it wrote nor clears away what a killed
writer left. A file replaced by a rename before its bytes were on the disk could be lost although it was good before.
"""

import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from io import BufferedIOBase
from pathlib import Path
from uuid import uuid4

CHUNK_BYTES = 1 << 20
LEFT_OVER_SECONDS = 24 * 3600  # no writer pauses for so long


class Damaged(Exception):
    """The bytes under a digest have another one."""


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(digest: str) -> str:
    assert len(digest) == 64, digest  # a digest is never a path
    assert set(digest) <= set("0123456789abcdef"), digest
    return f"sha256/{digest[:2]}/{digest}"


def chunks_of(source: BufferedIOBase) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk


class Folder:
    """With `durable`, what was written survives a power cut. Safe between threads and processes.

    Raises: OSError from every method; Damaged from `get`, `path` and `write`.
    """

    def __init__(self, root: Path, *, durable: bool) -> None:
        self._root, self._durable = root, durable
        self._unfinished = root / "tmp"  # on the same file system, so that a rename moves no bytes
        self._unfinished.mkdir(parents=True, exist_ok=True)
        (root / "sha256").mkdir(exist_ok=True)
        self._sync(root.parent, root)
        self._clear_left_overs()

    def put(self, source: BufferedIOBase) -> str:
        return self.write(chunks_of(source)).name

    def get(self, digest: str) -> bytes:
        data = self._file(digest).read_bytes()
        if digest_of(data) != digest:
            raise Damaged
        return data

    def path(self, digest: str) -> Path:
        path = self._file(digest)
        if digest_of_file(path) != digest:
            raise Damaged
        return path

    def holds(self, digest: str) -> bool:
        """Whether it is there and sound."""
        try:
            self.path(digest)
        except (FileNotFoundError, Damaged):
            return False
        return True

    def delete(self, digest: str) -> None:
        self._file(digest).unlink(missing_ok=True)

    def touch(self, digest: str) -> None:
        os.utime(self._file(digest))

    def write(self, chunks: Iterable[bytes], digest: str | None = None) -> Path:
        """The file under the digest of the chunks, which must be `digest` where one is given."""
        unfinished = self._unfinished / uuid4().hex
        hasher = hashlib.sha256()
        self._unfinished.mkdir(parents=True, exist_ok=True)  # something may have cleared a cache's folder away
        try:
            with unfinished.open("xb") as file:
                for chunk in chunks:
                    hasher.update(chunk)
                    file.write(chunk)
                if self._durable:
                    file.flush()
                    os.fsync(file.fileno())
            if digest not in (None, hasher.hexdigest()):
                raise Damaged
            target = self._file(hasher.hexdigest())
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
        self._sync(target.parent.parent, target.parent)
        return target

    def oldest_first(self) -> list[tuple[Path, int]]:
        """Every file with its size in bytes, by the time when it was last written or touched."""
        found = []
        for path in self._root.glob("sha256/*/*"):
            with suppress(FileNotFoundError):  # another process removed it
                found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        return [(path, size) for _, path, size in sorted(found)]

    def _file(self, digest: str) -> Path:
        return self._root / key_of(digest)

    def _sync(self, *folders: Path) -> None:
        """Keep the names in these folders; the bytes of a file are of no use without its name."""
        if not self._durable or os.name == "nt":  # Windows opens no folders, and keeps names by itself
            return
        for folder in folders:
            opened = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(opened)
            finally:
                os.close(opened)

    def _clear_left_overs(self) -> None:
        for path in self._unfinished.iterdir():
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - LEFT_OVER_SECONDS:
                    path.unlink()
