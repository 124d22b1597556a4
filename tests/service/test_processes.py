"""Several processes on one PostgreSQL: what one changes is live in the other, also under load, also after an outage."""

import signal
import time
from collections.abc import Iterator
from os import kill

import httpx
import numpy as np
import pytest

from tests import needs
from tests.service.bundles import CLASSES, Made, write_bundle
from tests.service.load import Load, calibrations_of, check, degraded, laws_of, live, upload
from tests.service.processes import Process, eventually

UPLOADS = 24


@pytest.fixture(scope="module")
def postgres() -> Iterator[needs.Postgres]:
    """A server of these tests' own, which they may stop."""
    with needs.throw_away_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def pair(
    tmp_path_factory: pytest.TempPathFactory, pets: Made, postgres: needs.Postgres
) -> Iterator[tuple[Process, Process]]:
    """Two servers with their workers on one database and one artifact store; one outage after the other."""
    folder = tmp_path_factory.mktemp("pair")
    shared = {
        "database_url": postgres.create("equipoise"),
        "artifacts_url": (folder / "artifacts").as_uri(),
        "job_wait_seconds": 60,
    }
    first = Process(folder / "first", pets.path, **shared)
    second = Process(folder / "second", **shared)
    yield first, second
    first.stop()
    second.stop()


def test_uploads_through_either_process_are_live_in_both_and_no_answer_is_mixed(
    pair: tuple[Process, Process], pets: Made, pixels: np.ndarray
) -> None:
    with Load([process.url for process in pair], pixels) as load:
        for number in range(UPLOADS):
            here, there = pair[number % 2], pair[1 - number % 2]
            done = upload(here.url, number)
            assert done.status_code == 201, done.text
            active = done.json()["active"]
            expected = (active["calibration"]["id"], active["prior"])
            assert live(here.url) == expected  # whoever was told so sees it at once
            eventually(lambda there=there, expected=expected: live(there.url) == expected, seconds=20)
    assert load.refused == []
    seen = {(answer["calibration"]["id"], answer["prior"]["name"]) for _, answer in load.answers}
    assert len(seen) > UPLOADS / 2  # the load did run across the changes
    check(load, pets, calibrations_of(pair[0].url), laws_of(pair[0].url, CLASSES))


@pytest.mark.parametrize(("frozen", "first"), [(False, 100), (True, 200)], ids=["stopped", "frozen"])
def test_scoring_goes_on_while_the_database_is_gone_and_all_recovers_by_itself(
    pair: tuple[Process, Process], postgres: needs.Postgres, pets: Made, pixels: np.ndarray, frozen: bool, first: int
) -> None:
    assert upload(pair[0].url, first).status_code == 201
    held = postgres.processes() if frozen else []
    with Load([process.url for process in pair], pixels) as load:
        if frozen:
            for process in held:
                kill(process, signal.SIGSTOP)
        else:
            postgres.stop()
        eventually(lambda: all(degraded(process.url) for process in pair), seconds=20)
        before = len(load.answers)
        refused = upload(pair[1].url, first + 1)
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/storage-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        time.sleep(2)
        assert len(load.answers) > before
        if frozen:
            for process in reversed(held):
                kill(process, signal.SIGCONT)
        else:
            postgres.start()
        eventually(lambda: not any(degraded(process.url) for process in pair), seconds=40)
        done = eventually(lambda: accepted(upload(pair[1].url, first + 2)), seconds=40)
        expected = (done["active"]["calibration"]["id"], done["active"]["prior"])
        eventually(lambda: live(pair[0].url) == expected, seconds=20)
    assert load.refused == []
    check(load, pets, calibrations_of(pair[0].url), laws_of(pair[0].url, CLASSES))


def accepted(answer: httpx.Response) -> dict | None:
    return answer.json() if answer.status_code == 201 else None
