"""The service in tests: real bundles, a real application, a real database; HTTP without a port where none is needed."""

import asyncio
import io
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from models.calibration.manifest import MANIFEST_FILE
from service.app import Equipoise, create_app
from service.server import config_of
from service.settings import Settings
from service.worker import Worker
from tests.service.bundles import HEIGHT, WIDTH, Made, write_bundle


class WorkerThread:
    """The worker of a service, in a thread instead of a process of its own."""

    def __init__(self, app: Equipoise) -> None:
        self._worker = Worker(app.state.catalog, app.state.settings)
        self._thread = threading.Thread(target=self._worker.run)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._worker.wake.set()

    def stop(self) -> None:
        self._worker.stop.set()
        self._worker.wake.set()
        self._thread.join()


class Service:
    """An application that is asked directly, without a server in between; its worker runs in a thread."""

    def __init__(self, app: Equipoise) -> None:
        self.app = app
        self.worker = WorkerThread(app)
        app.state.workers.append(self.worker)
        self.worker.start()

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.request(method, url, **options)

        return asyncio.run(ask())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def put(self, url: str, **options: Any) -> httpx.Response:
        return self.request("PUT", url, **options)

    def delete(self, url: str, **options: Any) -> httpx.Response:
        return self.request("DELETE", url, **options)

    def close(self) -> None:
        self.worker.stop()
        self.app.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Made]:
    def make(folder: str = "bundle", **options: Any) -> Made:
        return write_bundle(tmp_path / folder, **options)

    return make


@pytest.fixture(scope="session")
def state_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Sequence[Path]], Path]:
    """A state folder with these bundles registered, made once for all tests; to be copied, and not used itself."""
    made: dict[tuple[bytes, ...], Path] = {}

    def state(bundles: Sequence[Path]) -> Path:
        key = tuple((bundle / MANIFEST_FILE).read_bytes() for bundle in bundles)
        if key not in made:
            folder = tmp_path_factory.mktemp("state")
            create_app(Settings(state_dir=folder, workers=0), bundles).close()
            made[key] = folder
        return made[key]

    return state


@pytest.fixture
def make_service(tmp_path: Path, state_of: Callable[[Sequence[Path]], Path]) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def make(*bundles: Made, **settings: Any) -> Service:
        paths = [bundle.path for bundle in bundles]
        folder = tmp_path / "state"
        elsewhere = {"state_dir", "database_url", "artifacts_url"} & settings.keys()
        if not elsewhere and not folder.exists() and all(path.is_dir() for path in paths):
            shutil.copytree(state_of(paths), folder)  # far quicker than to make the tables and to register
            paths = []
        chosen = Settings(**({"state_dir": folder, "model_threads": 2, "workers": 0} | settings))
        started.append(Service(create_app(chosen, paths)))
        return started[-1]

    yield make
    for service in started:
        service.close()


@pytest.fixture
def pets(make_bundle: Callable[..., Made]) -> Made:
    return make_bundle()


@pytest.fixture
def service(make_service: Callable[..., Service], pets: Made) -> Service:
    """The service with one model, `pets`."""
    return make_service(pets)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, size=(3, HEIGHT, WIDTH, 3), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@contextmanager
def running(app: Equipoise) -> Iterator[str]:
    """The application behind uvicorn on a free port of the loopback address; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = config_of(app)
        config.lifespan = "off"
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + 30
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=30)


def names(rows: Sequence[dict[str, Any]], key: str = "name") -> list[Any]:
    return [row[key] for row in rows]
