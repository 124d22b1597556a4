"""The worker processes that a server starts: started again when they die, ended when the server ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from time import monotonic

from service.settings import Settings, environment_of

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
STOP_SECONDS = 10.0


class WorkerProcess:
    """One worker as a child process; `wake` tells it that there is work."""

    def __init__(self, settings: Settings) -> None:
        self._environment = environment_of(settings)
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # no child is started once `stop` has begun
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="worker-process", daemon=True)

    @property
    def pid(self) -> int | None:
        """Of the process that is there now; None before the first."""
        child = self._child
        return None if child is None else child.pid

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        child = self._child
        if child is not None and child.stdin is not None:
            with suppress(OSError, ValueError):  # it has just died: the next one looks by itself
                child.stdin.write(b"\n")  # a full line is one that the worker has not read yet: it wakes anyway

    def stop(self) -> None:
        """Let the worker give its job back and end."""
        with self._lock:
            self._stopping.set()
            child = self._child
        if child is not None:
            child.terminate()
            try:
                child.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
        if self._thread.ident is not None:
            self._thread.join()

    def _keep(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            began = monotonic()
            try:
                self._run_one()
            except OSError as error:
                log.warning("the worker process cannot be started: %s", error)
            if monotonic() - began > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            self._stopping.wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _run_one(self) -> None:
        """Start a worker and wait for its end. Raises: OSError."""
        command = [sys.executable, "-m", "service", "worker", "--line"]
        with self._lock:
            if self._stopping.is_set():
                return
            child = subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, env=self._environment)
            assert child.stdin is not None  # a pipe
            os.set_blocking(child.stdin.fileno(), False)
            self._child = child
        with child:  # closes its line
            code = child.wait()
        if not self._stopping.is_set():
            log.warning("the worker process ended with %s; starting it again", code)
