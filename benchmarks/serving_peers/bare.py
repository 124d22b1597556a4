"""Bare onnxruntime: `python bare.py MODEL` reads one JSON object a line and answers each with one.

{"callers": 2, "batch": 8, "seconds": 2.0} -> {"images_per_second": ..., "p50_ms": ..., "cpu_seconds": ...}
"""

import json
import sys
import threading
import time
from typing import Any

import numpy as np
from graph import SHAPE, session


def main() -> None:
    network = session(sys.argv[1])
    run(network, callers=1, batch=1, seconds=0.2)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(run(network, **json.loads(line))), flush=True)


def run(network: Any, *, callers: int, batch: int, seconds: float) -> dict[str, float]:
    """So many threads call the session again and again with so many images each."""
    images = np.random.default_rng(0).integers(0, 256, size=(batch, *SHAPE), dtype=np.uint8)
    took: list[list[float]] = [[] for _ in range(callers)]
    begun = time.perf_counter()

    def call(mine: list[float]) -> None:
        before = begun
        while before < begun + seconds:
            network.run(["scores"], {"images": images})
            after = time.perf_counter()
            mine.append(after - before)
            before = after

    threads = [threading.Thread(target=call, args=(mine,)) for mine in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted, all_calls = time.perf_counter() - begun, [each for mine in took for each in mine]
    p50, p99 = np.quantile(all_calls, (0.5, 0.99)) * 1e3
    return {"images_per_second": len(all_calls) * batch / lasted, "p50_ms": float(p50), "p99_ms": float(p99)}


if __name__ == "__main__":
    main()
