"""What holds in every place: the local folder and S3."""

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path

import pytest

from service.errors import CannotStart, StorageUnavailable
from service.store.artifacts import ArtifactStore
from service.store.cache import Cache
from service.store.folder import digest_of
from service.store.remote import Remote
from tests.service.store.conftest import Place, serving

LARGE = bytes(range(256)) * (17 << 12)  # 17 MiB: three parts of an upload


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("data", [b"content", b"", LARGE], ids=["small", "empty", "large"])
def test_what_was_put_comes_back_by_its_digest(store: ArtifactStore, place: Place, data: bytes) -> None:
    digest = store.put(data)
    assert digest == digest_of(data)
    assert store.get(digest) == data
    assert store.path(digest).read_bytes() == data
    assert place.open().get(digest) == data
    assert place.stored() == {digest}


@pytest.mark.parametrize("data", [b"content", b"", LARGE], ids=["small", "empty", "large"])
def test_a_file_is_stored_like_its_bytes(store: ArtifactStore, tmp_path: Path, data: bytes) -> None:
    digest = store.put_file(write(tmp_path / "model.onnx", data))
    assert digest == store.put(data)
    assert store.path(digest).read_bytes() == data


def test_what_the_store_has_lost_it_does_not_hold_whatever_the_cache_says(store: ArtifactStore, place: Place) -> None:
    digest = store.put(b"content")
    assert store.get(digest) == b"content"  # and a remote one is in the cache now
    assert store.holds(digest)
    place.open().delete(digest)
    assert not store.holds(digest)


def test_a_file_that_is_not_there_is_the_callers_error(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.onnx"):
        store.put_file(tmp_path / "missing.onnx")


@pytest.mark.parametrize("damage", [b"contenT", b"cont", b""])
def test_a_damaged_artifact_is_noticed_and_mended_by_putting_it_again(
    store: ArtifactStore, place: Place, tmp_path: Path, damage: bytes
) -> None:
    digest = store.put(b"content")
    place.damage(digest, damage)
    for read in (store.get, store.path):
        with pytest.raises(StorageUnavailable, match="is damaged"):
            read(digest)
    store.put(b"content")
    assert store.get(digest) == b"content"
    place.damage(digest, damage)
    store.put_file(write(tmp_path / "again", b"content"))
    assert store.path(digest).read_bytes() == b"content"


def test_a_missing_artifact_is_named(store: ArtifactStore) -> None:
    for read in (store.get, store.path):
        with pytest.raises(StorageUnavailable, match=digest_of(b"never")):
            read(digest_of(b"never"))


def test_a_deleted_artifact_is_gone_and_deleting_it_again_is_fine(store: ArtifactStore, place: Place) -> None:
    digest, other = store.put(b"content"), store.put(b"other")
    store.path(digest)
    store.delete(digest)
    store.delete(digest)
    with pytest.raises(StorageUnavailable, match="cannot be read"):
        store.get(digest)
    assert place.stored() == {other}


def test_writers_of_the_same_bytes_do_not_disturb_one_another(store: ArtifactStore, place: Place) -> None:
    threads = [threading.Thread(target=store.put, args=(LARGE,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert place.open().get(digest_of(LARGE)) == LARGE
    assert place.stored() == {digest_of(LARGE)}


class Changing(BytesIO):
    """A file that somebody changes after it was read for the first time."""

    def seek(self, offset: int, whence: int = 0) -> int:
        self.getbuffer()[:1] = b"!"
        return super().seek(offset, whence)


@pytest.mark.parametrize("data", [b"content", LARGE], ids=["small", "large"])
def test_a_file_that_changes_while_it_is_uploaded_is_not_stored(s3_place: Place, data: bytes) -> None:
    remote = Remote(s3_place.url, Cache(s3_place.cache, 0))
    with pytest.raises(OSError, match="changed"):
        remote.put(Changing(data))
    assert s3_place.stored() == set()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: reads /proc")
def test_a_large_file_goes_in_and_out_in_bounded_memory(place: Place, tmp_path: Path) -> None:
    size = 256 << 20
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(size)
    code = (
        "import sys; from pathlib import Path; from service.store.artifacts import ArtifactStore;"
        "store = ArtifactStore(sys.argv[1], Path(sys.argv[2]));"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) << 10;"
        "before = peak(); assert store.path(store.put_file(Path(sys.argv[3]))).stat().st_size == int(sys.argv[4]);"
        "print(peak() - before)"
    )
    command = [sys.executable, "-c", code, place.url, place.cache, tmp_path / "model.onnx", str(size)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(run.stdout) < size // 2  # bytes that the process grew by


@pytest.mark.parametrize("url", ["ftp://host/x", "nonsense", "file:///proc/none", "s3://", "memory:///"])
def test_a_store_that_cannot_be_opened_is_a_clear_error(url: str) -> None:
    with pytest.raises(CannotStart, match="EQUIPOISE_ARTIFACTS_URL"):
        ArtifactStore(url)


def test_a_remote_store_keeps_copies_without_a_folder_for_them(s3_place: Place) -> None:
    store = ArtifactStore(s3_place.url)
    copy = store.path(store.put(b"content"))
    assert copy.read_bytes() == b"content"
    del store
    assert not copy.exists()


def test_a_bucket_that_is_not_there_is_unavailable(s3_place: Place) -> None:
    store = ArtifactStore("s3://no-such-bucket/x", s3_place.cache)
    with pytest.raises(StorageUnavailable, match="cannot be written"):
        store.put(b"content")
    with pytest.raises(StorageUnavailable, match="cannot be read"):
        store.get(digest_of(b"content"))


class NoListing(BaseHTTPRequestHandler):
    """S3 for somebody who may write but not list: what is missing is forbidden."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("ETag", "x")
        self.end_headers()

    def log_message(self, *args: object) -> None: ...


def test_a_bucket_that_may_not_be_listed_can_be_written(use_s3: Callable[[str], None], tmp_path: Path) -> None:
    with serving(NoListing) as endpoint:
        use_s3(endpoint)
        assert ArtifactStore("s3://bucket", tmp_path).put(b"content") == digest_of(b"content")


@pytest.fixture
def sleepy_server() -> Iterator[str]:
    """Takes connections and answers nothing for 20 seconds, then that all is well."""
    over = threading.Event()

    def answer(connection: socket.socket) -> None:
        with connection:
            if not over.wait(20):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nETag: x\r\n\r\n")

    def accept() -> None:
        while not over.is_set():
            try:
                threading.Thread(target=answer, args=(listener.accept()[0],)).start()
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_store_that_does_not_answer_is_soon_unavailable(
    sleepy_server: str, use_s3: Callable[[str], None], tmp_path: Path
) -> None:
    use_s3(sleepy_server)
    with pytest.raises(StorageUnavailable, match="nothing was changed"):
        ArtifactStore("s3://bucket", tmp_path).put(b"content")


def test_a_store_that_is_down_is_unavailable(use_s3: Callable[[str], None], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        use_s3(f"http://127.0.0.1:{listener.getsockname()[1]}")
    store = ArtifactStore("s3://bucket", tmp_path)
    for change in (lambda: store.put(LARGE), lambda: store.delete(digest_of(LARGE))):
        with pytest.raises(StorageUnavailable, match="nothing was changed"):
            change()
    for read in (store.get, store.path):
        with pytest.raises(StorageUnavailable, match="cannot be read"):
            read(digest_of(LARGE))
