"""The tables. Rows are only ever added: what was acknowledged stays in the history.

A model's live state is its newest row in `changes`. Floats survive unchanged, because JSON columns hold their
shortest exact text in SQLite and in PostgreSQL alike.
"""

from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column


class Row(MappedAsDataclass, DeclarativeBase, kw_only=True):
    type_annotation_map = {dict[str, Any]: JSON, dict[str, float]: JSON}  # noqa: RUF012


class ModelRow(Row):
    __tablename__ = "models"

    name: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[str]


class VersionRow(Row):
    """A bundle: its manifest, which names its files by their digests, and the digest of the manifest."""

    __tablename__ = "versions"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    manifest: Mapped[dict[str, Any]]
    fingerprint: Mapped[str]
    created_at: Mapped[str]

    @property
    def id(self) -> str:
        return str(self.number)


class CalibrationRow(Row):
    """A calibration of one version, with the ledger that it was fitted under and the upload that led to it, if any."""

    __tablename__ = "calibrations"
    __table_args__ = (ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),)

    model: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int]
    calibration: Mapped[dict[str, Any]]
    ledger: Mapped[dict[str, Any]]
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    file_digest: Mapped[str | None]
    created_at: Mapped[str]

    @property
    def id(self) -> str:
        return f"c{self.number}"


class PriorRow(Row):
    """A named target prior by class name, so that it fits every version with these classes, in any order."""

    __tablename__ = "priors"

    model: Mapped[str] = mapped_column(ForeignKey("models.name"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    probs: Mapped[dict[str, float]]
    file_digest: Mapped[str]
    created_at: Mapped[str]


class ChangeRow(Row):
    """The state of a model after one change; `undoes_to` is the revision whose state an undo of this one restores."""

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
    undoes_to: Mapped[int | None]
    created_at: Mapped[str]
