"""The same behaviour on SQLite and on PostgreSQL."""

import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from service.errors import (
    CannotStart,
    InvalidRequest,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
)
from service.store.database import Database, Overtaken, now
from service.store.tables import AliasRow, CalibrationRow, ChangeRow, PriorRow, Row, VersionRow

EXACT = [0.1 + 0.2, 1e-300, 5e-324, 1 / 3]


def change(revision: int, *, prior: str = "uniform", calibration: int = 1) -> ChangeRow:
    return ChangeRow(
        model="pets",
        revision=revision,
        action="test",
        version=1,
        calibration=calibration,
        prior=prior,
        prior_edition=None,
        undoes_to=None,
        created_at=now(),
    )


def first_rows() -> list[Row]:
    return [
        VersionRow(model="pets", number=1, manifest={"exact": EXACT}, fingerprint="f", created_at=now()),
        calibration(1),
    ]


def calibration(number: int, *, version: int = 1) -> CalibrationRow:
    return CalibrationRow(
        model="pets",
        number=number,
        version=version,
        method="marc",
        calibration={"scale": EXACT},
        ledger={},
        file_digest=None,
        created_at=now(),
    )


def prior(edition: int, **probs: float) -> PriorRow:
    return PriorRow(model="pets", name="shop", edition=edition, probs=probs or None, file_digest=None, created_at=now())


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
    with pytest.raises(Overtaken):
        database.commit(change(1), [prior(1)])
    with pytest.raises(Overtaken):
        database.commit(change(3), [prior(1)])
    assert list(database.priors("pets")) == []
    assert database.newest_change("pets").revision == 1


def test_rows_that_refer_to_nothing_are_refused(database: Database) -> None:
    database.commit(change(1), first_rows())
    with pytest.raises(StorageUnavailable, match="refused the change"):
        database.commit(change(2, calibration=9))
    with pytest.raises(StorageUnavailable, match="refused the change"):
        database.commit(change(2), [calibration(2, version=9)])
    assert database.newest_change("pets").revision == 1
    assert database.heads()["pets"][1] == 1


def test_a_change_replaces_an_alias_and_nothing_of_the_history(database: Database) -> None:
    second = VersionRow(model="pets", number=2, manifest={}, fingerprint="g", created_at=now())
    database.commit(change(1), [*first_rows(), second, AliasRow(model="pets", name="shop", version=1)])
    with pytest.raises(StorageUnavailable):
        database.commit(change(2), [AliasRow(model="pets", name="shop", version=2), calibration(1, version=2)])
    assert (database.calibration("pets", 1).version, database.aliases("pets")) == (1, {"shop": 1})
    database.commit(change(2), [AliasRow(model="pets", name="shop", version=2)])
    assert database.aliases("pets") == {"shop": 2}


def test_what_belongs_to_a_change_is_committed_with_it_or_refuses_it(database: Database) -> None:
    def alias(session: Session) -> None:
        session.add(AliasRow(model="pets", name="shop", version=1))

    def refuse(session: Session) -> None:
        alias(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.commit(change(1), first_rows(), finish=refuse)
    assert database.models() == []
    database.commit(change(1), first_rows(), finish=alias)
    assert database.aliases("pets") == {"shop": 1}


def test_the_newest_edition_is_what_a_prior_means_and_a_deleted_one_is_no_prior(database: Database) -> None:
    database.commit(change(1), [*first_rows(), prior(1, ant=1.0), prior(2, ant=0.5)])
    assert database.prior("pets", "shop").probs == {"ant": 0.5}
    assert database.prior_edition("pets", "shop", 1).probs == {"ant": 1.0}
    database.commit(change(2), [prior(3)])
    assert list(database.priors("pets")) == []
    with pytest.raises(UnknownPrior):
        database.prior("pets", "shop")
    assert database.newest_edition("pets", "shop") == 3  # the name goes on counting


def test_a_deleted_model_leaves_no_row_and_its_name_can_be_given_again(database: Database) -> None:
    database.commit(change(1), [*first_rows(), prior(1, ant=1.0), AliasRow(model="pets", name="shop", version=1)])
    made_at = database.created_at("pets")
    with pytest.raises(Overtaken):
        database.forget("pets", revision=2)
    database.forget("pets", revision=1)
    assert (database.models(), database.heads(), database.history("pets")) == ([], {}, [])
    database.commit(change(1), first_rows())
    assert database.created_at("pets") > made_at
    assert (database.aliases("pets"), list(database.priors("pets"))) == ({}, [])


def test_texts_and_numbers_that_cannot_be_stored_are_the_fault_of_the_request(database: Database) -> None:
    database.commit(change(1), first_rows())
    with pytest.raises(InvalidRequest, match="cannot hold"):
        database.commit(change(2), [calibration(1 << 70)])
    with pytest.raises(InvalidRequest, match="cannot hold"):
        database.commit(change(2, prior="\ud800"))
    if database.engine.dialect.name == "postgresql":  # SQLite stores a NUL
        with pytest.raises(InvalidRequest, match="NUL"):
            database.commit(change(2, prior="a\0b"))
    assert database.newest_change("pets").revision == 1


def test_requests_are_refused_at_once_while_the_database_is_known_to_be_gone(database: Database) -> None:
    database.commit(change(1), first_rows())
    database.not_heard()
    with pytest.raises(StorageUnavailable, match="does not answer; nothing was changed"):
        database.models()
    with pytest.raises(StorageUnavailable, match="does not answer; nothing was changed"):
        database.commit(change(2))
    assert database.heads()["pets"][1] == 1  # whoever looks whether it is back asks all the same
    database.heard()
    assert database.models() == ["pets"]


def test_a_database_that_hangs_is_known_to_be_gone_when_its_answer_is_overdue(database: Database) -> None:
    database.asked(expect_within=60)
    assert database.models() == []
    database.asked(expect_within=0)
    with pytest.raises(StorageUnavailable, match="does not answer"):
        database.models()
    database.heard()
    assert database.models() == []


def test_connections_that_the_server_has_closed_are_replaced(postgres_url: str) -> None:
    database = Database(postgres_url)
    database.commit(change(1), first_rows())
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid != pg_backend_pid()")
    assert database.models() == ["pets"]
    database.close()


class Line(socketserver.BaseRequestHandler):
    """A line to PostgreSQL; once the server is told to, it breaks after a COMMIT has passed, before its answer."""

    server: Any

    def handle(self) -> None:
        client, broken = self.request, False
        with socket.socket(socket.AF_UNIX) as database:
            database.connect(self.server.database)
            while True:
                for source in select.select([client, database], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data or (broken and source is database):
                        return
                    broken = broken or (self.server.breaks and b"COMMIT" in data)
                    (client if source is database else database).sendall(data)


@pytest.fixture
def line(postgres_url: str, tmp_path: Path) -> Iterator[Any]:
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / ".s.PGSQL.5432"), Line) as server:
        there = f"{make_url(postgres_url).query['host']}/.s.PGSQL.5432"
        vars(server).update(database=there, breaks=False, daemon_threads=True, block_on_close=False)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


def test_a_connection_lost_in_a_commit_is_not_said_to_have_changed_nothing(
    postgres_url: str, tmp_path: Path, line: Any
) -> None:
    database = Database(make_url(postgres_url).set(query={"host": str(tmp_path)}).render_as_string())
    database.commit(change(1), first_rows())
    line.breaks = True
    with pytest.raises(StorageUnavailable, match="the change may have been made"):
        database.commit(change(2))
    line.breaks = False
    assert database.newest_change("pets").revision == 2
    database.close()


def test_a_request_to_postgresql_does_not_wait_for_ever(postgres_url: str) -> None:
    database = Database(postgres_url)
    names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
    with database.engine.connect() as connection:
        found = [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names]
    database.close()
    assert found == ["10s", "30s", "1min"]


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
    with database.engine.connect() as connection:
        pragmas = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys")]
    database.close()
    assert pragmas == ["wal", 1]


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("mysql://host/db", "No module|SQLite or PostgreSQL"),
        ("nonsense", "SQLite or PostgreSQL; got nonsense"),
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
