"""The tables of version 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "versions",
        sa.Column("model", sa.String, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.Column("fingerprint", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "calibrations",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("calibration", sa.JSON, nullable=False),
        sa.Column("ledger", sa.JSON, nullable=False),
        sa.Column("report", sa.JSON),
        sa.Column("file_digest", sa.String),
        sa.Column("created_at", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),
    )
    op.create_table(
        "priors",
        sa.Column("model", sa.String, sa.ForeignKey("models.name"), primary_key=True),
        sa.Column("name", sa.String, primary_key=True),
        sa.Column("probs", sa.JSON, nullable=False),
        sa.Column("file_digest", sa.String, nullable=False),
        sa.Column("created_at", sa.String, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("model", sa.String, primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("calibration", sa.Integer, nullable=False),
        sa.Column("prior", sa.String, nullable=False),
        sa.Column("undoes_to", sa.Integer),
        sa.Column("created_at", sa.String, nullable=False),
        sa.ForeignKeyConstraint(["model", "version"], ["versions.model", "versions.number"]),
        sa.ForeignKeyConstraint(["model", "calibration"], ["calibrations.model", "calibrations.number"]),
    )
