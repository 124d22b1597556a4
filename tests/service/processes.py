"""The service as processes of its own, with real workers, to be killed and started again."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
# For every request to a process: httpx.get and its like read all certificates anew, which takes longer than the answer.
web = httpx.Client(verify=False, trust_env=False, timeout=90, limits=httpx.Limits(max_keepalive_connections=0))


class Process:
    """One server with its worker, in a process group of its own."""

    def __init__(self, folder: Path, *bundles: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = {"state_dir": folder / "state", "port": 0} | settings
        self._environment = os.environ | {f"EQUIPOISE_{name.upper()}": str(value) for name, value in chosen.items()}
        self._log = folder / "log"
        self._command = [sys.executable, "-m", "service", "serve", *map(str, bundles)]
        self.url = ""
        self.start()

    def start(self) -> None:
        with self._log.open("w") as log:
            self.popen = subprocess.Popen(
                self._command,
                env=self._environment | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.url = eventually(self._address, seconds=60)

    def _address(self) -> str | None:
        if self.popen.poll() is not None:
            raise AssertionError(self.log)
        found = re.search(r"http://127\.0\.0\.1:\d+", self.log)
        if found is None:
            return None
        try:
            web.get(f"{found[0]}/v2/health/live", timeout=1)
        except httpx.TransportError:
            return None
        return found[0]

    @property
    def log(self) -> str:
        return self._log.read_text()

    def kill(self) -> None:
        """SIGKILL to the server and its worker: nothing of theirs runs any more."""
        os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(timeout=30)
            except subprocess.TimeoutExpired:
                self.kill()


def eventually(look: Callable[[], Any], *, seconds: float) -> Any:
    """What `look` gives as soon as it is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{look} did not become true in {seconds} s"
        time.sleep(0.02)
