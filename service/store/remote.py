"""An object store (S3, GCS, Azure, WebDAV) by URL through obstore, with a cache on the local disk.

obstore reads credentials, region and endpoint from the environment, under the names that the store's own tools use
(AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL ...).
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from io import BufferedIOBase
from pathlib import Path

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import MemoryStore, ObjectStore, from_url

from service.store.cache import Cache
from service.store.folder import CHUNK_BYTES, Damaged, chunks_of, digest_of, key_of

STORE_ERRORS = (BaseError, OSError)  # obstore raises Python's own classes for a missing file and the like
PART_BYTES = 8 << 20  # at most 10,000 parts: 80 GB
PARTS_AT_ONCE = 4
ANSWER_SECONDS = 5
PART_SECONDS = 60  # obstore counts the sending of a part as waiting for its answer


def open_object_store(url: str, *, wait_seconds: int = ANSWER_SECONDS) -> ObjectStore:
    """A store that gives up within about 10 seconds when nothing answers, or `wait_seconds` if that is more.

    Raises: ValueError and STORE_ERRORS when the URL leads to no object store.
    """
    store = from_url(
        url,
        # With options of ours, obstore ignores AWS_ALLOW_HTTP; plain HTTP is used only where the endpoint says so.
        client_options={
            "allow_http": True,
            "connect_timeout": timedelta(seconds=2),
            "read_timeout": timedelta(seconds=wait_seconds),
            "timeout": timedelta(hours=1),
        },
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=4)},
    )
    if isinstance(store, MemoryStore):
        raise ValueError("a store in memory would forget everything")
    return store


class Remote:
    """Uploads that were cut off stay hidden; a lifecycle rule of the bucket for incomplete uploads removes them.

    Raises: STORE_ERRORS from every method; Damaged from `get` and `path`.
    """

    def __init__(self, url: str, cache: Cache) -> None:
        self._store = open_object_store(url)
        self._upload = open_object_store(url, wait_seconds=PART_SECONDS)
        self._cache = cache

    def put(self, source: BufferedIOBase) -> str:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
        key = key_of(digest)
        # So that a dead store is known before a part waits for it. S3 says "forbidden" of what is missing to those
        # who may not list the bucket.
        with suppress(FileNotFoundError, PermissionDeniedError):
            obstore.head(self._store, key)
        large = source.seek(0, os.SEEK_END) > PART_BYTES
        source.seek(0)
        obstore.put(
            self._upload,
            key,
            _unchanged(source, digest),
            use_multipart=large,
            chunk_size=PART_BYTES,
            max_concurrency=PARTS_AT_ONCE,
        )
        return digest

    def get(self, digest: str) -> bytes:
        data = self._cache.get(digest)
        if data is None:
            data = bytes(obstore.get(self._store, key_of(digest)).bytes())
            if digest_of(data) != digest:
                raise Damaged
            with suppress(OSError):  # a full disk costs the copy and not the answer
                self._cache.add(digest, [data])
        return data

    def path(self, digest: str) -> Path:
        cached = self._cache.path(digest)
        if cached is not None:
            return cached
        return self._cache.add(digest, map(bytes, obstore.get(self._store, key_of(digest)).stream(CHUNK_BYTES)))

    def holds(self, digest: str) -> bool:
        """Whether the store has it, whatever the cache says."""
        with suppress(FileNotFoundError, PermissionDeniedError):
            obstore.head(self._store, key_of(digest))
            return True
        return False

    def delete(self, digest: str) -> None:
        with suppress(FileNotFoundError):
            obstore.delete(self._store, key_of(digest))
        self._cache.delete(digest)


def _unchanged(source: BufferedIOBase, digest: str) -> Iterator[bytes]:
    """The chunks of a file; an error at their end, which aborts the upload, when they have another digest by now."""
    hasher = hashlib.sha256()
    for chunk in chunks_of(source):
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != digest:
        raise OSError("the file was changed while it was uploaded")
