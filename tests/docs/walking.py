"""Runs the blocks of a document as a reader would, and compares what it shows with what comes."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.service.processes import web

DOCS = Path(__file__).parents[2] / "docs"
START_SECONDS = 60.0
FIGURE = r"-?\d+\.\d+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A file to write, or a command with what it shows."""

    file: str | None = None
    command: str = ""
    shown: str = ""


def steps(document: str) -> Iterator[Step]:
    """The python blocks, each named by its first line, and the commands of the console blocks, in order."""
    for kind, block in re.findall(r"^```(python|console)\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL):
        if kind == "python":
            named = re.match(r"# (\w+\.py)\n", block)
            assert named, f"a python block begins with the name of its file:\n{block}"
            yield Step(file=named[1], shown=block)
            continue
        assert block.startswith("$ "), f"a console block begins with a command:\n{block}"
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command = re.match(r"(?:.*\\\n)*.*\n", part)
            assert command
            yield Step(command=command[0].strip(), shown=part[command.end() :])


def differs(shown: str, came: str, *, slack: float = 0.0) -> str | None:
    """Where the shown text is not what came: spaces are free, `...` is anything, figures are rounded.

    Args: slack, how far a figure may be off besides, as a share of itself, or of 1 where it is less.
    """
    literal = re.compile(rf"(\.\.\.|{FIGURE})")
    parts = literal.split(re.sub(r"\s", "", shown))
    pattern = "".join(
        re.escape(part) if index % 2 == 0 else ".*?" if part == "..." else f"({FIGURE}(?:e-?[0-9]+)?)"
        for index, part in enumerate(parts)
    )
    found = re.fullmatch(pattern, re.sub(r"\s", "", came), flags=re.DOTALL)
    if found is None:
        return f"shown:\n{shown}\ncame:\n{came}"
    figures = [part for part in parts[1::2] if part != "..."]
    far = [
        f"{figure} is {have}"
        for figure, have in zip(figures, map(float, found.groups()), strict=True)
        if abs(float(figure) - have) > _rounding(figure) + slack * max(1.0, abs(float(figure)))
    ]
    return f"{', '.join(far)} in:\n{came}" if far else None


def _rounding(figure: str) -> float:
    return 0.501 * 10.0 ** -len(figure.partition(".")[2])


class Walk:
    """A reader with an empty folder; the ports of the document stand for free ones."""

    def __init__(self, folder: Path, ports: Mapping[int, int]) -> None:
        self._folder = folder
        self._ports = {str(port): str(free) for port, free in ports.items()}
        self._servers: list[subprocess.Popen[bytes]] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("EQUIPOISE_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}"
        ours = {"PATH": path, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        ours["EQUIPOISE_JOB_WAIT_SECONDS"] = "60"  # an upload is answered with what it made on a busy machine too
        self._environment = inherited | ours

    def run(self, document: str, *, slack: float = 0.0) -> dict[str, list[str]]:
        """Take every step.

        Args: slack, as of `differs`. Returns: what came of each command, as often as it was given.
        Raises: AssertionError at the first command that fails, or shows something else.
        """
        came: dict[str, list[str]] = {}
        for step in steps(self._with_free_ports(document)):
            if step.file is not None:
                (self._folder / step.file).write_text(step.shown)
            elif re.match(r"(\w+=\S+ )*equipoise serve\b", step.command):
                self._serve(step.command)
            else:
                output = self._output(step.command)
                came.setdefault(step.command, []).append(output)
                difference = differs(step.shown, output, slack=slack) if step.shown.strip() else None
                assert difference is None, f"$ {step.command}\n{difference}"
        return came

    def close(self) -> None:
        for server in self._servers:
            server.terminate()
        for server in self._servers:
            server.wait(timeout=30)

    def _with_free_ports(self, text: str) -> str:
        for port, free in self._ports.items():
            text = re.sub(rf"\b{port}\b", free, text)
        return text

    def _output(self, command: str) -> str:
        options = {"cwd": self._folder, "env": self._environment}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, **options)
        assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _serve(self, command: str) -> None:
        named = re.search(r"--port (\d+)", command)
        port = named[1] if named else next(iter(self._ports.values()))
        log = self._folder / f"server-{port}.log"
        with log.open("wb") as file:
            options = {"cwd": self._folder, "env": self._environment | {"EQUIPOISE_PORT": port}}
            server = subprocess.Popen(["bash", "-c", f"exec env {command}"], stdout=file, stderr=file, **options)
        self._servers.append(server)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert server.poll() is None, log.read_text()
            try:
                web.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=2.0)
                return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(f"not serving after {START_SECONDS:.0f} s: {log.read_text()}")
