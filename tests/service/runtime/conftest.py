"""A pool for each test."""

from collections.abc import Iterator

import pytest

from service.runtime.pool import Pool
from tests.service.runtime.gate import Made, Seen


@pytest.fixture
def make_pool() -> Iterator[Made]:
    made: list[Pool] = []

    def make(threads: int = 2, most_waiting: int = 100) -> tuple[Pool, Seen]:
        seen = Seen()
        made.append(Pool(threads, most_waiting=most_waiting, observer=seen))
        return made[-1], seen

    yield make
    for pool in made:
        pool.close()
