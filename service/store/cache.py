"""Copies of a remote store's artifacts on the local disk: a bounded number of bytes, the least recently used out first.

Several processes may share the folder. A copy that another process removed, or that was damaged, is a miss.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from service.store.folder import Damaged, Folder

Found = TypeVar("Found", bytes, Path)


class Cache:
    """At most `limit` bytes, but always room for the newest artifact: alone it may be larger than the limit, because
    whoever asks for a file needs one. A process that is filling it may exceed the limit by what it writes.

    Raises: OSError.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = Folder(folder, durable=False)  # a copy that a power cut spoils is noticed and fetched again
        self._limit = limit

    def get(self, digest: str) -> bytes | None:
        return self._look_up(self._folder.get, digest)

    def path(self, digest: str) -> Path | None:
        """A file to open at once: it may be gone when many others were asked for."""
        return self._look_up(self._folder.path, digest)

    def add(self, digest: str, chunks: Iterable[bytes]) -> Path:
        """Raises: Damaged when the chunks have another digest; nothing is kept of them then."""
        added = self._folder.write(chunks, digest)
        files = self._folder.oldest_first()
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= self._limit:
                break
            if path != added:
                path.unlink(missing_ok=True)
                total -= size
        return added

    def delete(self, digest: str) -> None:
        self._folder.delete(digest)

    def _look_up(self, read: Callable[[str], Found], digest: str) -> Found | None:
        try:
            found = read(digest)
            self._folder.touch(digest)
        except (Damaged, OSError):  # what is fetched now takes its place
            return None
        return found
