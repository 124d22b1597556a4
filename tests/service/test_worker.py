"""Workers as real processes: what they do with a job when they are killed, stopped, or lose it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from service.app import open_catalog
from service.bundle import read_bundle
from service.catalog import Catalog
from service.settings import Settings, environment_of
from service.store.database import now
from service.store.jobs import Jobs
from service.store.tables import JobRow
from service.worker import Worker
from service.worker_process import WorkerProcess
from tests.service.bundles import Made

ROOT = Path(__file__).parents[2]
TRAINING = {"role": "training", "dry_run": False, "revisions": None}
CSV = b"class,count\nant,40\nbee,10\ncat,6\ndog,9\n"

# The worker of the service with three more kinds of jobs.
PROGRAM = """
import os, signal, time
from service import work, worker
from service.settings import Settings

def ends_slowly(task):
    with task.database.writing() as session:
        task.jobs.finish(session, task.job, result={}, revision=None)
        (task.settings.state_dir / "ending").touch()
        time.sleep(1)

work.KINDS["slow"] = lambda task: time.sleep(120)
work.KINDS["deadly"] = lambda task: os.kill(os.getpid(), signal.SIGKILL)
work.KINDS["ends slowly"] = ends_slowly
worker.run(Settings(), line=False)
"""


class State:
    """The state of a service with one model, and its jobs."""

    def __init__(self, settings: Settings, made: Made) -> None:
        self.settings = settings
        self.catalog: Catalog = open_catalog(settings)
        self.catalog.register(read_bundle(made.path))
        self.jobs = Jobs(self.catalog.database)

    def submit(self, kind: str = "class-frequencies", *, target: str = "pets", file: bytes = CSV) -> int:
        job = JobRow(
            kind=kind,
            target=target,
            options=TRAINING,
            input_digest=self.catalog.keeper.put(file),
            request_digest="r",
            idempotency_key=None,
            actor=None,
            created_at=now(),
        )
        return self.jobs.submit(job).number

    def wait_for(self, number: int, *statuses: str) -> JobRow:
        wait(lambda: self.jobs.get(number).status in statuses)
        return self.jobs.get(number)

    def expire(self) -> None:
        """Let the time of every lease pass."""
        with self.catalog.database.writing() as session:
            session.execute(update(JobRow).where(JobRow.status == "running").values(lease_until=0.0))

    def revision(self, model: str = "pets") -> int:
        return self.catalog.database.newest_change(model).revision

    @contextmanager
    def worker(self, program: str = PROGRAM) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen([sys.executable, "-c", program], env=self.environment(), cwd=ROOT) as process:
            try:
                yield process
            finally:
                process.kill()

    def do_one(self) -> bool:
        """What a worker does with the next job, in this process."""
        return Worker(self.catalog, self.settings).run_one()

    def environment(self) -> dict[str, str]:
        return environment_of(self.settings)


def wait(until: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def state(request: pytest.FixtureRequest, tmp_path: Path, pets: Made) -> Iterator[State]:
    """On SQLite; on PostgreSQL too `on_both`, where a signal may come between a worker and its database."""
    url = request.getfixturevalue("postgres_url") if getattr(request, "param", "sqlite") == "postgres" else None
    opened = State(Settings(state_dir=tmp_path / "state", database_url=url), pets)
    yield opened
    opened.catalog.close()


on_both = pytest.mark.parametrize("state", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def worker_process(state: State, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    monkeypatch.chdir(ROOT)  # a child finds the package there
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # what its environment is in itself
    process = WorkerProcess(state.settings)
    process.start()
    yield process
    process.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_worker_does_the_jobs_that_come_at_low_priority_with_one_thread_for_arithmetic(
    state: State, worker_process: WorkerProcess
) -> None:
    number = state.submit()
    worker_process.wake()
    done = state.wait_for(number, "done", "failed")
    assert (done.status, done.revision, state.revision()) == ("done", 2, 2)
    pid = worker_process.pid
    assert pid is not None
    assert os.getpriority(os.PRIO_PROCESS, pid) == os.getpriority(os.PRIO_PROCESS, 0) + 10
    assert b"OMP_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


@on_both
def test_a_worker_killed_in_the_middle_of_a_job_is_started_again_and_the_job_is_done_once(
    state: State, worker_process: WorkerProcess, make_bundle: Callable[..., Made]
) -> None:
    classes, counts = [f"c{number}" for number in range(40)], range(1000, 600, -10)
    large = make_bundle("large", name="large", classes=classes, counts=counts)
    state.catalog.register(read_bundle(large.path))
    file = "".join(f"{name},{count}\n" for name, count in zip(classes, reversed(counts), strict=True))
    number = state.submit(target="large", file=file.encode())
    state.wait_for(number, "running")
    killed = worker_process.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    wait(lambda: worker_process.pid != killed)
    state.expire()
    done = state.wait_for(number, "done", "failed")
    assert (done.status, done.attempts, state.revision("large")) == ("done", 2, 2)
    assert len(state.catalog.database.calibrations("large")) == 2


def test_the_worker_ends_with_the_server_that_stops_it(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    process = WorkerProcess(state.settings)
    process.start()
    wait(lambda: process.pid)
    pid = process.pid
    assert pid is not None
    process.stop()
    assert not is_alive(pid)
    assert process.pid == pid  # and none came after it
    WorkerProcess(state.settings).stop()  # one that was never started


def test_a_worker_ends_when_the_server_that_started_it_is_gone(state: State) -> None:
    number = state.submit()
    command = [sys.executable, "-m", "service", "worker", "--line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=state.environment(), cwd=ROOT) as process:
        try:
            state.wait_for(number, "done")
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()


@on_both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_end_gives_its_job_back(state: State, number: signal.Signals) -> None:
    slow = state.submit("slow")
    with state.worker() as process:
        state.wait_for(slow, "running")
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    given_back = state.jobs.get(slow)
    assert (given_back.status, given_back.attempts, given_back.lease_owner) == ("queued", 0, None)


def test_an_idle_worker_ends_when_it_is_told_to(state: State) -> None:
    done = state.submit()
    with state.worker() as process:
        state.wait_for(done, "done")
        process.terminate()
        assert process.wait(timeout=30) == 0


@on_both
def test_a_job_that_is_just_being_committed_when_the_worker_is_told_to_end_is_done_and_not_given_back(
    state: State,
) -> None:
    number = state.submit("ends slowly")
    with state.worker() as process:
        wait((state.settings.state_dir / "ending").exists)
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert state.jobs.get(number).status == "done"


def test_cancelling_a_running_job_frees_the_worker_for_the_next(state: State) -> None:
    slow, next_one = state.submit("slow"), state.submit()
    with state.worker() as process:
        state.wait_for(slow, "running")
        assert state.jobs.cancel(slow).status == "cancelled"
        assert state.wait_for(next_one, "done", "failed").status == "done"
        assert process.poll() is None
    assert state.jobs.get(slow).status == "cancelled"
    assert state.revision() == 2


def test_a_job_that_kills_its_worker_three_times_is_given_up_and_changes_nothing(state: State) -> None:
    deadly = state.submit("deadly")
    for _ in range(2):
        assert state.jobs.claim("a worker that is heard of no more") is not None
        state.expire()
    with state.worker() as process:
        assert process.wait(timeout=60) == -signal.SIGKILL
    state.expire()
    assert state.do_one()
    failed = state.jobs.get(deadly)
    assert failed.problem is not None
    assert (failed.status, failed.problem["type"]) == ("failed", "/problems/job-failed")
    assert failed.problem["detail"].startswith("3 workers ended")
    assert state.revision() == 1


def test_a_job_with_a_defect_fails_and_the_worker_goes_on(state: State) -> None:
    unknown, good = state.submit("nothing that a worker knows"), state.submit()
    worker = Worker(state.catalog, state.settings)
    assert [worker.run_one() for _ in range(3)] == [True, True, False]
    assert state.jobs.get(good).status == "done"
    problem = state.jobs.get(unknown).problem
    assert problem is not None
    assert problem["type"] == "/problems/internal-error"


def test_a_job_on_a_model_that_was_deleted_fails_with_the_reason(state: State) -> None:
    number = state.submit(target="birds")
    assert state.do_one()
    problem = state.jobs.get(number).problem
    assert problem is not None
    assert (problem["type"], problem["status"]) == ("/problems/unknown-model", 404)
