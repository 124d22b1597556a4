import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from service.errors import CannotStart, StorageUnavailable
from service.store.artifacts import ArtifactStore
from service.store.folder import digest_of
from tests.service.store.conftest import Place

A, B, C = (letter * 100 for letter in (b"a", b"b", b"c"))


def copies(cache: Path) -> set[bytes]:
    return {path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def age(path: Path, seconds: int) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_copies_serve_when_the_store_is_down(s3_place: Place, use_s3: Callable[[str], None]) -> None:
    store = s3_place.open()
    digests = [store.put(A), store.put(B)]
    store.get(digests[0])
    store.path(digests[1])
    use_s3("http://127.0.0.1:9")  # nobody listens there
    assert s3_place.open().get(digests[0]) == A
    assert s3_place.open().path(digests[1]).read_bytes() == B


def test_a_local_store_needs_no_copies(local_place: Place) -> None:
    store = local_place.open()
    store.path(store.put(A))
    assert not local_place.cache.exists()


def test_the_least_recently_used_copy_goes_first(s3_place: Place) -> None:
    store = ArtifactStore(s3_place.url, s3_place.cache, 250)
    a, b, c = (store.put(data) for data in (A, B, C))
    age(store.path(a), 300)
    age(store.path(b), 200)
    store.get(a)  # used again: b is the oldest now
    assert store.get(c) == C
    assert copies(s3_place.cache) == {A, C}
    assert store.get(b) == B


@pytest.mark.parametrize("limit", [0, 99])
def test_an_artifact_above_the_limit_is_kept_alone_until_the_next(s3_place: Place, limit: int) -> None:
    store = ArtifactStore(s3_place.url, s3_place.cache, limit)
    a, b = store.put(A), store.put(B)
    assert store.path(a).read_bytes() == A
    assert copies(s3_place.cache) == {A}
    assert store.path(b).read_bytes() == B
    assert copies(s3_place.cache) == {B}


@pytest.mark.parametrize("damage", [b"", A[:-1] + b"x"])
def test_a_damaged_copy_is_fetched_again(s3_place: Place, damage: bytes) -> None:
    store = s3_place.open()
    digest = store.put(A)
    for read in (store.get, store.path, store.get):
        store.path(digest).write_bytes(damage)
        read(digest)
        assert copies(s3_place.cache) == {A}


def test_damaged_bytes_from_the_store_are_not_kept(s3_place: Place) -> None:
    store = s3_place.open()
    digest = store.put(A)
    s3_place.damage(digest, B)
    for read in (store.get, store.path):
        with pytest.raises(StorageUnavailable, match="is damaged"):
            read(digest)
    assert copies(s3_place.cache) == set()


def test_a_full_or_broken_disk_costs_the_copy_and_not_the_answer(s3_place: Place) -> None:
    store = s3_place.open()
    digest = store.put(A)
    (s3_place.cache / "tmp").rmdir()
    (s3_place.cache / "tmp").write_text("a file where a folder should be")
    assert store.get(digest) == A
    with pytest.raises(StorageUnavailable, match="cannot be read"):
        store.path(digest)
    s3_place.damage(digest, B)
    with pytest.raises(StorageUnavailable, match="is damaged"):
        store.get(digest)


def test_a_folder_that_was_cleared_away_is_filled_again(s3_place: Place) -> None:
    store = s3_place.open()
    copy = store.path(store.put(A))
    copy.unlink()
    for folder in (copy.parent, copy.parent.parent, s3_place.cache / "tmp", s3_place.cache):
        folder.rmdir()
    assert store.path(digest_of(A)).read_bytes() == A


def test_a_folder_that_cannot_be_written_is_a_clear_error(s3_place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CannotStart, match="cannot be opened"):
        ArtifactStore(s3_place.url, tmp_path / "file")


CHURN = """
import sys
from pathlib import Path
from service.store.cache import Cache
from service.store.folder import digest_of
cache = Cache(Path(sys.argv[1]), 2500)
for turn in range(700):
    data = bytes([turn * int(sys.argv[2]) % 7]) * 1000
    cache.add(digest_of(data), [data])
    assert cache.get(digest_of(data)) in (data, None)
    cache.path(digest_of(data))
"""


def test_processes_share_the_folder_and_throw_out_one_anothers_copies(tmp_path: Path) -> None:
    running = [Popen([sys.executable, "-c", CHURN, tmp_path, step], stderr=PIPE, text=True) for step in "123"]
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    assert len(copies(tmp_path)) <= 3
    assert list((tmp_path / "tmp").iterdir()) == []


def test_threads_that_miss_at_once_all_get_the_bytes(s3_place: Place) -> None:
    store = ArtifactStore(s3_place.url, s3_place.cache, 0)
    digests = [store.put(data) for data in (A, B, C)]
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda d=d: got.append(store.get(d))) for d in digests * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted([A, B, C] * 4)
