"""What only the local folder promises: it survives power cuts and killed writers."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from service.errors import StorageUnavailable
from service.store.artifacts import ArtifactStore
from service.store.folder import digest_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


def test_the_path_is_the_stores_own_file(folder: Path) -> None:
    store = ArtifactStore(folder.as_uri())
    digest = store.put(b"content")
    assert store.path(digest) == folder / "sha256" / digest[:2] / digest


def test_bytes_and_names_are_on_the_disk_when_put_returns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(folder.as_uri())
    digest = digest_of(b"content")
    target = folder / "sha256" / digest[:2] / digest
    kept: list[tuple[int, bool]] = []  # what was kept, and whether the name was there by then

    def fsync(opened: int) -> None:
        kept.append((os.fstat(opened).st_ino, target.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    store.put(b"content")
    file, *names = kept
    assert file == (target.stat().st_ino, False), "the bytes, before the name leads to them"
    assert set(names) == {(target.parent.stat().st_ino, True), (target.parent.parent.stat().st_ino, True)}


def test_a_killed_writer_leaves_nothing_that_is_seen_or_stays(folder: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = (
        "import sys; from pathlib import Path; from service.store.artifacts import ArtifactStore;"
        "ArtifactStore(sys.argv[1]).put_file(Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, folder.as_uri(), pipe]
    with subprocess.Popen(command) as writer, pipe.open("wb") as source:
        source.write(b"x" * (3 << 20))
        source.flush()
        writer.kill()
    (left,) = (path for path in folder.rglob("*") if path.is_file())
    assert left.stat().st_size > 0
    store = ArtifactStore(folder.as_uri())
    with pytest.raises(StorageUnavailable, match="cannot be read"):
        store.get(digest_of(b"x" * (3 << 20)))
    assert left.exists(), "it could belong to a writer at work"
    os.utime(left, (time.time() - 90_000,) * 2)
    digest = store.put(b"content")
    assert [path.name for path in folder.rglob("*") if path.is_file() and path != left] == [digest]
    ArtifactStore(folder.as_uri())
    assert not left.exists()
    assert store.get(digest) == b"content"


def test_a_write_that_fails_says_that_nothing_changed_and_leaves_nothing(folder: Path) -> None:
    store = ArtifactStore(folder.as_uri())
    digest = digest_of(b"content")
    (folder / "sha256" / digest[:2]).write_text("a file where a folder should be")
    with pytest.raises(StorageUnavailable, match="nothing was changed"):
        store.put(b"content")
    assert list((folder / "tmp").iterdir()) == []
