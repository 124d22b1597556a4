"""A database of version 0.1.0 is brought to the newest layout with all that it holds, or not touched; on both kinds."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, MetaData, create_engine, inspect, text

from models.calibration.manifest import calibration_to_json, ledger_to_json
from service.errors import CannotStart
from service.store import migrate
from service.store.artifacts import ArtifactStore
from service.store.database import Database
from service.store.engine import open_engine
from service.store.tables import Row
from tests.service.bundles import Made, formula
from tests.service.conftest import Service

LAW = {"ant": 0.05, "bee": 0.1, "cat": 0.2, "dog": 0.65}
REPORT = {"metrics": {"after": 0.1 + 0.2}}
LOGITS = [[1.0, 2.0, 3.0, 4.0]]

# A process that stops at the first statement of the middle step, says so, and goes on when it is told to.
SLOW = """
import sys
from sqlalchemy import Engine, event
from service.store.database import Database

@event.listens_for(Engine, "before_cursor_execute")
def pause(connection, cursor, statement, parameters, context, many):
    if statement.startswith("INSERT INTO priors"):
        print("in the middle", flush=True)
        sys.stdin.readline()

Database(sys.argv[1]).close()
"""


@pytest.fixture
def old(url: str, pets: Made) -> str:
    """The URL of a database as version 0.1.0 left it, with one model and all kinds of rows."""
    engine = open_engine(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, migrate.FIRST)
        connection.execute(text("DROP TABLE alembic_version"))  # version 0.1.0 did not count
        tables = MetaData()
        tables.reflect(connection)
        for name, rows in old_rows(pets).items():
            for row in rows:
                connection.execute(tables.tables[name].insert().values(**row))
    engine.dispose()
    return url


def old_rows(pets: Made) -> dict[str, list[dict[str, Any]]]:
    made = {"model": "pets", "created_at": "2026-01-01T00:00:00.000000+00:00"}
    calibration = made | {
        "version": 1,
        "calibration": calibration_to_json(pets.manifest.calibration),
        "ledger": ledger_to_json(pets.manifest.ledger),
    }
    change = made | {"version": 1, "calibration": 1, "prior": "uniform", "undoes_to": None}
    return {
        "models": [{"name": "pets", "created_at": made["created_at"]}],
        "versions": [made | {"number": 1, "manifest": pets.manifest.to_json(), "fingerprint": "f"}],
        "calibrations": [
            calibration | {"number": 1, "report": None, "file_digest": None},  # as JSON, `null`
            calibration | {"number": 2, "report": REPORT, "file_digest": "of the counts"},
        ],
        "priors": [made | {"name": "shop", "probs": LAW, "file_digest": "of the law"}],
        "changes": [
            change | {"revision": 1, "action": "registered"},
            change | {"revision": 2, "action": "uploaded training counts", "calibration": 2, "undoes_to": 1},
            change
            | {"revision": 3, "action": "uploaded target prior", "calibration": 2, "prior": "shop", "undoes_to": 2},
            change | {"revision": 4, "action": "undo", "calibration": 2, "undoes_to": 1},
            change | {"revision": 5, "action": "activated prior", "calibration": 2, "prior": "shop", "undoes_to": 4},
        ],
    }


def all_rows(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of a database, whatever its layout."""
    engine = create_engine(url)
    tables = MetaData()
    with engine.connect() as connection:
        tables.reflect(connection)
        found = {
            name: [dict(row) for row in connection.execute(table.select().order_by(*table.primary_key)).mappings()]
            for name, table in sorted(tables.tables.items())
        }
    engine.dispose()
    return found


@contextmanager
def slow_migration(url: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of the migration."""
    command = [sys.executable, "-c", SLOW, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "in the middle\n"
            yield process
        finally:
            process.kill()


def assert_all_is_there(url: str, pets: Made) -> None:
    database = Database(url)
    assert database.heads() == {"pets": ("2026-01-01T00:00:00.000000+00:00", 5)}
    assert database.version("pets", 1).manifest == pets.manifest.to_json()
    history = database.history("pets")
    assert [(row.revision, row.calibration, row.prior, row.prior_edition, row.undoes_to) for row in history] == [
        (1, 1, "uniform", None, None),
        (2, 2, "uniform", None, 1),
        (3, 2, "shop", 1, 2),
        (4, 2, "uniform", None, 1),
        (5, 2, "shop", 1, 4),
    ]
    assert [database.report("pets", row.revision) for row in history] == [None, REPORT, None, None, None]
    assert [row.metrics for row in history] == [None, REPORT["metrics"], None, None, None]
    assert [row.file_digest for row in history] == [None, "of the counts", None, None, None]
    labelled = pets.manifest.files["calibration_set.npz"]
    method = pets.manifest.calibration.method
    assert [(row.method, row.calibration_set, row.file_digest) for row in database.calibrations("pets")] == [
        (method, labelled, None),
        (method, labelled, "of the counts"),
    ]
    shop = database.prior("pets", "shop")
    assert (shop.edition, shop.probs, shop.file_digest) == (1, LAW, "of the law")
    with database.engine.connect() as connection:
        nulls = connection.execute(text("SELECT count(*) FROM changes WHERE report IS NULL")).scalar()
    assert nulls == 4
    database.close()


def assert_layout_is_that_of_the_tables(engine: Engine) -> None:
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Row.metadata) == []


def test_a_database_of_version_0_1_0_is_upgraded_with_every_row(old: str, pets: Made) -> None:
    assert_all_is_there(old, pets)
    assert_all_is_there(old, pets)  # the second start finds nothing to do


def test_a_database_that_was_counted_and_stands_at_a_former_step_is_upgraded_too(old: str, pets: Made) -> None:
    engine = open_engine(old)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES (:number)"), {"number": migrate.FIRST})
    engine.dispose()
    assert_all_is_there(old, pets)


def test_the_service_answers_from_an_upgraded_database_and_can_undo(
    old: str, pets: Made, make_service: Callable[..., Service], tmp_path: Path
) -> None:
    store = ArtifactStore((tmp_path / "state" / "artifacts").as_uri())
    for name in pets.manifest.files:
        store.put((pets.path / name).read_bytes())
    service = make_service(database_url=old)
    calibration = orjson.loads((pets.path / "manifest.json").read_bytes())["calibration"]
    for law in (list(LAW.values()), None, None):
        answer = service.post("/v1/models/pets/scores", json={"logits": LOGITS})
        np.testing.assert_allclose(
            answer.json()["results"][0]["scores"], formula(calibration, np.array(LOGITS), law)[0], atol=1e-12
        )
        undone = service.post("/v1/models/pets/undo")
    assert undone.json()["type"] == "/problems/nothing-to-undo"
    assert service.get("/v1/models/pets").json()["active"]["calibration"]["id"] == "c1"


def test_an_upgraded_layout_is_that_of_a_new_database_and_that_of_the_tables(old: str, tmp_path: Path) -> None:
    upgraded, new = Database(old), Database(f"sqlite:///{tmp_path / 'new.db'}")
    assert_layout_is_that_of_the_tables(upgraded.engine)
    assert_layout_is_that_of_the_tables(new.engine)
    for table in inspect(new.engine).get_table_names():
        assert columns(upgraded.engine, table) == columns(new.engine, table)
    for database in (upgraded, new):
        database.close()


def columns(engine: Engine, table: str) -> dict[str, bool]:
    return {each["name"]: each["nullable"] for each in inspect(engine).get_columns(table)}


def test_a_process_killed_in_the_middle_leaves_the_former_layout_whole_and_the_next_start_completes_it(
    old: str, pets: Made
) -> None:
    before = all_rows(old)
    with slow_migration(old) as process:
        process.kill()
        process.wait()
    assert all_rows(old) == before
    assert_all_is_there(old, pets)


def test_of_two_processes_that_start_at_once_one_migrates_and_the_other_waits(old: str, pets: Made) -> None:
    with slow_migration(old) as first:
        program = "import sys; from service.store.database import Database; Database(sys.argv[1]).close()"
        with subprocess.Popen([sys.executable, "-c", program, old]) as second:
            with pytest.raises(subprocess.TimeoutExpired):
                second.wait(timeout=4)  # it waits for the first
            first.communicate("go on\n")
            assert (first.returncode, second.wait(timeout=60)) == (0, 0)
    assert_all_is_there(old, pets)


def test_a_layout_of_a_newer_version_is_refused_with_a_way_out_and_not_touched(url: str) -> None:
    Database(url).close()
    engine = open_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = all_rows(url)
    with pytest.raises(CannotStart, match="layout 9999, which this version of Equipoise does not know: a newer one"):
        Database(url)
    assert all_rows(url) == before
    engine.dispose()
