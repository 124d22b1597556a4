"""Files by their SHA-256: a local folder by default, an object store by URL.

Stores put an object in place whole or not at all, so that nobody reads half of one; what was damaged later is found on
reading.
"""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path
from typing import Protocol

from obstore.store import LocalStore

from service.errors import CannotStart, StorageUnavailable
from service.store.cache import Cache
from service.store.folder import Damaged, Folder, digest_of, digest_of_file
from service.store.remote import STORE_ERRORS, Remote

__all__ = ["ArtifactStore", "digest_of", "digest_of_file"]

CACHE_BYTES = 8 << 30

log = logging.getLogger(__name__)


class Place(Protocol):
    """Where the bytes are."""

    def put(self, source: BufferedIOBase) -> str: ...
    def get(self, digest: str) -> bytes: ...
    def path(self, digest: str) -> Path: ...
    def holds(self, digest: str) -> bool: ...
    def delete(self, digest: str) -> None: ...


class ArtifactStore:
    """Safe between threads and processes.

    Args: url `file:///folder`, `s3://bucket/prefix` or another that obstore knows. cache_dir keeps copies of a remote
        store's artifacts, at most `cache_bytes` or the newest one; processes may share it. Without it they are kept
        in a folder that goes with the process. A local store needs none.
    Raises: CannotStart when the URL leads to no store, or a folder cannot be written.
    """

    def __init__(self, url: str, cache_dir: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        try:
            self._place = self._open(url, cache_dir, cache_bytes)
        except (*STORE_ERRORS, ValueError) as error:
            raise CannotStart(
                f"the artifact store {url} cannot be opened: {_first_line(error)}. Check EQUIPOISE_ARTIFACTS_URL and "
                "EQUIPOISE_STATE_DIR: the folder must be writable."
            ) from error

    def put(self, data: bytes) -> str:
        """Store bytes under their digest; again the same bytes repair a damaged copy.

        Returns: the SHA-256 in hex; from then on the bytes survive a power cut. Raises: StorageUnavailable.
        """
        with _writing():
            return self._place.put(BytesIO(data))

    def put_file(self, path: Path) -> str:
        """As `put`, in bounded memory. Raises: OSError when the file cannot be opened, StorageUnavailable."""
        with path.open("rb") as source, _writing():
            return self._place.put(source)

    def get(self, digest: str) -> bytes:
        """Raises: StorageUnavailable when the artifact is missing, or its bytes are not those that were put."""
        with _reading(digest):
            return self._place.get(digest)

    def path(self, digest: str) -> Path:
        """A local file with these bytes, just checked, to be opened at once and never written.

        It is the store's own file, or a cached copy that is removed when room is needed. Raises: as `get`.
        """
        with _reading(digest):
            return self._place.path(digest)

    def holds(self, digest: str) -> bool:
        """Whether an artifact need not be put again. Raises: StorageUnavailable."""
        with _reading(digest):
            return self._place.holds(digest)

    def delete(self, digest: str) -> None:
        """Remove an artifact; one that is gone is fine. Raises: StorageUnavailable."""
        with _writing():
            self._place.delete(digest)

    def _open(self, url: str, cache_dir: Path | None, cache_bytes: int) -> Place:
        if url.lower().startswith("file:"):
            folder = LocalStore.from_url(url, mkdir=True).prefix
            assert folder is not None
            return Folder(folder, durable=True)
        if cache_dir is None:
            cache_dir = Path(tempfile.mkdtemp(prefix="equipoise-cache-"))
            weakref.finalize(self, shutil.rmtree, cache_dir, ignore_errors=True)
        return Remote(url, Cache(cache_dir, cache_bytes))


@contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        log.warning("the artifact store cannot be written: %s", _first_line(error))  # it names hosts and folders
        raise StorageUnavailable(
            "the artifact store cannot be written; nothing was changed. The log has the reason."
        ) from error


@contextmanager
def _reading(digest: str) -> Iterator[None]:
    try:
        yield
    except STORE_ERRORS as error:
        log.warning("artifact %s cannot be read: %s", digest, _first_line(error))
        raise StorageUnavailable(f"artifact {digest} cannot be read. The log has the reason.") from error
    except Damaged as error:
        raise StorageUnavailable(
            f"artifact {digest} is damaged: its bytes have another SHA-256. Start the service with the bundle that "
            "it came from, or restore the artifact store from a copy."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
