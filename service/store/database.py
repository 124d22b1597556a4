"""The database: SQLite in WAL mode by default, PostgreSQL by URL, the same code for both."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from sqlalchemy import Engine, delete, func, select, update
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError, IntegrityError, NoSuchModuleError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, defer

from service.errors import (
    CannotStart,
    InvalidRequest,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
)
from service.store.engine import open_engine
from service.store.migrate import migrate
from service.store.tables import AliasRow, CalibrationRow, ChangeRow, JobRow, ModelRow, PriorRow, Row, VersionRow


class Overtaken(Exception):
    """Another change was committed first; compute yours again on the new state."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Database:
    """Reads rows, and commits a change together with the rows that it needs. Safe to use from many threads.

    Every method raises StorageUnavailable when the database does not answer, and InvalidRequest for texts and numbers
    that it cannot hold. As long as `down` says why it does not, requests are refused at once, and do not pile up behind
    a server that is gone or hangs.

    Raises: CannotStart when the database cannot be opened or is not one.
    """

    def __init__(self, url: str) -> None:
        self._down: str | None = None
        self._silent_at: float | None = None  # when to give up waiting for word from it; None while nobody probes it
        try:
            self.engine = open_engine(url)
            try:
                migrate(self.engine)
            except BaseException:
                self.close()
                raise
        except (ArgumentError, NoSuchModuleError, ImportError, DBAPIError) as error:
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise CannotStart(
                f"the database cannot be opened: {str(reason).strip()}. Check EQUIPOISE_DATABASE_URL and "
                "EQUIPOISE_STATE_DIR: the folder must exist or be creatable, and be writable."
            ) from error

    def close(self) -> None:
        self.engine.dispose()

    @property
    def down(self) -> str | None:
        """Why the database cannot be asked: the last probe failed, or the next one is overdue."""
        overdue = self._silent_at is not None and monotonic() > self._silent_at
        return self._down or ("the database does not answer" if overdue else None)

    def asked(self, *, expect_within: float) -> None:
        """It is being probed, and the answer is due within so many seconds."""
        self._silent_at = monotonic() + expect_within

    def heard(self) -> None:
        """It has answered a probe. What the prober does until the next one may take its time."""
        self._silent_at = None
        self._down = None

    def not_heard(self) -> None:
        """It has not answered a probe."""
        self._down = "the database does not answer"

    def heads(self) -> dict[str, tuple[str, int]]:
        """When each model was made, and the number of its newest change; asks even when `down` is set."""
        with self._connected(self.engine) as session:
            found = session.execute(select(ModelRow.name, ModelRow.created_at, ModelRow.revision)).all()
        return {name: (created_at, revision) for name, created_at, revision in found}

    def newest_changes(self) -> Sequence[tuple[ChangeRow, str]]:
        """Of every model, by name; with the method of the calibration that is live."""
        newest = (ChangeRow.model == ModelRow.name) & (ChangeRow.revision == ModelRow.revision)
        live = (CalibrationRow.model == ChangeRow.model) & (CalibrationRow.number == ChangeRow.calibration)
        query = select(ChangeRow, CalibrationRow.method).join(ModelRow, newest).join(CalibrationRow, live)
        with self.reading() as session:
            return [(row, method) for row, method in session.execute(query.order_by(ChangeRow.model))]

    def models(self) -> list[str]:
        return list(self._rows(select(ModelRow.name).order_by(ModelRow.name)))

    def newest_change(self, model: str) -> ChangeRow:
        """Raises: UnknownModel."""
        newest = select(ChangeRow).where(ChangeRow.model == model).order_by(ChangeRow.revision.desc()).limit(1)
        found = [] if "\0" in model else self._rows(newest)  # PostgreSQL refuses texts with a NUL
        if not found:
            known = ", ".join(self.models()) or "none"
            raise UnknownModel(f"there is no model {model!r}; the models are: {known}.")
        change: ChangeRow = found[0]
        return change

    def created_at(self, model: str) -> str:
        """When the model was made, which tells it from a deleted one of the same name. Raises: UnknownModel."""
        found = [] if "\0" in model else self._rows(select(ModelRow.created_at).where(ModelRow.name == model))
        if not found:
            raise UnknownModel(f"there is no model {model!r}.")
        return str(found[0])

    def change(self, model: str, revision: int) -> ChangeRow | None:
        with self.reading() as session:
            return session.get(ChangeRow, (model, revision))

    def version(self, model: str, number: int) -> VersionRow:
        """Raises: UnknownVersion."""
        with self.reading() as session:
            found = session.get(VersionRow, (model, number))
        if found is None or found.deleted_at is not None:
            gone = "never had" if found is None else "no longer has"
            raise UnknownVersion(f"model {model!r} {gone} a version {number}. GET /v1/models/{model} lists them.")
        return found

    def calibration(self, model: str, number: int) -> CalibrationRow:
        """Raises: UnknownCalibration."""
        with self.reading() as session:
            found = session.get(CalibrationRow, (model, number))
        if found is None or found.deleted_at is not None:
            gone = "never had" if found is None else "no longer has"
            raise UnknownCalibration(
                f"model {model!r} {gone} a calibration c{number}. GET /v1/models/{model}/calibrations lists them."
            )
        return found

    def prior(self, model: str, name: str) -> PriorRow:
        """The newest edition. Raises: UnknownPrior."""
        query = select(PriorRow).where(PriorRow.model == model, PriorRow.name == name)
        rows = [] if "\0" in name else self._rows(query.order_by(PriorRow.edition.desc()).limit(1))
        found: PriorRow | None = rows[0] if rows else None
        if found is None or found.probs is None:
            raise UnknownPrior(f"model {model!r} has no prior {name!r}. GET /v1/models/{model}/priors lists them.")
        return found

    def prior_edition(self, model: str, name: str, edition: int) -> PriorRow:
        """Raises: UnknownPrior."""
        with self.reading() as session:
            found = session.get(PriorRow, (model, name, edition))
        if found is None:  # the model was deleted in this moment
            raise UnknownPrior(f"model {model!r} has no edition {edition} of a prior {name!r}.")
        return found

    def newest_edition(self, model: str, name: str) -> int:
        """0 for a prior that never was; a deleted one counts."""
        query = select(func.max(PriorRow.edition)).where(PriorRow.model == model, PriorRow.name == name)
        return int(self._rows(query)[0] or 0)

    def versions(self, model: str, *, deleted: bool = False) -> Sequence[VersionRow]:
        """Without their manifests, which are large: `version` reads that of one."""
        query = select(VersionRow).where(VersionRow.model == model).order_by(VersionRow.number)
        query = query.options(defer(VersionRow.manifest))
        return self._rows(query if deleted else query.where(VersionRow.deleted_at.is_(None)))

    def calibrations(self, model: str) -> Sequence[CalibrationRow]:
        """Those that are not deleted, without their numbers, which are large: `calibration` reads those of one."""
        query = select(CalibrationRow).where(CalibrationRow.model == model, CalibrationRow.deleted_at.is_(None))
        large = (defer(CalibrationRow.calibration), defer(CalibrationRow.ledger))
        return self._rows(query.order_by(CalibrationRow.number).options(*large))

    def last_calibration(self, model: str) -> int:
        """The highest number there is, a deleted one counts; 0 for none."""
        query = select(func.max(CalibrationRow.number)).where(CalibrationRow.model == model)
        return int(self._rows(query)[0] or 0)

    def priors(self, model: str) -> Sequence[PriorRow]:
        """The newest edition of each prior that is not deleted, by name."""
        newest = _newest_editions(model).subquery()
        same = (PriorRow.name == newest.c.name) & (PriorRow.edition == newest.c.edition)
        query = select(PriorRow).join(newest, same).where(PriorRow.model == model, PriorRow.probs.is_not(None))
        return self._rows(query.order_by(PriorRow.name))

    def editions(self, model: str) -> dict[str, int]:
        """The newest edition of each prior, a deletion among them, without the numbers."""
        with self.reading() as session:
            return {row.name: row.edition for row in session.execute(_newest_editions(model))}

    def aliases(self, model: str) -> dict[str, int]:
        rows = self._rows(select(AliasRow).where(AliasRow.model == model).order_by(AliasRow.name))
        return {row.name: row.version for row in rows}

    def history(self, model: str) -> Sequence[ChangeRow]:
        """Without the reports, which are large: `report` reads one."""
        return self._rows(select(ChangeRow).where(ChangeRow.model == model).order_by(ChangeRow.revision))

    def report(self, model: str, revision: int) -> dict[str, Any] | None:
        """What was compared when a change was made, if anything was."""
        query = select(ChangeRow.report).where(ChangeRow.model == model, ChangeRow.revision == revision)
        found: list[dict[str, Any] | None] = list(self._rows(query))
        return found[0] if found else None

    def used_calibrations(self, model: str) -> Sequence[int]:
        """The number that was live after each change, the oldest first."""
        query = select(ChangeRow.calibration).where(ChangeRow.model == model).order_by(ChangeRow.revision)
        return self._rows(query)

    def commit(
        self, change: ChangeRow, rows: Sequence[Row] = (), *, finish: Callable[[Session], None] | None = None
    ) -> None:
        """Add a change and the rows it needs: all of them or none. An AliasRow takes the place of its former self.

        Args: finish, what else belongs to the change, in the same transaction; raises when it must not be made.
        Raises: Overtaken unless `change.revision` is the one after the newest; the model's row decides between two
            processes, so that neither change is lost.
        """
        try:
            with self.writing() as session:
                self._take_turn(session, change)
                for row in (*rows, change):
                    if isinstance(row, AliasRow):
                        session.merge(row)
                    else:
                        session.add(row)  # what is there already is history, and never replaced
                    session.flush()  # in the order given: rows refer to earlier ones by value
                if finish is not None:
                    finish(session)
        except IntegrityError as error:  # no race, since the model's row was locked: trying again would not help
            raise StorageUnavailable("the database refused the change; nothing was changed.") from error

    def _take_turn(self, session: Session, change: ChangeRow) -> None:
        """The first step of a change: locks the model's row until the end of the transaction."""
        if change.revision == 1:
            session.add(ModelRow(name=change.model, created_at=change.created_at, revision=1))
            try:
                session.flush()
            except IntegrityError as error:
                raise Overtaken from error
            return
        head = update(ModelRow).where(ModelRow.name == change.model, ModelRow.revision == change.revision - 1)
        if session.execute(head.values(revision=change.revision)).rowcount != 1:  # type: ignore[attr-defined]
            raise Overtaken

    def forget(self, model: str, *, revision: int) -> None:
        """Delete a model with all that belongs to it. Raises: Overtaken unless `revision` is its newest."""
        with self.writing() as session:
            where = (ModelRow.name == model, ModelRow.revision == revision)
            locked = session.execute(update(ModelRow).where(*where).values(revision=revision))
            if locked.rowcount != 1:  # type: ignore[attr-defined]
                raise Overtaken
            session.execute(delete(JobRow).where(JobRow.target == model))
            for table in (ChangeRow, AliasRow, PriorRow, CalibrationRow, VersionRow):
                session.execute(delete(table).where(table.model == model))
            session.execute(delete(ModelRow).where(ModelRow.name == model))

    def _rows(self, query: Any) -> Sequence[Any]:
        with self.reading() as session:
            return session.scalars(query).all()

    @contextmanager
    def reading(self) -> Iterator[Session]:
        self._refuse_when_down()
        with self._connected(self.engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, and rolls back when the block raises."""
        self._refuse_when_down()
        engine: Engine = self.engine.execution_options(begin="IMMEDIATE")
        committing = False
        try:
            with self._connected(engine) as session, session.begin():
                yield session
                session.flush()
                committing = True
        except StorageUnavailable as error:
            if committing and isinstance(error.__cause__, DBAPIError) and error.__cause__.connection_invalidated:
                raise StorageUnavailable(
                    "the database was lost in the moment of a commit: the change may have been made. Look at the "
                    "history before you send it again, or send an upload again under the same Idempotency-Key."
                ) from error
            raise

    def _refuse_when_down(self) -> None:
        why = self.down
        if why is not None:
            raise StorageUnavailable(f"{why}; nothing was changed. Try again in a moment.")

    @contextmanager
    def _connected(self, engine: Engine) -> Iterator[Session]:
        try:
            with Session(engine, expire_on_commit=False) as session:
                yield session
        except (IntegrityError, ProgrammingError):
            raise  # the first is read by those who expect it, the second is a defect of ours
        except (DataError, OverflowError, UnicodeEncodeError) as error:
            raise InvalidRequest(
                "the request has a text or a number that the database cannot hold, such as a NUL character or an "
                "integer of more than 64 bits; nothing was changed."
            ) from error
        except (DBAPIError, PoolTimeout) as error:
            raise StorageUnavailable(
                "the database does not answer; nothing was changed. Try again in a moment."
            ) from error


def _newest_editions(model: str) -> Any:
    newest = func.max(PriorRow.edition).label("edition")
    return select(PriorRow.name, newest).where(PriorRow.model == model).group_by(PriorRow.name)
