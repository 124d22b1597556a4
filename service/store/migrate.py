"""Bringing a database to the newest layout, or refusing one that a newer Equipoise has written.

To add a step: change `tables`, write the next file into `migrations/versions` by the pattern of the others, and let
the tests compare what both lead to.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from service.errors import CannotStart
from service.store.engine import wait_for_turn

MIGRATIONS = Path(__file__).parent / "migrations"
FIRST = "0001"  # the layout of databases that were made before steps were counted
TURN = 0x45515549  # two processes that start do not both change the layout
NO_TIMEOUTS = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"  # large tables take their time


def migrate(engine: Engine) -> None:
    """Take all missing steps in one transaction: a process that is killed on the way leaves the former layout whole.

    Raises: CannotStart for a layout that this version does not know.
    """
    with engine.connect() as connection:
        if _layout(connection) == max(_known()):
            return  # without a lock, and without Alembic, which takes its time to load: most starts find nothing to do
    with engine.execution_options(begin="IMMEDIATE").begin() as connection:  # SQLite: one process after another
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(NO_TIMEOUTS)
        wait_for_turn(connection, TURN)
        _take_steps(connection)


def _known() -> set[str]:
    """The numbers of all steps, with which the names of their files begin."""
    return {path.name[:4] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def _layout(connection: Connection) -> str | None:
    """The number of the last step that was taken; None for a database without tables, or older than the counting."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    layout: str | None = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return layout


def _take_steps(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    layout = _layout(connection)
    if layout is None and inspect(connection).has_table("changes"):
        command.stamp(config, FIRST)
    elif layout is not None and layout not in _known():
        raise CannotStart(
            f"the database has the layout {layout}, which this version of Equipoise does not know: a newer one has "
            "written it. Start that version, or restore the database from a copy made before the upgrade."
        )
    command.upgrade(config, "head")
