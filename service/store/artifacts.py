"""Files by their SHA-256: a local folder by default, an object store by URL, through obstore.

Stores put an object in place whole or not at all, so that nobody reads half of one; what was damaged later is found on
reading.
"""

import hashlib

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from service.errors import CannotStart, StorageUnavailable

STORE_ERRORS = (BaseError, OSError)  # obstore raises Python's own classes for a missing file and the like


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class ArtifactStore:
    """Raises: CannotStart when the URL leads to no store that can be written."""

    def __init__(self, url: str) -> None:
        try:
            self._store = LocalStore.from_url(url, mkdir=True) if url.startswith("file:") else from_url(url)
        except (*STORE_ERRORS, ValueError) as error:
            raise CannotStart(
                f"the artifact store {url} cannot be opened: {_first_line(error)}. Check EQUIPOISE_ARTIFACTS_URL and "
                "EQUIPOISE_STATE_DIR: the folder must be writable."
            ) from error

    def put(self, data: bytes) -> str:
        """Store bytes under their digest; again the same bytes repair a damaged copy.

        Returns: the SHA-256 in hex. Raises: StorageUnavailable.
        """
        digest = digest_of(data)
        try:
            obstore.put(self._store, _key(digest), data)
        except STORE_ERRORS as error:
            raise StorageUnavailable(
                f"the artifact store cannot be written: {_first_line(error)}. Nothing was changed."
            ) from error
        return digest

    def get(self, digest: str) -> bytes:
        """Raises: StorageUnavailable when the artifact is missing, or its bytes are not those that were put."""
        try:
            data = bytes(obstore.get(self._store, _key(digest)).bytes())
        except STORE_ERRORS as error:
            raise StorageUnavailable(f"artifact {digest} cannot be read: {_first_line(error)}.") from error
        if digest_of(data) != digest:
            raise StorageUnavailable(
                f"artifact {digest} is damaged: its bytes have another SHA-256. Start the service with the bundle that "
                "it came from, or restore the artifact store from a copy."
            )
        return data


def _key(digest: str) -> str:
    return f"sha256/{digest[:2]}/{digest}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
