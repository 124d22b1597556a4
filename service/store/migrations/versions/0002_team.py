"""Several processes and many years: revisions on models, aliases, editions of priors, jobs, artifacts, more history."""

import orjson
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    _models_and_versions()
    _priors_with_editions()
    _changes_and_calibrations()
    op.create_table(
        "aliases",
        sa.Column("model", sa.String, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
    )
    op.create_table(
        "artifacts",
        sa.Column("digest", sa.String, primary_key=True),
        sa.Column("touched_at", sa.Double, nullable=False),
    )
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("target", sa.String, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("input_digest", sa.String),
        sa.Column("request_digest", sa.String, nullable=False),
        sa.Column("idempotency_key", sa.String),
        sa.Column("actor", sa.String),
        sa.Column("created_at", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("progress", sa.Double, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("lease_owner", sa.String),
        sa.Column("lease_until", sa.Double),
        sa.Column("started_at", sa.String),
        sa.Column("finished_at", sa.String),
        sa.Column("revision", sa.Integer),
        sa.Column("result", sa.JSON),
        sa.Column("problem", sa.JSON),
        sa.UniqueConstraint("idempotency_key", "target"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_jobs_open", "jobs", ["status", "number"])


def _models_and_versions() -> None:
    op.add_column("models", sa.Column("revision", sa.Integer, nullable=False, server_default="0"))
    newest = "SELECT max(changes.revision) FROM changes WHERE changes.model = models.name"
    op.execute(f"UPDATE models SET revision = coalesce(({newest}), 0)")
    op.add_column("versions", sa.Column("deleted_at", sa.String))


def _priors_with_editions() -> None:
    op.rename_table("priors", "priors_of_0001")
    op.create_table(
        "priors",
        sa.Column("model", sa.String, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("edition", sa.Integer, primary_key=True),
        sa.Column("probs", sa.JSON),
        sa.Column("file_digest", sa.String),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.execute(
        "INSERT INTO priors (model, name, edition, probs, file_digest, created_at) "
        "SELECT model, name, 1, probs, file_digest, created_at FROM priors_of_0001"
    )
    op.drop_table("priors_of_0001")


def _changes_and_calibrations() -> None:
    op.add_column("changes", sa.Column("prior_edition", sa.Integer))
    op.add_column("changes", sa.Column("actor", sa.String))
    op.add_column("changes", sa.Column("file_digest", sa.String))
    op.add_column("changes", sa.Column("report", sa.JSON))
    op.add_column("changes", sa.Column("metrics", sa.JSON))
    op.execute("UPDATE changes SET prior_edition = 1 WHERE prior NOT IN ('uniform', 'training')")
    op.add_column("calibrations", sa.Column("calibration_set", sa.String))
    op.add_column("calibrations", sa.Column("deleted_at", sa.String))
    op.add_column("calibrations", sa.Column("method", sa.String, nullable=False, server_default=""))
    # A report and the file that it is about belong to the change; a calibration appears first in the one that made it.
    of_its_change = "FROM calibrations c WHERE c.model = changes.model AND c.number = changes.calibration"
    made_it = (
        "SELECT min(first.revision) FROM changes first WHERE first.model = changes.model "
        "AND first.calibration = changes.calibration"
    )
    op.execute(
        f"UPDATE changes SET report = (SELECT c.report {of_its_change}), file_digest = (SELECT c.file_digest "
        f"{of_its_change}) WHERE revision = ({made_it})"
    )
    op.execute("UPDATE changes SET report = NULL WHERE CAST(report AS TEXT) = 'null'")  # version 0.1.0 wrote it so
    op.drop_column("calibrations", "report")
    _copied_out_of_json(op.get_bind())


def _copied_out_of_json(connection: sa.Connection) -> None:
    """What lists show, and the digest that a refit needs, in columns of their own."""
    calibrations = connection.execute(
        sa.text("SELECT model, number, CAST(calibration AS TEXT) FROM calibrations")
    ).all()
    for model, number, calibration in calibrations:
        connection.execute(
            sa.text("UPDATE calibrations SET method = :method WHERE model = :model AND number = :number"),
            {"method": orjson.loads(calibration)["method"], "model": model, "number": number},
        )
    reports = sa.text("SELECT model, revision, CAST(report AS TEXT) FROM changes WHERE report IS NOT NULL")
    for model, revision, report in connection.execute(reports).all():
        metrics = orjson.dumps(orjson.loads(report).get("metrics")).decode()
        connection.execute(
            sa.text("UPDATE changes SET metrics = CAST(:metrics AS JSON) WHERE model = :model AND revision = :revision")
            if connection.dialect.name == "postgresql"
            else sa.text("UPDATE changes SET metrics = :metrics WHERE model = :model AND revision = :revision"),
            {"metrics": metrics, "model": model, "revision": revision},
        )
    versions = connection.execute(sa.text("SELECT model, number, CAST(manifest AS TEXT) FROM versions")).all()
    for model, number, manifest in versions:
        digest = orjson.loads(manifest)["files"].get("calibration_set.npz")
        connection.execute(
            sa.text("UPDATE calibrations SET calibration_set = :digest WHERE model = :model AND version = :number"),
            {"digest": digest, "model": model, "number": number},
        )
