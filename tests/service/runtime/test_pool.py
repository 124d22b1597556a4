"""The queue and its threads, with work of their own: who waits, who is refused, and who gets which answer."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from service.errors import ClientGone, DeadlinePassed, QueueFull
from service.runtime.pool import PATIENCE_SECONDS, Line, Piece, Pool


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


@pytest.fixture
def make_pool() -> Iterator[Made]:
    made: list[Pool] = []

    def make(threads: int = 2, most_waiting: int = 100) -> tuple[Pool, Seen]:
        seen = Seen()
        made.append(Pool(threads, most_waiting=most_waiting, observer=seen))
        return made[-1], seen

    yield make
    for pool in made:
        pool.close()


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


def test_every_request_gets_its_own_answers_in_its_own_order(make_pool: Made) -> None:
    pool, seen = make_pool(threads=3, most_waiting=1000)
    line = Gate(is_open=True)

    async def run() -> list[list[Any]]:
        return await asyncio.gather(
            *(asking(pool, line, *((n, part) for part in range(n % 4 + 1))) for n in range(300))
        )

    assert asyncio.run(run()) == [[(n, part) for part in range(n % 4 + 1)] for n in range(300)]
    assert sum(seen.batches) == sum(n % 4 + 1 for n in range(300))
    assert pool.waiting == 0


def test_a_free_thread_takes_its_share_of_what_waits_and_leaves_the_rest_to_others(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2)
    line = Gate()

    async def run() -> None:
        first = [asking(pool, line, "a"), asking(pool, line, "b")]
        await taken(line, 2)  # both threads are busy
        rest = [asking(pool, line, n) for n in range(6)]
        await asyncio.sleep(0)
        line.may_go.release(1)
        await taken(line)  # with three of the six
        line.open()
        await asyncio.gather(*first, *rest)

    asyncio.run(run())
    assert [0, 1, 2] in line.batches


def test_no_more_is_done_at_once_than_there_are_threads(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2)
    line = Gate(most=1)

    async def run() -> None:
        waiting = [asking(pool, line, n) for n in range(6)]
        await taken(line, 2)
        assert not await asyncio.to_thread(line.busy.acquire, timeout=0.2)
        assert pool.waiting == 4
        line.open()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_no_batch_is_larger_than_the_line_takes(make_pool: Made) -> None:
    pool, seen = make_pool(threads=1)
    line = Gate(most=4)

    async def run() -> None:
        waiting = [asking(pool, line, n, examples=2) for n in range(9)]
        await taken(line)
        line.open()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert max(seen.batches) == 4
    assert sum(seen.batches) == 18


def test_what_is_to_be_done_alone_is_in_no_batch_with_others(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate()

    async def run() -> None:
        waiting = [asking(pool, line, "first")]
        await taken(line)
        waiting += [asking(pool, line, "a"), asking(pool, line, "large", alone=True), asking(pool, line, "b")]
        await asyncio.sleep(0)
        line.open()
        await asyncio.gather(*waiting)

    asyncio.run(run())
    assert line.batches == [["first"], ["a"], ["large"], ["b"]]


def test_one_failing_request_fails_alone(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate()

    async def run() -> list[Any]:
        waiting = [asking(pool, line, "first")]
        await taken(line)
        waiting += [asking(pool, line, each) for each in ("good", "bad one", "too")]
        await asyncio.sleep(0)
        line.open()
        return await asyncio.gather(*waiting, return_exceptions=True)

    first, good, bad, too = asyncio.run(run())
    assert (first, good, too) == (["first"], ["good"], ["too"])
    assert (type(bad), str(bad)) == (ValueError, "bad one")
    assert len(line.batches) == 2  # the three were one batch


def test_a_defect_reaches_those_in_the_batch_and_the_threads_go_on(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate(is_open=True)

    async def run() -> Any:
        with pytest.raises(RuntimeError, match="a defect"):
            await asking(pool, line, "defect")
        return await asking(pool, line, "next")

    assert asyncio.run(run()) == ["next"]


def test_a_full_queue_refuses_and_tells_when_to_come_again(make_pool: Made) -> None:
    pool, seen = make_pool(threads=1, most_waiting=2)
    line = Gate()

    async def run() -> QueueFull:
        accepted = [asking(pool, line, "first")]
        await taken(line)
        accepted += [asking(pool, line, "a"), asking(pool, line, "b")]
        await asyncio.sleep(0)
        assert pool.waiting == 2
        with pytest.raises(QueueFull, match="fewer than 2 wait") as refused:
            await asking(pool, line, "c")
        line.open()
        assert await asyncio.gather(*accepted) == [["first"], ["a"], ["b"]]
        assert await asking(pool, line, "later") == ["later"]
        return refused.value

    assert asyncio.run(run()).retry_after == 1
    assert seen.reasons == ["full"]


def test_an_empty_queue_takes_a_request_of_any_number_of_pieces(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2, most_waiting=2)
    line = Gate(is_open=True)

    async def run() -> list[Any]:
        return await asking(pool, line, *range(50))

    assert asyncio.run(run()) == list(range(50))


def test_a_request_that_could_not_be_answered_in_its_time_is_refused_at_once(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate()
    line.seconds_each = 5.0  # as if the last ones had taken so long

    async def run() -> QueueFull:
        accepted = [asking(pool, line, "first")]
        await taken(line)
        accepted += [asking(pool, line, n) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFull) as refused:
            await asking(pool, line, "hasty", seconds=10.0)
        patient = asking(pool, line, "patient", seconds=20.0)
        await asyncio.sleep(0)
        line.open()
        assert await patient == ["patient"]
        await asyncio.gather(*accepted)
        return refused.value

    assert asyncio.run(run()).retry_after == 15


def test_a_request_past_its_deadline_is_dropped_before_it_costs_anything(make_pool: Made) -> None:
    pool, seen = make_pool(threads=1)
    line = Gate()

    async def run() -> None:
        first = asking(pool, line, "first")
        await taken(line)
        with pytest.raises(DeadlinePassed, match=r"0\.02 s"):
            await asking(pool, line, "late", seconds=0.02)
        assert pool.waiting == 0  # it makes room at once
        line.open()
        await first
        assert await asking(pool, line, "next") == ["next"]

    asyncio.run(run())
    assert line.batches == [["first"], ["next"]]
    assert seen.reasons == ["deadline"]


def test_a_request_whose_client_left_is_dropped_before_it_costs_anything(make_pool: Made) -> None:
    pool, seen = make_pool(threads=1)
    line = Gate()

    async def run() -> None:
        first = asking(pool, line, "first")
        await taken(line)
        leaves = asyncio.Event()

        async def left() -> None:
            await leaves.wait()

        waiting = asking(pool, line, "one", "two", gone=left)
        await asyncio.sleep(2 * PATIENCE_SECONDS)
        assert not waiting.done()
        leaves.set()
        with pytest.raises(ClientGone):
            await waiting
        assert pool.waiting == 0
        line.open()
        await first
        assert await asking(pool, line, "next") == ["next"]

    asyncio.run(run())
    assert line.batches == [["first"], ["next"]]
    assert seen.reasons == ["gone"]


def test_a_request_that_is_cancelled_is_passed_over(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate()

    async def run() -> None:
        first = asking(pool, line, "first")
        await taken(line)
        cancelled = asking(pool, line, "cancelled")
        await asyncio.sleep(0)
        cancelled.cancel()
        with suppress(asyncio.CancelledError):
            await cancelled
        line.open()
        await first
        assert await asking(pool, line, "next") == ["next"]

    asyncio.run(run())
    assert line.batches == [["first"], ["next"]]


def test_a_call_runs_beside_the_event_loop(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)

    async def run() -> str:
        return await pool.call(lambda: threading.current_thread().name, seconds=30, gone=stays)

    assert asyncio.run(run()) == "model-0"


def test_closing_ends_what_waits_and_then_the_threads(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2)
    line = Gate(is_open=True)
    before = threading.active_count()

    async def run() -> list[Any]:
        waiting = [asking(pool, line, n) for n in range(20)]
        await asyncio.sleep(0)
        await asyncio.to_thread(pool.close)
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [[n] for n in range(20)]
    assert threading.active_count() <= before
