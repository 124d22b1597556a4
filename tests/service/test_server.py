"""The service as a process: it starts, answers, stops; and what keeps it from starting is said in one line."""

import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from service.app import create_app
from service.errors import CannotStart
from service.server import listen, serve
from service.settings import Settings
from tests.service.bundles import Made
from tests.service.conftest import Service, running
from tests.service.processes import Process, web


def test_a_process_keeps_what_it_acknowledged_even_if_it_is_killed(tmp_path: Path, pets: Made) -> None:
    first = Process(tmp_path, pets.path, job_wait_seconds=60)
    try:
        frequencies = b"ant,5\nbee,10\ncat,2\ndog,6\n"
        uploaded = web.post(f"{first.url}/v1/models/pets/class-frequencies?role=target", content=frequencies)
        before = web.post(f"{first.url}/v1/models/pets/scores", json={"logits": [1, 2, 3, 4]})
    finally:
        first.kill()
    assert uploaded.status_code == 201
    again = Process(tmp_path)
    try:
        assert web.post(f"{again.url}/v1/models/pets/scores", json={"logits": [1, 2, 3, 4]}).content == before.content
        again.popen.send_signal(signal.SIGTERM)
        assert again.popen.wait(timeout=30) in (0, -signal.SIGTERM)
    finally:
        again.stop()


def test_a_large_body_is_refused_over_a_real_connection(make_service: Callable[..., Service], pets: Made) -> None:
    service = make_service(pets, max_body_bytes=1 << 20)

    def pieces() -> object:
        for _ in range(64):
            yield b"x" * (1 << 16)

    with running(service.app) as url:
        announced = web.post(f"{url}/v1/models/pets/scores", content=b"x" * (4 << 20))
        streamed = web.post(f"{url}/v1/models/pets/scores", content=pieces())
        after = web.post(f"{url}/v1/models/pets/scores", json={"logits": [1, 2, 3, 4]})
    assert [announced.status_code, streamed.status_code, after.status_code] == [413, 413, 200]
    assert announced.json()["type"] == streamed.json()["type"] == "/problems/body-too-large"


def test_a_port_in_use_is_said_with_a_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotStart, match=rf"port {port}: Address already in use.*EQUIPOISE_PORT"):
            serve(Settings(state_dir=tmp_path / "state", port=port))
    assert not (tmp_path / "state").exists()  # the address is taken before anything is made


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.invalid"])
def test_without_keys_it_listens_on_this_machine_only(host: str) -> None:
    with pytest.raises(CannotStart, match="EQUIPOISE_ALLOW_ANONYMOUS"):
        listen(Settings(host=host, port=0))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_loopback_address_needs_no_permission(host: str) -> None:
    listen(Settings(host=host, port=0)).close()


def test_it_listens_everywhere_where_that_is_allowed() -> None:
    listen(Settings(host="0.0.0.0", port=0, allow_anonymous=True)).close()


@pytest.mark.parametrize("name", ["state", "artifacts", "equipoise.db"])
def test_a_state_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path, name: str) -> None:
    blocked = tmp_path / "state" if name == "state" else tmp_path / "state" / name
    if name == "equipoise.db":
        blocked.mkdir(parents=True)  # a folder in place of the file
    else:
        blocked.parent.mkdir(exist_ok=True)
        blocked.write_text("a file in place of the folder")  # permissions would not stop root
    with pytest.raises(CannotStart, match="EQUIPOISE_STATE_DIR"):
        create_app(Settings(state_dir=tmp_path / "state"))
