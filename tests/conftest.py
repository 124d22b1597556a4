"""Fixtures for tests of every part."""

from collections.abc import Iterator
from itertools import count

import psycopg
import pytest

from tests import needs

_numbers = count()


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[str]:
    binaries = needs.postgres_binaries()
    if binaries is None:
        needs.missing("postgres", "no pg_ctl on the path or under /usr/lib/postgresql; Debian: apt install postgresql")
    else:
        with needs.throw_away_postgres(binaries) as url:
            yield url


@pytest.fixture
def postgres_url(postgres_cluster: str) -> str:
    """The SQLAlchemy URL of an empty PostgreSQL database."""
    name = f"equipoise_{next(_numbers)}"
    with psycopg.connect(postgres_cluster.format(database="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres_cluster.format(database=name)
