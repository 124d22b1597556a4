"""Two processes on one PostgreSQL: how soon a change is live everywhere, and what an outage of the database costs.

    python benchmarks/service_state.py [--uploads 200] [--outage-seconds 30]

Writes benchmarks/results/service_state.json. Every answer that the clients get meanwhile is held against the formula in
NumPy, with the calibration and the prior that it names. PostgreSQL must be installed; the model is a small linear
graph, so that what is timed is the service.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from tests import needs
from tests.service.bundles import CLASSES, HEIGHT, WIDTH, Made, write_bundle
from tests.service.load import Load, calibrations_of, check, degraded, laws_of, live, upload
from tests.service.processes import Process, eventually

RESULTS = Path(__file__).parent / "results" / "service_state.json"
JOB_WAIT_SECONDS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--outage-seconds", type=float, default=30.0)
    asked = parser.parse_args()
    pixels = np.random.default_rng(7).integers(0, 256, size=(1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder, needs.throw_away_postgres() as postgres:
        made = write_bundle(Path(folder) / "bundle")
        pair = servers(Path(folder), made, postgres.create("equipoise"))
        try:
            results = {
                "alternating uploads": alternating(pair, made, pixels, asked.uploads),
                "database stopped": outage(pair, made, pixels, postgres, asked.outage_seconds),
            }
        finally:
            for process in pair:
                process.stop()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def servers(folder: Path, made: Made, database_url: str) -> list[Process]:
    shared = {
        "database_url": database_url,
        "artifacts_url": (folder / "artifacts").as_uri(),
        "job_wait_seconds": JOB_WAIT_SECONDS,
    }
    return [Process(folder / "first", made.path, **shared), Process(folder / "second", **shared)]


def alternating(pair: list[Process], made: Made, pixels: np.ndarray, uploads: int) -> dict[str, Any]:
    """Every second upload through the other process; how long each takes, and until the other process answers by it."""
    took, until_live = [], []
    with Load([process.url for process in pair], pixels) as load:
        for number in range(uploads):
            here, there = pair[number % 2], pair[1 - number % 2]
            begun = time.monotonic()
            expected = changed(here, number)
            done = time.monotonic()
            assert live(here.url) == expected, "the process that acknowledged a change must answer by it"
            eventually(lambda there=there, expected=expected: live(there.url) == expected, seconds=30)
            took.append(done - begun)
            until_live.append(time.monotonic() - done)
    assert not load.refused, load.refused[:3]
    check(load, made, calibrations_of(pair[0].url), laws_of(pair[0].url, CLASSES))
    return {
        "uploads": uploads,
        "seconds an upload takes": spread(took),
        "seconds until it is live in the other process": spread(until_live),
        "answers meanwhile, all equal to the formula": len(load.answers),
        "answers refused": len(load.refused),
    }


def outage(
    pair: list[Process], made: Made, pixels: np.ndarray, postgres: needs.Postgres, seconds: float
) -> dict[str, Any]:
    """PostgreSQL stopped under load and started again; nobody touches the servers."""
    changed(pair[0], 100_000)
    with Load([process.url for process in pair], pixels) as load:
        threading.Event().wait(5)
        before = len(load.answers)
        postgres.stop()
        begun = time.monotonic()
        eventually(lambda: all(degraded(process.url) for process in pair), seconds=30)
        noticed = time.monotonic() - begun
        refused = upload(pair[0].url, 0)
        threading.Event().wait(max(0.0, seconds - (time.monotonic() - begun)))
        during = len(load.answers) - before
        lasted = time.monotonic() - begun
        postgres.start()
        back = time.monotonic()
        eventually(lambda: not any(degraded(process.url) for process in pair), seconds=60)
        recovered = time.monotonic() - back
        expected = changed(pair[1], 100_001)
        eventually(lambda: live(pair[0].url) == expected, seconds=30)
    assert not load.refused, load.refused[:3]
    check(load, made, calibrations_of(pair[0].url), laws_of(pair[0].url, CLASSES))
    return {
        "seconds stopped": round(lasted, 1),
        "answers a second before": round(before / 5),
        "answers a second meanwhile": round(during / lasted),
        "answers refused": len(load.refused),
        "an upload meanwhile": refused.status_code,
        "seconds until both say degraded": round(noticed, 2),
        "seconds until both are well again": round(recovered, 2),
    }


def changed(process: Process, number: int) -> tuple[str, str]:
    """What is live after an upload, as its answer says."""
    answer = upload(process.url, number)
    assert answer.status_code == 201, answer.text
    active = answer.json()["active"]
    return active["calibration"]["id"], active["prior"]


def spread(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(np.quantile(values, share)), 3) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1))
    }


if __name__ == "__main__":
    main()
