from pathlib import Path

import pytest

from service.errors import CannotStart, StorageUnavailable
from service.store.artifacts import ArtifactStore, digest_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a folder" / "artifacts"


@pytest.fixture
def store(folder: Path) -> ArtifactStore:
    return ArtifactStore(folder.as_uri())


def stored_file(folder: Path, digest: str) -> Path:
    return folder / "sha256" / digest[:2] / digest


def test_bytes_come_back_by_their_digest(store: ArtifactStore, folder: Path) -> None:
    digest = store.put(b"content")
    assert digest == digest_of(b"content")
    assert store.get(digest) == b"content"
    assert store.put(b"content") == digest
    assert ArtifactStore(folder.as_uri()).get(digest) == b"content"


def test_a_store_in_memory_works_the_same_through_its_url() -> None:
    store = ArtifactStore("memory:///")
    assert store.get(store.put(b"")) == b""


@pytest.mark.parametrize("damage", [b"contenT", b"cont", b""])
def test_a_damaged_artifact_is_noticed_and_mended_by_putting_it_again(
    store: ArtifactStore, folder: Path, damage: bytes
) -> None:
    digest = store.put(b"content")
    stored_file(folder, digest).write_bytes(damage)
    with pytest.raises(StorageUnavailable, match="is damaged"):
        store.get(digest)
    store.put(b"content")
    assert store.get(digest) == b"content"


def test_a_missing_artifact_is_named(store: ArtifactStore) -> None:
    with pytest.raises(StorageUnavailable, match=digest_of(b"never")):
        store.get(digest_of(b"never"))


def test_what_another_writer_left_half_written_is_not_seen(store: ArtifactStore, folder: Path) -> None:
    # the store writes beside the name and renames: a crash leaves such a file and nothing under the name
    digest = digest_of(b"content")
    stored_file(folder, digest).parent.mkdir(parents=True)
    stored_file(folder, digest).with_name(f"{digest}#1").write_bytes(b"con")
    with pytest.raises(StorageUnavailable):
        store.get(digest)
    store.put(b"content")
    assert store.get(digest) == b"content"


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense", "file:///proc/none"])
def test_a_store_that_cannot_be_opened_is_a_clear_error(url: str) -> None:
    with pytest.raises(CannotStart, match="EQUIPOISE_ARTIFACTS_URL"):
        ArtifactStore(url)


def test_a_store_that_cannot_be_written_says_that_nothing_changed(tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    (tmp_path / "store" / "sha256").write_text("a file where a folder should be")
    with pytest.raises(StorageUnavailable, match="Nothing was changed"):
        store.put(b"content")
