"""Files that rows refer to: never swept away before their row is there, and swept when the last one is gone."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

from sqlalchemy import Select, String, cast, delete, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from service.store.artifacts import ArtifactStore, digest_of, digest_of_file
from service.store.database import Database
from service.store.engine import clock
from service.store.jobs import OPEN
from service.store.tables import ArtifactRow, CalibrationRow, ChangeRow, JobRow, PriorRow, VersionRow

GRACE_SECONDS = 86400.0  # far longer than any request or job takes between storing a file and referring to it
UPLOAD_FOLDER = "upload-"  # how the folders begin that requests and jobs make in the state folder for a moment


class Keeper:
    """Every artifact has a row that says when it was last put there. Putting takes the row first and the file then, and
    sweeping deletes the file while it holds the row: so a file that is put again is never the one that is deleted.
    """

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self._database = database
        self._artifacts = artifacts
        self._clock = clock(database.engine)

    def put(self, data: bytes) -> str:
        """Returns: the digest. Raises: StorageUnavailable."""
        self._touch(digest_of(data))
        return self._artifacts.put(data)

    def put_file(self, path: Path) -> str:
        """Returns: the digest. Raises: StorageUnavailable."""
        self._touch(digest_of_file(path))
        return self._artifacts.put_file(path)

    def sweep(self, *, grace_seconds: float = GRACE_SECONDS) -> list[str]:
        """Delete the files that no row refers to any more. Returns: their digests. Raises: StorageUnavailable."""
        with self._database.reading() as session:
            old = ArtifactRow.touched_at < self._clock - grace_seconds
            candidates = set(session.scalars(select(ArtifactRow.digest).where(old)))
            candidates -= _referred(session)
        return [digest for digest in sorted(candidates) if self._delete(digest, grace_seconds)]

    def _delete(self, digest: str, grace_seconds: float) -> bool:
        with self._database.writing() as session:
            still = (ArtifactRow.digest == digest, ArtifactRow.touched_at < self._clock - grace_seconds)
            if session.execute(delete(ArtifactRow).where(*still)).rowcount != 1:  # type: ignore[attr-defined]
                return False
            if _is_referred(session, digest):
                session.rollback()
                return False
            self._artifacts.delete(digest)
        return True

    def _touch(self, digest: str) -> None:
        this = update(ArtifactRow).where(ArtifactRow.digest == digest)
        with suppress(IntegrityError), self._database.writing() as session:  # another process has just put it
            if session.execute(this.values(touched_at=self._clock)).rowcount != 1:  # type: ignore[attr-defined]
                session.add(ArtifactRow(digest=digest, touched_at=session.scalar(select(self._clock)) or 0.0))


def clear_left_overs(state_dir: Path) -> None:
    """Remove what a killed process left of uploads in the state folder, a day later."""
    for path in state_dir.glob(f"{UPLOAD_FOLDER}*"):
        with suppress(FileNotFoundError):  # another process removed it
            if path.stat().st_mtime < time.time() - GRACE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _referred(session: Session) -> set[str]:
    """Digests that some row names: of live versions, calibrations, changes, priors and open jobs."""
    kept = {digest for query in _digests() for digest in session.scalars(query) if digest is not None}
    files = select(VersionRow.manifest["files"]).where(VersionRow.deleted_at.is_(None))
    return kept.union(*(each.values() for each in session.scalars(files)))


def _is_referred(session: Session, digest: str) -> bool:
    """As `_referred`, of one digest: the database looks for it."""
    queries = [query.where(query.selected_columns[0] == digest) for query in _digests()]
    in_manifest = cast(VersionRow.manifest, String).contains(digest)
    queries.append(select(VersionRow.fingerprint).where(VersionRow.deleted_at.is_(None), in_manifest))
    return any(session.scalars(query.limit(1)).first() is not None for query in queries)


def _digests() -> list[Select[str | None]]:
    return [
        select(CalibrationRow.calibration_set).where(CalibrationRow.deleted_at.is_(None)),
        select(CalibrationRow.file_digest),
        select(ChangeRow.file_digest),
        select(PriorRow.file_digest),
        select(JobRow.input_digest).where(JobRow.status.in_(OPEN)),
    ]
