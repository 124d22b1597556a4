"""Fixtures for tests of every part."""

import gc
import logging
import os
from collections.abc import Iterator
from itertools import count

import pytest

from tests import needs

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is loaded: threads for small matrices only get in the way

_numbers = count()


def pytest_collection_finish() -> None:
    gc.freeze()  # all that is imported by now stays; looking through it again and again takes longer than many tests


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command that is tried in this process sets up logging to a stream that is gone after the test."""
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[needs.Postgres]:
    with needs.throw_away_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_cluster: needs.Postgres) -> str:
    """The SQLAlchemy URL of an empty PostgreSQL database."""
    return postgres_cluster.create(f"equipoise_{next(_numbers)}")
