"""SIGTERM while requests are on their way: what was accepted is finished, and nothing keeps the process for ever."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.service.api.asking import SCORES
from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.processes import Process, eventually, web
from tests.service.slow import slowly

BODY = np.random.default_rng(0).integers(0, 256, size=(HEIGHT, WIDTH, 3), dtype=np.uint8).tobytes()
OCTETS = {"content-type": "application/octet-stream"}


@pytest.fixture
def start(tmp_path: Path, make_bundle: Callable[..., Made]) -> Iterator[Callable[..., Process]]:
    """A server of a network that takes its time."""
    started: list[Process] = []

    def process(times: int = 12, **settings: object) -> Process:
        made = make_bundle(edit_graph=slowly(times))
        started.append(Process(tmp_path / "server", made.path, workers=0, model_threads=1, **settings))
        return started[-1]

    yield process
    for each in started:
        each.stop()


def test_requests_that_wait_for_the_network_are_answered_before_it_ends(start: Callable[..., Process]) -> None:
    process = start(times=24)

    def ask(_: int) -> httpx.Response:
        return web.post(f"{process.url}{SCORES}", content=BODY, headers=OCTETS, timeout=60)

    with ThreadPoolExecutor(12) as clients:  # more than one batch
        answers = [clients.submit(ask, number) for number in range(12)]
        eventually(lambda: waiting(process) >= 3, seconds=30)
        process.popen.send_signal(signal.SIGTERM)
        came = [each.result() for each in answers]
    assert [answer.status_code for answer in came] == [200] * 12
    assert process.popen.wait(timeout=30) in (0, -signal.SIGTERM)
    with pytest.raises(httpx.TransportError):
        ask(7)


def waiting(process: Process) -> float:
    lines = web.get(f"{process.url}/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("equipoise_queue_requests ")))


def test_a_client_that_never_finishes_its_body_does_not_keep_it(start: Callable[..., Process]) -> None:
    process = start(times=1, stop_seconds=1)
    address = urlsplit(process.url)
    with socket.create_connection((address.hostname, address.port)) as stalled:
        stalled.sendall(f"POST {SCORES} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(BODY)}\r\n\r\n".encode())
        stalled.sendall(BODY[:10])
        time.sleep(0.2)  # until the server has read that much
        process.popen.send_signal(signal.SIGTERM)
        assert process.popen.wait(timeout=20) in (0, -signal.SIGTERM)
