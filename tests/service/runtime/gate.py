"""Work that goes on when a test lets it, for tests of the pool."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from service.runtime.pool import Line, Piece, Pool


class Seen:
    """What the pool tells its observer."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.reasons: list[str] = []

    def batch(self, model: str, examples: int, waited: Sequence[float], seconds: float) -> None:
        assert model in ("line", "")  # "" for work of no network
        assert min([seconds, *waited]) >= 0
        self.batches.append(examples)

    def dropped(self, reason: str) -> None:
        self.reasons.append(reason)


class Gate(Line):
    """Gives back what it gets, batch by batch, as soon as it is let."""

    def __init__(self, *, most: int = 8, is_open: bool = False) -> None:
        super().__init__("line", most=most)
        self.batches: list[list[Any]] = []
        self.may_go = threading.Semaphore(10**6 if is_open else 0)
        self.busy = threading.Semaphore(0)

    def do(self, payloads: Sequence[Any]) -> Sequence[Any]:
        self.busy.release()
        assert self.may_go.acquire(timeout=30)
        self.batches.append(list(payloads))
        if "defect" in payloads:
            raise RuntimeError("a defect")
        return [ValueError(each) if str(each).startswith("bad") else each for each in payloads]

    def open(self) -> None:
        self.may_go.release(10**6)


async def stays() -> None:
    await asyncio.Event().wait()


Made = Callable[..., tuple[Pool, Seen]]


def asking(
    pool: Pool,
    line: Line,
    *payloads: Any,
    seconds: float = 30.0,
    gone: Callable[[], Awaitable[None]] = stays,
    **options: Any,
) -> asyncio.Task[list[Any]]:
    pieces = [Piece(each, **options) for each in payloads]
    return asyncio.get_running_loop().create_task(pool.ask(line, pieces, seconds=seconds, gone=gone))


async def taken(line: Gate, times: int = 1) -> None:
    """Until threads have begun so many batches."""
    for _ in range(times):
        assert await asyncio.to_thread(line.busy.acquire, timeout=30)
