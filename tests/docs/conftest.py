import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from tests.docs.walking import Walk


@pytest.fixture
def make_walk(tmp_path: Path) -> Iterator[Callable[..., Walk]]:
    needs.command("curl")
    made: list[Walk] = []

    def make(*ports: int) -> Walk:
        made.append(Walk(tmp_path, {port: _free_port() for port in ports}))
        return made[-1]

    yield make
    for walk in made:
        walk.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
