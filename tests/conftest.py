"""Fixtures for tests of every part."""

from collections.abc import Iterator
from itertools import count

import pytest

from tests import needs

_numbers = count()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[needs.Postgres]:
    with needs.throw_away_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_cluster: needs.Postgres) -> str:
    """The SQLAlchemy URL of an empty PostgreSQL database."""
    return postgres_cluster.create(f"equipoise_{next(_numbers)}")
