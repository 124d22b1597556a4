"""The same behaviour on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.errors import CannotStart, UnknownCalibration, UnknownModel, UnknownPrior, UnknownVersion
from service.store.database import Database, Overtaken, now
from service.store.tables import CalibrationRow, ChangeRow, ModelRow, PriorRow, VersionRow

EXACT = [0.1 + 0.2, 1e-300, 5e-324, 1 / 3]


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    opened = Database(url)
    yield opened
    opened.close()


def change(revision: int, *, prior: str = "uniform", calibration: int = 1) -> ChangeRow:
    return ChangeRow(
        model="pets",
        revision=revision,
        action="test",
        version=1,
        calibration=calibration,
        prior=prior,
        undoes_to=None,
        created_at=now(),
    )


def first_rows() -> list:
    return [
        ModelRow(name="pets", created_at=now()),
        VersionRow(model="pets", number=1, manifest={"exact": EXACT}, fingerprint="f", created_at=now()),
        calibration(1),
    ]


def calibration(number: int, *, version: int = 1) -> CalibrationRow:
    return CalibrationRow(
        model="pets",
        number=number,
        version=version,
        calibration={"scale": EXACT},
        ledger={},
        report=None,
        file_digest=None,
        created_at=now(),
    )


def test_a_committed_change_is_the_newest_state_also_after_a_restart(database: Database, url: str) -> None:
    database.commit(change(1), first_rows())
    database.commit(change(2, prior="training"))
    database.close()
    again = Database(url)
    assert (again.newest_change("pets").revision, again.newest_change("pets").prior) == (2, "training")
    assert [row.revision for row in again.history("pets")] == [1, 2]
    again.close()


def test_floats_come_back_to_the_last_bit(database: Database) -> None:
    database.commit(change(1), first_rows())
    assert database.version("pets", 1).manifest["exact"] == EXACT
    assert database.calibration("pets", 1).calibration["scale"] == EXACT


def test_a_change_of_an_old_state_is_refused_and_leaves_none_of_its_rows(database: Database) -> None:
    database.commit(change(1), first_rows())
    prior = PriorRow(model="pets", name="shop", probs={"ant": 1.0}, file_digest="d", created_at=now())
    with pytest.raises(Overtaken):
        database.commit(change(1), [prior])
    with pytest.raises(Overtaken):
        database.commit(change(3), [prior])
    assert list(database.priors("pets")) == []
    assert database.newest_change("pets").revision == 1


def test_rows_that_refer_to_nothing_are_refused(database: Database) -> None:
    database.commit(change(1), first_rows())
    with pytest.raises(Overtaken):
        database.commit(change(2, calibration=9))
    with pytest.raises(Overtaken):
        database.commit(change(2), [calibration(2, version=9)])
    assert database.newest_change("pets").revision == 1


def test_of_changes_committed_at_once_on_one_state_exactly_one_wins(database: Database, url: str) -> None:
    database.commit(change(1), first_rows())
    other = Database(url)  # as another process would

    def attempt(number: int) -> bool:
        try:
            (database if number % 2 else other).commit(change(2, prior=f"p{number}"), [calibration(number + 10)])
        except Overtaken:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    other.close()
    assert sum(won) == 1
    assert database.newest_change("pets").prior == f"p{won.index(True)}"
    assert [row.number for row in database.calibrations("pets")] == [1, won.index(True) + 10]


def test_what_is_not_there_is_named(database: Database) -> None:
    with pytest.raises(UnknownModel, match="no model 'pets'; the models are: none"):
        database.newest_change("pets")
    database.commit(change(1), first_rows())
    with pytest.raises(UnknownModel, match="the models are: pets"):
        database.newest_change("cars")
    with pytest.raises(UnknownModel):
        database.newest_change("pets\0")
    with pytest.raises(UnknownVersion):
        database.version("pets", 2)
    with pytest.raises(UnknownCalibration):
        database.calibration("pets", 2)
    with pytest.raises(UnknownPrior):
        database.prior("pets", "shop")


def test_sqlite_keeps_a_write_ahead_log_and_checks_references(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'test.db'}")
    with database._engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys")]
    database.close()
    assert pragmas == ["wal", 1]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://host/db", "No module|SQLite or PostgreSQL"),
        ("nonsense", "Could not parse"),
        ("sqlite:////proc/none/test.db", "unable to open"),
        ("postgresql://nobody@127.0.0.1:1/none", "refused"),
    ],
)
def test_a_database_that_cannot_be_opened_is_a_clear_error(url: str, reason: str) -> None:
    with pytest.raises(CannotStart, match=reason):
        Database(url)


def test_a_file_that_is_no_database_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "test.db").write_bytes(b"not a database at all, only text" * 100)
    with pytest.raises(CannotStart, match="not a database"):
        Database(f"sqlite:///{tmp_path / 'test.db'}")
