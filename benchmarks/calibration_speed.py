"""How long fits take and what applying a calibration costs, on simulated logits of as many classes as the field has."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from models.calibration.apply import ScoreMap
from models.calibration.choose import choose, fit_named
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, LogitSet

RESULTS = Path(__file__).resolve().parent / "results" / "calibration_speed.json"
FITS = {(20_000, 1_000): ("closed-form", "bcts", "marc", "choose"), (24_000, 8_142): ("closed-form", "marc")}
ROWS = (1, 32, 256)


def measure() -> None:
    fits = [_fit(shape, method) for shape, methods in FITS.items() for method in methods]
    applied = [_apply(rows, 1_000) for rows in ROWS]
    RESULTS.write_text(json.dumps({"fits": fits, "applied": applied}, indent=1) + "\n")
    print(as_markdown())


def as_markdown() -> str:
    found = json.loads(RESULTS.read_text())
    lines = ["| fit | items x classes | seconds | memory above the input, MB | steps |", "| --- " * 5 + "|"]
    for row in found["fits"]:
        steps = "" if row["steps"] is None else row["steps"]
        memory = f"{row['memory_mb']:.0f}"
        lines.append(
            f"| {row['method']} | {row['items']:,} x {row['classes']:,} | {row['seconds']:.1f} | {memory} | {steps} |"
        )
    lines += ["", "| scores of | microseconds | of them an unchecked softmax | share |", "| --- " * 4 + "|"]
    for row in found["applied"]:
        ours, alone = row["microseconds"], row["softmax_microseconds"]
        lines.append(f"| ({row['rows']}, {row['classes']:,}) | {ours:.1f} | {alone:.1f} | {ours / alone:.1f} |")
    return "\n".join(lines)


def simulated(items: int, classes: int) -> tuple[LogitSet, Ledger]:
    """Gaussian classes seen by a head that is too sure of itself, by another factor and offset for each class."""
    rng = np.random.default_rng(0)
    counts = np.maximum((1280 * (5 / 1280) ** (np.arange(classes) / (classes - 1))).astype(int), 1)
    centres = 0.55 * rng.normal(size=(classes, 64))
    labels = np.arange(items) % classes
    points = centres[labels] + rng.normal(size=(items, 64))
    logits = points @ centres.T
    logits += np.log(counts) - 0.5 * (centres**2).sum(axis=1)
    logits *= 1.6 * np.exp(0.2 * rng.normal(size=classes))
    logits += 0.5 * rng.normal(size=classes)
    return LogitSet(logits=logits, labels=labels, split="calibration"), Ledger.by_rule("cross-entropy", counts)


def _fit(shape: tuple[int, int], method: str) -> dict[str, Any]:
    logit_set, ledger = simulated(*shape)
    with _peak_memory() as peak:
        began = time.perf_counter()
        fitted = choose(logit_set, ledger) if method == "choose" else fit_named(method)(logit_set, ledger)
        seconds = time.perf_counter() - began
    steps = None if method == "choose" else fitted[1].iterations
    row = {"method": method, "items": shape[0], "classes": shape[1], "seconds": round(seconds, 2), "steps": steps}
    print(row, flush=True)
    return row | {"memory_mb": round(peak[0], 1)}


@contextmanager
def _peak_memory() -> Iterator[list[float]]:
    """Resident memory above that at the start, in MB: its highest value, looked at every few milliseconds."""
    start, peak, ended = _resident(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            peak[0] = max(peak[0], _resident() - start)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        ended.set()
        watcher.join()


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


def _apply(rows: int, classes: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    calibration = Calibration(
        scale=np.exp(0.2 * rng.normal(size=classes)),
        offset=rng.normal(size=classes),
        implied_prior=ClassPrior.uniform(classes),
        method="marc",
    )
    score = ScoreMap.of(calibration, ClassPrior.from_weights(rng.random(classes) + 0.01))
    logits = (5 * rng.normal(size=(rows, classes))).astype(np.float32)

    def softmax() -> None:
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        exponentials / exponentials.sum(axis=1, keepdims=True)

    return {
        "rows": rows,
        "classes": classes,
        "microseconds": round(_best(lambda: score(logits)), 1),
        "softmax_microseconds": round(_best(softmax), 1),
    }


def _best(call: Callable[[], object]) -> float:
    """Microseconds of a call: the best of 30 rounds, which other work on the machine disturbs least."""
    times = []
    for _ in range(30):
        began = time.perf_counter()
        for _ in range(50):
            call()
        times.append((time.perf_counter() - began) / 50)
    return 1e6 * min(times)
