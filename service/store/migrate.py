"""Bringing a database to the newest layout, or refusing one that a newer Equipoise has written.

To add a step: change `tables`, write the next file into `migrations/versions` by the pattern of the others, and let
the tests compare what both lead to.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect

from service.errors import CannotStart
from service.store.engine import wait_for_turn

FIRST = "0001"  # the layout of databases that were made before steps were counted
TURN = 0x45515549  # two processes that start do not both change the layout
NO_TIMEOUTS = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0"  # large tables take their time


def migrate(engine: Engine) -> None:
    """Take all missing steps in one transaction: a process that is killed on the way leaves the former layout whole.

    Raises: CannotStart for a layout that this version does not know.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    scripts = ScriptDirectory.from_config(config)
    if _layout(engine) == scripts.get_current_head():
        return  # without a lock: most starts find nothing to do
    with engine.execution_options(begin="IMMEDIATE").begin() as connection:  # SQLite: one process after another
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql(NO_TIMEOUTS)
        wait_for_turn(connection, TURN)
        config.attributes["connection"] = connection
        _take_steps(connection, config, scripts)


def _layout(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def _take_steps(connection: Connection, config: Config, scripts: ScriptDirectory) -> None:
    layout = MigrationContext.configure(connection).get_current_revision()
    if layout is None and inspect(connection).has_table("changes"):
        command.stamp(config, FIRST)
    elif layout is not None and layout not in {script.revision for script in scripts.walk_revisions()}:
        raise CannotStart(
            f"the database has the layout {layout}, which this version of Equipoise does not know: a newer one has "
            "written it. Start that version, or restore the database from a copy made before the upgrade."
        )
    command.upgrade(config, "head")
