"""Places for artifacts: a local folder, and a bucket behind a real S3 server; and both kinds of databases."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import httpx
import obstore
import pytest
from moto.server import ThreadedMotoServer
from obstore.store import ObjectStore, from_url

from service.store.artifacts import ArtifactStore
from service.store.database import Database

_numbers = count()


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A web server on a free port of the loopback address; yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


class Place:
    """A place as somebody sees it who goes past the service: what lies there, and damage done to it."""

    def __init__(self, url: str, cache: Path) -> None:
        self.url, self.cache = url, cache

    def open(self) -> ArtifactStore:
        return ArtifactStore(self.url, self.cache)

    def stored(self) -> set[str]:
        return {Path(each["path"]).name for batch in obstore.list(self._objects()) for each in batch}

    def damage(self, digest: str, data: bytes) -> None:
        obstore.put(self._objects(), f"sha256/{digest[:2]}/{digest}", data)

    def _objects(self) -> ObjectStore:
        return from_url(self.url, **({"client_options": {"allow_http": True}} if self.url.startswith("s3:") else {}))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def use_s3(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the environment that leads to an S3 server."""

    def use(endpoint: str) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")

    return use


@pytest.fixture
def bucket(s3_endpoint: str, use_s3: Callable[[str], None]) -> str:
    """The URL of a new bucket."""
    use_s3(s3_endpoint)
    name = f"bucket-{next(_numbers)}"
    httpx.put(f"{s3_endpoint}/{name}").raise_for_status()
    return f"s3://{name}"


@pytest.fixture
def local_place(tmp_path: Path) -> Place:
    return Place((tmp_path / "a folder" / "artifacts").as_uri(), tmp_path / "cache")


@pytest.fixture
def s3_place(bucket: str, tmp_path: Path) -> Place:
    return Place(f"{bucket}/a/prefix", tmp_path / "cache")


@pytest.fixture(params=["local_place", "s3_place"])
def place(request: pytest.FixtureRequest) -> Place:
    chosen: Place = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture
def store(place: Place) -> ArtifactStore:
    return place.open()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()
