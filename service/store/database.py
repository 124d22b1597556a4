"""The database: SQLite in WAL mode by default, PostgreSQL by URL, the same code for both."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError
from sqlalchemy.orm import Session

from service.errors import CannotStart, UnknownCalibration, UnknownModel, UnknownPrior, UnknownVersion
from service.store.tables import CalibrationRow, ChangeRow, ModelRow, PriorRow, Row, VersionRow

BUSY_TIMEOUT_SECONDS = 30


class Overtaken(Exception):
    """Another change was committed first; compute yours again on the new state."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Database:
    """Reads rows, and commits a change together with the rows that it needs. Safe to use from many threads.

    Raises: CannotStart when the database cannot be opened or is not one.
    """

    def __init__(self, url: str) -> None:
        try:
            self._engine = _engine(url)
            Row.metadata.create_all(self._writing())
        except (ArgumentError, NoSuchModuleError, ImportError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise CannotStart(
                f"the database cannot be opened: {str(reason).strip()}. Check EQUIPOISE_DATABASE_URL and "
                "EQUIPOISE_STATE_DIR: the folder must exist or be creatable, and be writable."
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    def models(self) -> list[str]:
        with Session(self._engine) as session:
            return list(session.scalars(select(ModelRow.name).order_by(ModelRow.name)))

    def newest_change(self, model: str) -> ChangeRow:
        """Raises: UnknownModel."""
        newest = select(ChangeRow).where(ChangeRow.model == model).order_by(ChangeRow.revision.desc()).limit(1)
        with Session(self._engine) as session:
            change = None if "\0" in model else session.scalar(newest)  # PostgreSQL refuses texts with a NUL
        if change is None:
            known = ", ".join(self.models()) or "none"
            raise UnknownModel(f"there is no model {model!r}; the models are: {known}.")
        return change

    def change(self, model: str, revision: int) -> ChangeRow:
        with Session(self._engine) as session:
            found = session.get(ChangeRow, (model, revision))
        assert found is not None  # only revisions that other rows name are asked for
        return found

    def version(self, model: str, number: int) -> VersionRow:
        """Raises: UnknownVersion."""
        with Session(self._engine) as session:
            found = session.get(VersionRow, (model, number))
        if found is None:
            raise UnknownVersion(f"model {model!r} has no version {number}. GET /v1/models/{model} lists them.")
        return found

    def calibration(self, model: str, number: int) -> CalibrationRow:
        """Raises: UnknownCalibration."""
        with Session(self._engine) as session:
            found = session.get(CalibrationRow, (model, number))
        if found is None:
            raise UnknownCalibration(
                f"model {model!r} has no calibration c{number}. GET /v1/models/{model}/calibrations lists them."
            )
        return found

    def prior(self, model: str, name: str) -> PriorRow:
        """Raises: UnknownPrior."""
        found = next((row for row in self.priors(model) if row.name == name), None)
        if found is None:
            raise UnknownPrior(f"model {model!r} has no prior {name!r}. GET /v1/models/{model}/priors lists them.")
        return found

    def versions(self, model: str) -> Sequence[VersionRow]:
        return self._rows(select(VersionRow).where(VersionRow.model == model).order_by(VersionRow.number))

    def calibrations(self, model: str) -> Sequence[CalibrationRow]:
        return self._rows(select(CalibrationRow).where(CalibrationRow.model == model).order_by(CalibrationRow.number))

    def priors(self, model: str) -> Sequence[PriorRow]:
        return self._rows(select(PriorRow).where(PriorRow.model == model).order_by(PriorRow.name))

    def history(self, model: str) -> Sequence[ChangeRow]:
        return self._rows(select(ChangeRow).where(ChangeRow.model == model).order_by(ChangeRow.revision))

    def commit(self, change: ChangeRow, rows: Sequence[Row] = ()) -> None:
        """Add a change and the rows it needs: all of them or none.

        Raises: Overtaken unless `change.revision` is the one after the newest; the primary keys decide between two
            processes, so that neither change is lost.
        """
        newest = select(func.max(ChangeRow.revision)).where(ChangeRow.model == change.model)
        try:
            with Session(self._writing(), expire_on_commit=False) as session, session.begin():
                if (session.scalar(newest) or 0) != change.revision - 1:
                    raise Overtaken
                for row in (*rows, change):
                    session.add(row)
                    session.flush()  # in the order given: rows refer to earlier ones by value
        except IntegrityError as error:
            raise Overtaken from error

    def _rows(self, query: Any) -> Sequence[Any]:
        with Session(self._engine) as session:
            return session.scalars(query).all()

    def _writing(self) -> Engine:
        return self._engine.execution_options(begin="IMMEDIATE")


def _engine(url: str) -> Engine:
    engine = create_engine(url, json_serializer=_to_text, json_deserializer=orjson.loads, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    elif engine.dialect.name != "postgresql":
        raise ArgumentError(f"the database is SQLite or PostgreSQL; got {engine.dialect.name}")
    return engine


def _to_text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _configure_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver would begin transactions late; `_begin_sqlite` does it instead
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_SECONDS * 1000}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes the lock at its first step: a reader that turns writer would fail at once when overtaken.
    connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('begin', 'DEFERRED')}")
