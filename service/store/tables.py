"""The tables. What was acknowledged stays: rows of the history are only added, and a deleted thing keeps its row.

A model's live state is its newest row in `changes`. Floats survive unchanged, because JSON columns hold their
shortest exact text in SQLite and in PostgreSQL alike. The steps from one layout to the next are in `migrations`.
"""

from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint, Index, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column


class Row(MappedAsDataclass, DeclarativeBase, kw_only=True):
    type_annotation_map = {dict[str, Any]: JSON, dict[str, float]: JSON}  # noqa: RUF012


class ModelRow(Row):
    """A model and the number of its newest change; what other processes look at to follow."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[str]
    revision: Mapped[int] = mapped_column(default=0)


class VersionRow(Row):
    """A bundle: its manifest, which names its files by their digests, and the digest of the manifest."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    manifest: Mapped[dict[str, Any]]
    fingerprint: Mapped[str]
    created_at: Mapped[str]
    deleted_at: Mapped[str | None] = mapped_column(default=None)

    @property
    def id(self) -> str:
        return str(self.number)


class CalibrationRow(Row):
    """A calibration of one version, with the ledger that it was fitted under.

    `calibration_set` is the digest of the labelled logits that a refit uses, `file_digest` that of the upload that led
    here; None for the bundle's own.
    """

    __tablename__ = "calibrations"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)

    model: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]
    method: Mapped[str]
    calibration: Mapped[dict[str, Any]] = mapped_column(JSON)
    ledger: Mapped[dict[str, Any]] = mapped_column(JSON)
    file_digest: Mapped[str | None]
    created_at: Mapped[str]
    calibration_set: Mapped[str | None] = mapped_column(default=None)
    deleted_at: Mapped[str | None] = mapped_column(default=None)

    @property
    def id(self) -> str:
        return f"c{self.number}"


class PriorRow(Row):
    """One edition of a named target prior, by class name: it fits every version with these classes, in any order.

    The newest edition is what the name means now; one without `probs` says that the prior was deleted.
    """

    __tablename__ = "priors"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    edition: Mapped[int] = mapped_column(primary_key=True)
    probs: Mapped[dict[str, float] | None] = mapped_column(JSON(none_as_null=True))
    file_digest: Mapped[str | None]
    created_at: Mapped[str]


class AliasRow(Row):
    """A name for a version besides its number."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int]


class ChangeRow(Row):
    """The state of a model after one change; `undoes_to` is the revision whose state an undo of this one restores.

    `prior_edition` is None for a built-in prior. `actor` is who the client says it is. `report` is the comparison
    before and after, where there was something to compare, and `metrics` its figures; with thousands of classes a
    report is large, so that it is read only when it is asked for.
    """

    __tablename__ = "changes"
    __table_args__ = (
        ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),
        ForeignKeyConstraint(["model", "calibration"], ["calibrations.model", "calibrations.number"]),
    )

    model: Mapped[str] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str]
    version: Mapped[int]
    calibration: Mapped[int]
    prior: Mapped[str]
    prior_edition: Mapped[int | None]
    undoes_to: Mapped[int | None]
    created_at: Mapped[str]
    actor: Mapped[str | None] = mapped_column(default=None)
    file_digest: Mapped[str | None] = mapped_column(default=None)
    metrics: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None, deferred=True)


class JobRow(Row):
    """Work that a worker process does: what was asked for, who holds it until when, and what came of it.

    `lease_until` is in seconds of the database's clock, so that machines need not agree on the time. `result` and
    `problem` are what the client gets; exactly one of them when the job has ended by itself.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("idempotency_key", "target"),
        Index("ix_jobs_open", "status", "number"),
        {"sqlite_autoincrement": True},  # a number is never given twice, also after the newest job was deleted
    )

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    kind: Mapped[str]
    target: Mapped[str]  # the model, or "" for a registration whose model is not known yet
    options: Mapped[dict[str, Any]]
    input_digest: Mapped[str | None]
    request_digest: Mapped[str]
    idempotency_key: Mapped[str | None]
    actor: Mapped[str | None]
    created_at: Mapped[str]
    status: Mapped[str] = mapped_column(default="queued")
    progress: Mapped[float] = mapped_column(default=0.0)
    attempts: Mapped[int] = mapped_column(default=0)
    lease_owner: Mapped[str | None] = mapped_column(default=None)
    lease_until: Mapped[float | None] = mapped_column(default=None)
    started_at: Mapped[str | None] = mapped_column(default=None)
    finished_at: Mapped[str | None] = mapped_column(default=None)
    revision: Mapped[int | None] = mapped_column(default=None)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)
    problem: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True), default=None)

    @property
    def id(self) -> str:
        return f"j{self.number}"


class ArtifactRow(Row):
    """A file in the artifact store and when it was last put there; what no row refers to is deleted some time later."""

    __tablename__ = "artifacts"

    digest: Mapped[str] = mapped_column(primary_key=True)
    touched_at: Mapped[float]
