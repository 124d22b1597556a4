"""Jobs as rows: asked for once, held by one worker at a time under a lease, ended exactly once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session, aliased, defer
from sqlalchemy.orm.attributes import set_committed_value

from service.errors import IdempotencyKeyReused, TooManyJobs, UnknownJob
from service.store.database import Database, now
from service.store.engine import clock, wait_for_turn
from service.store.tables import JobRow

LEASE_SECONDS = 10.0
MAX_ATTEMPTS = 3  # workers that a job may lose before it is given up
MAX_OPEN = 200
KEPT = timedelta(days=30)
OPEN, ENDED = ("queued", "running"), ("done", "failed", "cancelled")
TURN = 0x4A4F4253  # one process at a time counts or takes jobs, so that limits hold between them


class LostLease(Exception):
    """The job was cancelled, or another worker has it now."""


class Jobs:
    """Safe between processes. Every method raises StorageUnavailable when the database does not answer.

    Args: lease_seconds, how long a job is held without word from its worker.
    """

    def __init__(self, database: Database, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._database = database
        self._lease_seconds = lease_seconds
        self._clock = clock(database.engine)

    def submit(self, job: JobRow) -> JobRow:
        """Store a job, or return the one that was stored under the same idempotency key before, begun anew where it
        failed for want of a store or a worker.

        Raises: IdempotencyKeyReused for a key that came with another request, TooManyJobs.
        """
        with self._database.writing() as session:
            wait_for_turn(session.connection(), TURN)
            known = None if job.idempotency_key is None else session.scalars(_same_key(job)).one_or_none()
            if known is None:
                waiting = session.scalar(select(func.count(JobRow.number)).where(JobRow.status.in_(OPEN))) or 0
                if waiting >= MAX_OPEN:
                    raise TooManyJobs(f"at most {MAX_OPEN} jobs may wait; try again when some have ended.")
                session.add(job)
                return job
            if known.request_digest == job.request_digest and _may_be_tried_again(known):
                known.status, known.problem, known.attempts, known.finished_at = "queued", None, 0, None
        if known.request_digest != job.request_digest:
            raise IdempotencyKeyReused(
                f"the Idempotency-Key {job.idempotency_key!r} came with another request before ({known.id}, "
                f"{known.created_at}). Use a new key for a new request."
            )
        return known

    def get(self, number: int) -> JobRow:
        """Raises: UnknownJob."""
        with self._database.reading() as session:
            found = session.get(JobRow, number)
        if found is None:
            raise UnknownJob(f"there is no job j{number}. GET /v1/jobs lists those of the last 30 days.")
        return found

    def newest(self, *, model: str | None, limit: int) -> Sequence[JobRow]:
        """Without their results, which are large: of a registration the name of the model that it made."""
        query = select(JobRow).order_by(JobRow.number.desc()).limit(limit).options(defer(JobRow.result))
        with self._database.reading() as session:
            rows = session.scalars(query if model is None else query.where(JobRow.target == model)).all()
            unnamed = JobRow.number.in_([row.number for row in rows if not row.target])
            models = session.execute(select(JobRow.number, JobRow.result["model"].as_string()).where(unnamed))
            made = {number: {"model": name} for number, name in models if name is not None}
            for row in rows:
                set_committed_value(row, "result", made.get(row.number))
            return rows

    def claim(self, owner: str) -> JobRow | None:
        """Take the oldest job that nobody works on, of a model that no other job is worked on."""
        with self._database.reading() as session:  # an idle worker takes no lock
            if session.scalars(self._next()).first() is None:
                return None
        with self._database.writing() as session:
            wait_for_turn(session.connection(), TURN)
            job = session.scalars(self._next().with_for_update()).first()
            if job is None:
                return None
            job.status, job.lease_owner, job.attempts = "running", owner, job.attempts + 1
            job.lease_until = (session.scalar(select(self._clock)) or 0.0) + self._lease_seconds
            job.started_at = job.started_at or now()
            return job

    def _next(self) -> Select[JobRow]:
        other = aliased(JobRow)
        busy = (
            select(other.number)
            .where(other.target == JobRow.target, other.target != "", other.number != JobRow.number)
            .where(other.status == "running", other.lease_until >= self._clock)
            .exists()
        )
        expired = (JobRow.status == "running") & (JobRow.lease_until < self._clock)
        return select(JobRow).where(or_(JobRow.status == "queued", expired), ~busy).order_by(JobRow.number).limit(1)

    def renew(self, job: JobRow, progress: float) -> None:
        """Hold the job for longer. Raises: LostLease."""
        until = self._clock + self._lease_seconds
        with self._database.writing() as session:
            self._end(session, job, {"lease_until": until, "progress": progress})

    def finish(self, session: Session, job: JobRow, *, result: dict[str, Any], revision: int | None) -> None:
        """End a job in the transaction of the change that it makes. Raises: LostLease, and the change is not made."""
        ended = {"status": "done", "progress": 1.0, "result": result, "revision": revision, "finished_at": now()}
        self._end(session, job, ended)

    def fail(self, job: JobRow, problem: dict[str, Any]) -> None:
        """Raises: LostLease."""
        with self._database.writing() as session:
            self._end(session, job, {"status": "failed", "problem": problem, "finished_at": now()})

    def release(self, job: JobRow, *, attempts: int) -> None:
        """Give a job back, to be tried again. Raises: LostLease."""
        with self._database.writing() as session:
            free = {"status": "queued", "lease_owner": None, "lease_until": None, "attempts": attempts}
            self._end(session, job, free)

    def cancel(self, number: int) -> JobRow:
        """End a job that has not ended; whoever works on it loses the lease. Raises: UnknownJob."""
        self.get(number)
        with self._database.writing() as session:
            query = update(JobRow).where(JobRow.number == number, JobRow.status.in_(OPEN))
            session.execute(query.values(status="cancelled", lease_owner=None, finished_at=now()))
        return self.get(number)

    def prune(self) -> None:
        """Drop jobs that ended long ago; what they changed stays in the history."""
        before = (datetime.now(UTC) - KEPT).isoformat(timespec="microseconds")
        with self._database.writing() as session:
            session.execute(delete(JobRow).where(JobRow.status.in_(ENDED), JobRow.created_at < before))

    def _end(self, session: Session, job: JobRow, values: dict[str, Any]) -> None:
        mine = (JobRow.number == job.number, JobRow.status == "running", JobRow.lease_owner == job.lease_owner)
        same_attempt = JobRow.attempts == job.attempts
        changed = session.execute(update(JobRow).where(*mine, same_attempt).values(**values))
        if changed.rowcount != 1:  # type: ignore[attr-defined]
            raise LostLease


def _may_be_tried_again(job: JobRow) -> bool:
    """Whether a job failed for a reason that was not the request's: its answer says to try again."""
    return job.status == "failed" and job.problem is not None and int(job.problem["status"]) >= 500


def _same_key(job: JobRow) -> Select[JobRow]:
    return select(JobRow).where(JobRow.idempotency_key == job.idempotency_key, JobRow.target == job.target)
