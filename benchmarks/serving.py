"""Our server, two yardsticks and four serving systems on the same graph, against bare onnxruntime beside each window.

    python benchmarks/serving.py [--rounds 6] [--seconds 2] [--peers litserve mlserver bentoml ray] [--only ROW...]
    python benchmarks/serving.py --show

Needs wrk (apt-get install wrk) and a machine that does nothing else: a window counts only when bare onnxruntime was
equally fast before and after it and nobody else took much of the processors; else it is repeated, a few times. What is
measured stands in build/bench-serving/windows.jsonl at once, so that a run which was stopped goes on where it was; a
window counts for the sources that it was measured with. Peers are installed into build/bench-serving/envs. At the end
benchmarks/results/serving.json and the tables of docs/performance.md are written; with --trial they are only shown.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.serving_bundles import NULL, RESNET32, Call, bundles
from benchmarks.serving_servers import PEERS, ROOT, WORK, CannotMeasure, Server, WrongAnswer, digest, servers, versions
from benchmarks.serving_table import RESULTS, as_markdown, read_results
from benchmarks.serving_window import Bare, Running
from models.calibration.manifest import MODEL_FILE

ROW = ("server", "network", "kind", "connections", "round")
WINDOWS = WORK / "windows.jsonl"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- tables of benchmarks/serving.py -->\n", "\n<!-- end -->"
CONNECTIONS = {RESNET32: (1, 8, 32), NULL: (32,)}
ATTEMPTS = 3
MAX_CHANGE, MAX_OTHERS = 0.10, 0.05  # of bare onnxruntime around a window; of the processors, while it lasted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--peers", nargs="*", default=[], choices=PEERS)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="ROW", help="such as ours-bytes, ours-null-oip, ray-bytes"
    )
    parser.add_argument("--trial", action="store_true")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args()
    if asked.show:
        print(as_markdown(read_results()))
        return
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is not installed. On Debian and Ubuntu: apt-get install wrk")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the exits that stop the servers
    measure(asked)
    results = collected(asked.seconds)
    if not asked.trial:
        write(results)
    print(as_markdown(results))


def measure(asked: argparse.Namespace) -> None:
    found, failed = servers(asked.peers)
    for name, reason in failed.items():
        note({"server": name, "digest": digest(name), "failed": reason, "lasting": False})
    wanted = [_only(server, asked.only) for server in found.values()]
    wanted = [server for server in wanted if server.calls]
    with Bare(bundles(WORK)[RESNET32] / MODEL_FILE) as bare:
        for number in range(asked.rounds):
            first = number % max(1, len(wanted))  # another neighbour each round
            for server in wanted[first:] + wanted[:first]:
                try:
                    measure_server(server, bare, number, asked.seconds)
                except CannotMeasure as error:
                    note({"server": server.name, "digest": digest(server.name)} | failure(error))


def _only(server: Server, rows: Sequence[str]) -> Server:
    """Rows are named as in `ours-bytes`, and `ours-null-bytes` with the network that computes nothing."""
    names = {key: "-".join((server.name, *key)).replace(f"-{RESNET32}", "") for key in server.calls}
    return replace(server, calls={key: server.calls[key] for key, name in names.items() if not rows or name in rows})


def measure_server(server: Server, bare: Bare, number: int, seconds: int) -> None:
    """One start of the server, and the windows that it lacks in this round."""
    source, lacking = digest(server.name), open_rows(server, number, noted_windows(seconds))
    if not lacking:
        return
    with Running(server) as running:
        note({"server": server.name, "digest": source, "versions": versions(server)})
        for (network, kind), connections in lacking.items():
            call = server.calls[network, kind]
            running.check(call)
            running.window(call, 8, 1)  # the first second pays for caches and connections
            for each in connections:
                row = dict(zip(ROW, (server.name, network, kind, each, number), strict=True))
                for window in windows(running, call, bare, each, seconds):
                    note(row | {"digest": source, "seconds": seconds} | window)
            running.check(call)


def failure(error: CannotMeasure) -> dict[str, Any]:
    return {"failed": str(error), "lasting": isinstance(error, WrongAnswer)}


def open_rows(server: Server, number: int, found: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[int]]:
    """The connections that a row has no clean window with in this round, by network and kind of body.

    A row of which requests failed is invalid, and not measured again.
    """
    done = {tuple(each[name] for name in ROW) for each in found if each["clean"] or each["errors"]}
    rows = {
        (network, kind): [
            each for each in CONNECTIONS[network] if (server.name, network, kind, each, number) not in done
        ]
        for network, kind in server.calls
    }
    return {key: connections for key, connections in rows.items() if connections}


def windows(running: Running, call: Call, bare: Bare, connections: int, seconds: int) -> Iterator[dict[str, Any]]:
    """Windows with bare onnxruntime before and after each, until one is clean."""
    alone = {"callers": 1, "batch": 1} if connections == 1 else {"callers": 2, "batch": 8}
    before = bare.run(seconds=seconds, **alone)
    for _ in range(ATTEMPTS):
        served, after = running.window(call, connections, seconds), bare.run(seconds=seconds, **alone)
        window = compared(before, served, after)
        yield window
        if window["clean"] or window["errors"]:
            return
        before = after


def compared(before: dict[str, float], served: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """A window with its share of bare onnxruntime's images a second, and whether the machine was quiet."""
    rates = [each["images_per_second"] for each in (before, after)]
    mean = sum(rates) / 2
    others = max(each["others"] for each in (before, served, after))
    found = served | {
        "share": served["requests_per_second"] / mean,
        "alone_p50_ms": (before["p50_ms"] + after["p50_ms"]) / 2,
        "alone_change": abs(rates[1] - rates[0]) / mean,
        "others": others,
    }
    rounded = {name: float(f"{value:.4g}") for name, value in found.items()}
    return rounded | {
        "errors": int(served["errors"]),
        "clean": rounded["alone_change"] < MAX_CHANGE and others < MAX_OTHERS,
    }


def note(record: dict[str, Any]) -> None:
    """A line at once, so that a stop loses one window."""
    with WINDOWS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(record), flush=True)


def noted() -> list[dict[str, Any]]:
    """What was measured with the present sources."""
    if not WINDOWS.exists():
        return []
    records = [json.loads(line) for line in WINDOWS.read_text().splitlines()]
    present = {name: digest(name) for name in {each["server"] for each in records}}
    return [each for each in records if each["digest"] == present[each["server"]]]


def noted_windows(seconds: int) -> list[dict[str, Any]]:
    return [each for each in noted() if each.get("seconds") == seconds]


def collected(seconds: int) -> dict[str, Any]:
    found = noted_windows(seconds)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _said("git", "describe", "--always", "--dirty"),
        "machine": f"{_processor()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "wrk": _said("wrk", "-v").split()[1],
        "seconds": seconds,
        "versions": {each["server"]: each["versions"] for each in noted() if "versions" in each},
        "failed": failures(noted()),
        "windows": found,
    }


def failures(records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Why servers could not be measured: forgotten when they start later on, but a wrong answer is not."""
    found: dict[str, dict[str, Any]] = {}
    for each in records:
        if found.get(each["server"], {}).get("lasting"):
            continue
        if "failed" in each:
            found[each["server"]] = each
        elif "versions" in each:
            found.pop(each["server"], None)
    return {server: str(each["failed"]) for server, each in found.items()}


def _processor() -> str:
    lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


def _said(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def write(results: dict[str, Any]) -> None:
    """The committed results, a window a line, and the tables of the page."""
    head = {name: value for name, value in results.items() if name != "windows"}
    lines = ",\n".join(f"  {json.dumps(each)}" for each in results["windows"])
    RESULTS.write_text(json.dumps(head, indent=1)[:-2] + f',\n "windows": [\n{lines}\n ]\n}}\n')
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    DOCUMENT.write_text(before + BEGIN + as_markdown(results) + END + rest.partition(END)[2])


if __name__ == "__main__":
    main()
