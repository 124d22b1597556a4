"""The worker: takes jobs, one after another, and does them under a lease. `equipoise worker` runs it as a process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import NoReturn

from models.calibration.errors import CalibrationError
from service import logs
from service.catalog import Catalog
from service.errors import InternalError, JobFailed, StorageUnavailable, problem_document
from service.follow import Follower
from service.runtime.networks import Networks
from service.settings import Settings
from service.store.jobs import LEASE_SECONDS, MAX_ATTEMPTS, Jobs, LostLease
from service.store.tables import JobRow
from service.work import Task, perform

log = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # between two looks for work that nobody announced
RETRY_SECONDS = 2.0  # after the database did not answer
HOUSEKEEPING_SECONDS = 3600.0
NICENESS = 10
ENDS = {signal.SIGTERM, signal.SIGINT}


class Worker:
    """Does jobs until it is stopped. Safe beside others: a job belongs to whoever holds its lease."""

    def __init__(self, catalog: Catalog, settings: Settings) -> None:
        self.wake = threading.Event()
        self.stop = threading.Event()
        self._catalog = catalog
        self._settings = settings
        self._jobs = Jobs(catalog.database)
        networks = Networks(catalog.artifacts.get, limit_bytes=1)  # one at a time, for trying it
        self._follower = Follower(catalog, networks)
        self._owner = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._job: JobRow | None = None  # the one in hand
        self._interrupt: int | None = None  # the thread to wake with a signal when a lease is lost

    def run(self) -> None:
        """Until `stop` is set."""
        tidy_at = monotonic()
        while not self.stop.is_set():
            try:
                if self.run_one():
                    continue
                if monotonic() >= tidy_at:
                    tidy_at = monotonic() + HOUSEKEEPING_SECONDS
                    self._tidy()
            except StorageUnavailable as error:
                log.warning("%s", error)
                self.stop.wait(RETRY_SECONDS)
            self.wake.wait(IDLE_SECONDS)
            self.wake.clear()

    def run_one(self) -> bool:
        """Do the next job. Returns: whether there was one. Raises: StorageUnavailable; the job is done later."""
        job = self._jobs.claim(self._owner)
        if job is None:
            return False
        try:
            with self._held(job) as task:
                self._perform(task)
        except LostLease:
            log.info("job %s was given back, cancelled or taken over", job.id)
        return True

    def give_back(self) -> None:
        """Stop, and let another worker have the job in hand at once. From any thread but the one that runs."""
        self.stop.set()
        self.wake.set()
        job = self._job
        if job is not None:
            with suppress(LostLease, StorageUnavailable):  # then its lease runs out by itself
                self._jobs.release(job, attempts=job.attempts - 1)
            self._let_go()

    def _tidy(self) -> None:
        self._jobs.prune()
        self._catalog.keeper.sweep()

    def _perform(self, task: Task) -> None:
        job = task.job
        try:
            if job.attempts > MAX_ATTEMPTS:
                raise JobFailed(f"{MAX_ATTEMPTS} workers ended while they did this job; nothing was changed.")
            perform(task)
        except StorageUnavailable as error:
            if job.attempts < MAX_ATTEMPTS:
                self._jobs.release(job, attempts=job.attempts)
                raise
            self._jobs.fail(job, problem_document(error))
        except CalibrationError as error:
            self._jobs.fail(job, problem_document(error))
        except LostLease:
            raise
        except Exception:
            log.exception("job %s failed", job.id)
            defect = InternalError("the service failed on this job; nothing was changed. The log has the reason.")
            self._jobs.fail(job, problem_document(defect))

    @contextmanager
    def _held(self, job: JobRow) -> Iterator[Task]:
        """The job with its lease renewed from another thread, as long as the block runs."""
        share = [0.0]

        def progress(value: float) -> None:
            share[0] = value

        done = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(job, share, done), daemon=True)
        self._job = job
        renewing.start()
        try:
            if self.stop.is_set():  # it was claimed while the order to stop came
                self._jobs.release(job, attempts=job.attempts - 1)
                raise LostLease
            yield Task(
                job=job,
                jobs=self._jobs,
                catalog=self._catalog,
                follower=self._follower,
                settings=self._settings,
                progress=progress,
            )
        finally:
            self._job = None
            done.set()
            renewing.join()

    def _renew(self, job: JobRow, share: list[float], done: threading.Event) -> None:
        while not done.wait(LEASE_SECONDS / 4):
            try:
                self._jobs.renew(job, share[0])
            except StorageUnavailable:
                continue  # the lease runs out unless the database comes back soon
            except LostLease:
                self._let_go()
                return

    def _let_go(self) -> None:
        """End the work on a job that is no longer ours, where a signal can reach it; it cannot be committed anyway."""
        if self._interrupt is not None:
            signal.pthread_kill(self._interrupt, signal.SIGUSR1)

    def listen_to_signals(self) -> None:
        """Let signals end the work in hand. To be called by the main thread.

        A thread gives the job back on SIGTERM and SIGINT: a handler would run in the middle of whatever the main thread
        does, also of a commit, and could take no lock that is held there.
        """
        self._interrupt = threading.main_thread().ident
        signal.signal(signal.SIGUSR1, self._lost)
        heard, noted = socket.socketpair()
        noted.setblocking(False)
        signal.set_wakeup_fd(noted.detach())
        for number in ENDS:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._hear_signals, args=(heard,), daemon=True).start()

    def _hear_signals(self, heard: socket.socket) -> NoReturn:
        while True:
            if ENDS & set(heard.recv(64)):
                self.give_back()

    def _lost(self, number: int, frame: FrameType | None) -> None:
        if self._job is not None:
            self._job = None  # once: what clears up after the job is not interrupted
            raise LostLease


def run(settings: Settings, *, line: bool) -> None:
    """The worker of this process, in the foreground, at low priority.

    With `line`, its standard input leads to whoever started it: a byte says that there is work, and the end that the
    starter has gone. Raises: CannotStart.
    """
    from service.app import open_catalog

    logs.configure(settings.log_format)
    with suppress(OSError):
        os.nice(NICENESS)
    catalog = open_catalog(settings)
    worker = Worker(catalog, settings)
    worker.listen_to_signals()
    if line:
        threading.Thread(target=_hear, args=(worker,), daemon=True).start()
    try:
        worker.run()
    finally:
        catalog.close()


def _hear(worker: Worker) -> None:
    while os.read(sys.stdin.fileno(), 64):
        worker.wake.set()
    worker.give_back()
