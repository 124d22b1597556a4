"""The servers of the benchmark: how each is started, in which environment, and what it is asked."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.serving_bundles import RESNET32, Call, bundles, ours, plain
from models.calibration.manifest import MODEL_FILE

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "benchmarks" / "serving_peers"
WORK = ROOT / "build" / "bench-serving"
OURS, ASGI, FASTAPI = "ours", "asgi", "fastapi"
PEERS = ("litserve", "mlserver", "bentoml", "ray")
SHOWN_VERSIONS = ("equipoise", "fastapi", "uvicorn", "uvloop", "onnxruntime", "numpy", *PEERS)
PORT = "{port}"  # in a command: replaced by the port of the start
PEER_ENVIRONMENT = {
    "PYTHONPATH": str(PROGRAMS),
    "MLSERVER_HTTP_PORT": PORT,
    "BENTOML_DO_NOT_TRACK": "True",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
}


class CannotMeasure(Exception):
    """A server that cannot be installed or started."""


class WrongAnswer(CannotMeasure):
    """An answer that is none, or has other scores than the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A program, and its calls by network and kind of body.

    Args: command, with `{port}` where the port stands, as in the environment.
    """

    name: str
    command: Sequence[str]
    calls: Mapping[tuple[str, str], Call]
    environment: Mapping[str, str] = field(default_factory=dict)


def servers(peers: Sequence[str]) -> tuple[dict[str, Server], dict[str, str]]:
    """Our server, the two yardsticks and these peers by name; and of each that cannot be installed, why."""
    made = bundles(WORK)
    found = {OURS: _ours(made)} | {
        name: _yardstick(name, PROGRAMS / program, made)
        for name, program in ((ASGI, "asgi_server.py"), (FASTAPI, "plain_fastapi.py"))
    }
    failed = {}
    for name in peers:
        try:
            found[name] = _peer(name, made[RESNET32])
        except CannotMeasure as error:
            failed[name] = str(error)
    return found, failed


def digest(name: str) -> str:
    """Of the files that decide what is measured: a window counts for the contents that it was measured with."""
    ours = [*(ROOT / "service").rglob("*.py"), *(ROOT / "models").rglob("*.py")]
    theirs = [
        path for path in PROGRAMS.rglob("*") if path.is_file() and path.name.removeprefix("plain_").startswith(name)
    ]
    shared = [PROGRAMS / "graph.py", *PROGRAMS.glob(f"{name}/*"), *(Path(__file__).parent.glob("serving_[bsw]*.py"))]
    found = hashlib.sha256()
    for path in sorted({*shared, *(ours if name == OURS else theirs)}):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def versions(server: Server) -> dict[str, str]:
    """Of the packages that matter, in the server's own environment."""
    python = Path(server.command[0]).with_name("python")
    shown = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json"], capture_output=True, text=True, check=True
    )
    installed = {each["name"].lower(): each["version"] for each in json.loads(shown.stdout)}
    return {name: installed[name] for name in SHOWN_VERSIONS if name in installed}


def _ours(made: Mapping[str, Path]) -> Server:
    """With all features on: a key, metrics, a fitted calibration, and a prior in every request."""
    key, keys_file = _key()
    calls = {
        (network, kind): replace(call, headers=call.headers | {"Authorization": f"Bearer {key}"})
        for network, folder in made.items()
        for kind, call in ours(folder, network).items()
        if (network, kind) != (RESNET32, "logits")  # no network runs for them
    }
    return Server(
        name=OURS,
        command=[sys.executable, "-m", "service", "serve", *map(str, made.values()), "--port", PORT],
        environment={"PYTHONPATH": str(ROOT), "EQUIPOISE_KEYS_FILE": str(keys_file)},
        calls=calls,
    )


def _key() -> tuple[str, Path]:
    path = WORK / "keys.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, "-m", "service", "keys", "create", "benchmark", "--scope", "score", "--file", str(path)]
    created = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if created.returncode:
        raise CannotMeasure(f"no key could be made: {created.stderr.strip()}")
    return created.stdout.strip(), path


def _yardstick(server: str, program: Path, made: Mapping[str, Path]) -> Server:
    """A program in our own environment, with the same packages."""
    named = [f"{name}={folder / MODEL_FILE}" for name, folder in made.items()]
    return Server(
        name=server,
        command=[sys.executable, str(program), PORT, *named],
        calls={(name, "bytes"): plain(f"/models/{name}/scores", folder, "bytes") for name, folder in made.items()},
    )


def _peer(name: str, bundle: Path) -> Server:
    programs, model = _installed(name), str(bundle / MODEL_FILE)
    commands = {
        "litserve": [str(programs / "python"), str(PROGRAMS / "litserve_server.py"), PORT, model],
        "mlserver": [str(programs / "mlserver"), "start", str(PROGRAMS / "mlserver")],
        "bentoml": [str(programs / "bentoml"), "serve", "bentoml_service:Scores", "--port", PORT],
        "ray": [str(programs / "python"), str(PROGRAMS / "ray_server.py"), PORT, model],
    }
    paths = {"litserve": "/predict", "mlserver": "/v2/models/resnet32/infer", "bentoml": "/scores", "ray": "/scores"}
    kind, form = ("bytes", "bytes") if name == "ray" else ("base64", name)
    return Server(
        name=name,
        command=commands[name],
        environment=PEER_ENVIRONMENT | {"MODEL": model},
        calls={(RESNET32, kind): plain(paths[name], bundle, form)},
    )


def _installed(name: str) -> Path:
    """The folder of programs of a peer's environment, made from its pinned requirements where it is not complete."""
    folder, requirements = WORK / "envs" / name, PROGRAMS / f"{name}.txt"
    mark = folder / ".complete"
    if not mark.exists() or mark.read_text() != requirements.read_text():
        print(f"installing {name} into {folder.relative_to(ROOT)}", flush=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--requirement", str(requirements)]
        for command in ([sys.executable, "-m", "venv", "--clear", str(folder)], pip):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise CannotMeasure(f"{name} cannot be installed: {(done.stderr.strip() or done.stdout)[-300:]}")
        mark.write_text(requirements.read_text())
    return folder / "bin"
