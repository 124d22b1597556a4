"""Servers and windows: a program started with all its processes, wrk against it, and how quiet the machine was."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import psutil

from benchmarks.serving_bundles import Call
from benchmarks.serving_servers import PORT, PROGRAMS, CannotMeasure, Server, WrongAnswer

MARK = "BENCH_SERVING"  # in the environment of a server's processes, which need not stay children of the first
OURS_MARK = f"{os.getpid()}-"
START_SECONDS, STOP_SECONDS = 120, 20
KEY = "Authorization"
TOLERANCE = 1e-5  # of scores, float32 against float64

SCRIPT = """
local file = io.open({body}, "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('{{"requests": %d, "microseconds": %d, "p50_us": %d, "p99_us": %d, "errors": %d}}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Processes:
    """A program in a folder of its own, with every process that it starts; all of them end with it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], **options: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bench-serving-"))
        self._mark = f"{OURS_MARK}{self.folder.name}"
        self._log = (self.folder / "log").open("w+")
        self.popen = subprocess.Popen(
            command,
            cwd=self.folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment | {MARK: self._mark},
            stderr=self._log,
            start_new_session=True,
            **({"stdout": self._log} | options),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(STOP_SECONDS)
        for process in self.members():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.popen.wait()
        for stream in (self._log, self.popen.stdin, self.popen.stdout):
            if stream is not None:
                stream.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()[-600:].strip()

    def members(self) -> set[psutil.Process]:
        return marked(self._mark)


def marked(beginning: str) -> set[psutil.Process]:
    """The processes whose mark begins so, and their children: some overwrite their environment to show a title."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK, "").startswith(beginning):
                found |= {process, *process.children(recursive=True)}
    return found


def cpu_seconds(processes: set[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


class Bare(Processes):
    """Bare onnxruntime, between the windows: idle until it is asked to run."""

    def __init__(self, model: Path) -> None:
        command = [sys.executable, str(PROGRAMS / "bare.py"), str(model)]
        super().__init__(command, {}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._line() != "ready":
            reason = self.log
            self.__exit__(None, None, None)
            raise CannotMeasure(f"bare onnxruntime does not run: {reason}")

    def run(self, *, callers: int, batch: int, seconds: float) -> dict[str, float]:
        """Images a second, the quantiles of a call in milliseconds, and the share of the machine that others took."""
        assert self.popen.stdin is not None
        quiet = Quiet()
        self.popen.stdin.write(json.dumps({"callers": callers, "batch": batch, "seconds": seconds}) + "\n")
        self.popen.stdin.flush()
        return json.loads(self._line()) | {"others": quiet.others()}

    def _line(self) -> str:
        assert self.popen.stdout is not None
        return str(self.popen.stdout.readline()).strip()


class Running(Processes):
    """A server that answers.

    Raises: CannotMeasure when it ends or does not answer in two minutes.
    """

    def __init__(self, server: Server) -> None:
        port = _free_port()
        command = [each.replace(PORT, str(port)) for each in server.command]
        environment = {name: value.replace(PORT, str(port)) for name, value in server.environment.items()}
        super().__init__(command, environment)
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._wait_for(next(iter(server.calls.values())))
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _wait_for(self, call: Call) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if self.popen.poll() is not None:
                raise CannotMeasure(f"the server ended: {self.log}")
            with suppress(httpx.TransportError):
                if self._ask(call).is_success:
                    return
            if time.monotonic() > deadline:
                raise CannotMeasure(f"the server did not answer in {START_SECONDS} s: {self.log}")
            time.sleep(0.2)

    def check(self, call: Call) -> None:
        """Raises: WrongAnswer for another status than 200, other scores than bare onnxruntime's, and for an answer
        without the key where the call carries one."""
        answer = self._ask(call)
        if answer.status_code != 200:
            raise WrongAnswer(f"{call.path} answered {answer.status_code}: {answer.text[:200]}")
        difference = np.abs(np.asarray(call.scores(answer), dtype=float) - call.expected).max()
        if not difference < TOLERANCE:
            raise WrongAnswer(f"{call.path} answered with scores that differ by {difference:.2g} from the graph's")
        if KEY in call.headers:
            headers = {name: value for name, value in call.headers.items() if name != KEY}
            if self._ask(replace(call, headers=headers)).status_code != 401:
                raise WrongAnswer(f"{call.path} was answered without a key: the key is not checked")

    def _ask(self, call: Call) -> httpx.Response:
        return httpx.post(self.url + call.path, content=call.body, headers=call.headers, timeout=30)

    def window(self, call: Call, connections: int, seconds: int) -> dict[str, float]:
        """What wrk says of so many seconds, the processor time of the server a request, and the share of others."""
        script = self.folder / "wrk.lua"
        (self.folder / "body").write_bytes(call.body)
        headers = "\n".join(
            f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in call.headers.items()
        )
        script.write_text(SCRIPT.format(body=json.dumps(str(self.folder / "body")), headers=headers))
        command = [
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            self.url + call.path,
        ]
        quiet, before = Quiet(), cpu_seconds(self.members())
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        took, others = cpu_seconds(self.members()) - before, quiet.others()
        found = json.loads(shown.splitlines()[-1])
        requests = max(1, found["requests"])
        return {
            "requests_per_second": found["requests"] / found["microseconds"] * 1e6,
            "p50_ms": found["p50_us"] / 1e3,
            "p99_ms": found["p99_us"] / 1e3,
            "cpu_us": took / requests * 1e6,
            "errors": found["errors"],
            "others": others,
        }


class Quiet:
    """How much of the machine's processor time went to others than the benchmark with all that it has started."""

    def __init__(self) -> None:
        self._others, self._begun = _others_seconds(), time.monotonic()

    def others(self) -> float:
        """Share of all processors since the start, stolen time included."""
        lasted = time.monotonic() - self._begun
        return (_others_seconds() - self._others) / (lasted * (os.cpu_count() or 1))


def _others_seconds() -> float:
    here = os.times()
    return _busy_seconds() - (sum(here[:4]) + cpu_seconds(marked(OURS_MARK)))


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
