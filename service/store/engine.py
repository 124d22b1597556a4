"""Connections to the database, set up so that SQLite and PostgreSQL behave alike under it."""

from typing import Any

import orjson
from sqlalchemy import Connection, Engine, Float, cast, create_engine, event, extract, func, select
from sqlalchemy.exc import ArgumentError
from sqlalchemy.sql.elements import ColumnElement

BUSY_TIMEOUT_SECONDS = 30
POOL_TIMEOUT_SECONDS = 5
# Of PostgreSQL: how long to wait for a connection, for an answer on a dead network, for a lock, for a statement.
CONNECT = {"connect_timeout": 3, "tcp_user_timeout": 5000, "keepalives_idle": 10}
TIMEOUTS = "SET lock_timeout = '10s'; SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'"


def open_engine(url: str) -> Engine:
    """Raises: ArgumentError for a database that is neither SQLite nor PostgreSQL, and what SQLAlchemy raises."""
    options: dict[str, Any] = {"json_serializer": _to_text, "json_deserializer": orjson.loads, "pool_pre_ping": True}
    if url.startswith("sqlite"):
        engine = create_engine(url, **options)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if not url.startswith("postgresql"):
        raise ArgumentError(f"the database is SQLite or PostgreSQL; got {url.split(':')[0]}")
    engine = create_engine(url, pool_timeout=POOL_TIMEOUT_SECONDS, connect_args=CONNECT, **options)
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def clock(engine: Engine) -> ColumnElement[float]:
    """Seconds by the database's own clock: processes on several machines need not agree on the time."""
    if engine.dialect.name == "sqlite":
        return (func.julianday("now") - 2440587.5) * 86400.0
    return cast(extract("epoch", func.clock_timestamp()), Float)


def wait_for_turn(connection: Connection, lock: int) -> None:
    """Be the only transaction that has this lock, until it ends. A writer of SQLite is alone anyway."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(lock)))


def _to_text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()


def _configure_postgresql(connection: Any, record: Any) -> None:
    connection.execute(TIMEOUTS)
    connection.commit()


def _configure_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions late; `_begin_sqlite` does it instead
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at its first step: a reader that turns writer would fail at once when overtaken.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")
