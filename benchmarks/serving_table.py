"""The tables of the serving benchmark, from the windows that `benchmarks/serving.py` has written."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

RESULTS = Path(__file__).resolve().parent / "results" / "serving.json"
TITLES = {
    "ours": "Equipoise",
    "asgi": "bare ASGI",
    "fastapi": "plain FastAPI",
    "litserve": "LitServe",
    "mlserver": "MLServer",
    "bentoml": "BentoML",
    "ray": "Ray Serve",
}
BODIES = {
    "bytes": "bytes",
    "png": "PNG",
    "oip": "OIP, binary",
    "oip-json": "OIP, flat JSON",
    "base64": "base64 in JSON",
    "logits": "logits in JSON",
}
PEERS = ("litserve", "mlserver", "bentoml", "ray")
CONNECTIONS = (1, 8, 32)

Windows = list[dict[str, Any]]


def read_results() -> dict[str, Any]:
    if not RESULTS.exists():
        return {"windows": [], "failed": {}}
    return dict(json.loads(RESULTS.read_text()))


def as_markdown(results: dict[str, Any]) -> str:
    found = _by_row(results["windows"])
    parts = [_with_the_network(found, results["failed"]), _against_peers(found), _own_cost(found)]
    return "\n\n".join(part for part in parts if part)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median and its interval of at least 95 %, between two order statistics; below 6 values lowest to highest."""
    ordered = sorted(values)
    left_out = max(0, int(binom.ppf(0.025, len(ordered), 0.5)) - 1)
    return float(np.median(ordered)), ordered[left_out], ordered[-1 - left_out]


def clean(windows: Windows) -> Windows:
    return [each for each in windows if each["clean"]]


def _by_row(windows: Windows) -> dict[tuple[str, str, str], dict[int, Windows]]:
    """Network, server and kind of body in the order of the tables, then connections."""
    found: dict[tuple[str, str, str], dict[int, Windows]] = defaultdict(lambda: defaultdict(list))
    for each in windows:
        found[each["network"], each["server"], each["kind"]][each["connections"]].append(each)
    return {row: found[row] for row in sorted(found, key=_place)}


def _place(row: tuple[str, str, str]) -> tuple[int, int]:
    return list(TITLES).index(row[1]), list(BODIES).index(row[2])


def _with_the_network(found: dict[tuple[str, str, str], dict[int, Windows]], failed: dict[str, str]) -> str:
    """Throughput and latency by connections, and throughput as a share of bare onnxruntime's."""
    heads = ["server", "body"]
    heads += [f"requests/s, {each}" for each in CONNECTIONS] + [f"p50 / p99 ms, {each}" for each in CONNECTIONS]
    heads += ["share, 8", "share, 32", "added to p50, ms, 1", "CPU us a request, 32", "clean windows"]
    lines = ["| " + " | ".join(heads) + " |", "| --- " * len(heads) + "|"]
    for (network, server, kind), windows in found.items():
        if network == "resnet32":
            lines.append(f"| {TITLES[server]} | {BODIES[kind]} | {' | '.join(_cells(windows))} |")
    for server, reason in failed.items():
        said = " ".join(reason.split()).replace("|", "/")
        lines.append(f"| {TITLES[server]} | not measured: {said} |" + " |" * (len(heads) - 2))
    return "\n".join(lines)


def _cells(windows: dict[int, Windows]) -> list[str]:
    everything = [each for some in windows.values() for each in some]
    errors = sum(each["errors"] for each in everything)
    if errors:
        return [_invalid(errors), *[""] * 10]
    quiet = {connections: clean(windows.get(connections, [])) for connections in CONNECTIONS}
    return [
        *(_median(quiet[each], "requests_per_second", ".0f") for each in CONNECTIONS),
        *(f"{_median(quiet[each], 'p50_ms', '.1f')} / {_median(quiet[each], 'p99_ms', '.1f')}" for each in CONNECTIONS),
        *(_with_interval([window["share"] for window in quiet[each]], ".2f") for each in (8, 32)),
        _with_interval([window["p50_ms"] - window["alone_p50_ms"] for window in quiet[1]], ".2f"),
        _median(quiet[32], "cpu_us", ".0f"),
        f"{len(clean(everything))}/{len(everything)}",
    ]


def _own_cost(found: dict[tuple[str, str, str], dict[int, Windows]]) -> str:
    lines = [
        "| network that computes nothing | body | requests/s, 32 | p50 / p99 ms | CPU us a request | clean windows |"
    ]
    lines.append("| --- " * 6 + "|")
    for (network, server, kind), windows in found.items():
        if network == "null":
            quiet, errors = clean(windows[32]), sum(each["errors"] for each in windows[32])
            shown = [
                _median(quiet, "requests_per_second", ".0f"),
                f"{_median(quiet, 'p50_ms', '.1f')} / {_median(quiet, 'p99_ms', '.1f')}",
                _with_interval([each["cpu_us"] for each in quiet], ".0f"),
                f"{len(quiet)}/{len(windows[32])}",
            ]
            if errors:
                shown = [_invalid(errors), *[""] * 3]
            lines.append(f"| {TITLES[server]} | {BODIES[kind]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _against_peers(found: dict[tuple[str, str, str], dict[int, Windows]]) -> str:
    """Our throughput with bytes over that of the best peer, each as its share of onnxruntime's, in pairs by round."""
    lines = []
    for connections in (8, 32):
        shares = {
            server: {each["round"]: each["share"] for each in clean(windows[connections])}
            for (network, server, kind), windows in found.items()
            if network == "resnet32" and (server in PEERS or (server, kind) == ("ours", "bytes"))
        }
        ours = shares.pop("ours", {})
        paired = {peer: theirs for peer, theirs in shares.items() if ours.keys() & theirs.keys()}
        if paired:
            best = max(paired, key=lambda peer: float(np.median(list(paired[peer].values()))))
            quotients = [ours[each] / paired[best][each] for each in ours.keys() & paired[best].keys()]
            said = f"{_with_interval(quotients, '.1f')} times the requests of {TITLES[best]}, the best peer"
            lines.append(f"With {connections} connections Equipoise answers {said}.")
    return "\n".join(lines)


def _invalid(errors: int) -> str:
    return f"invalid: {errors} requests failed"


def _median(windows: Windows, name: str, form: str) -> str:
    return format(float(np.median([each[name] for each in windows])), form) if windows else "-"


def _with_interval(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    median, low, high = interval(values)
    return f"{median:{form}} ({low:{form}} to {high:{form}})"
