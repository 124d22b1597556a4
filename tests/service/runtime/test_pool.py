"""The threads and what they take: who gets which answer, and with whom together."""

import asyncio
import threading
from typing import Any

import pytest

from tests.service.runtime.gate import Gate, Made, asking, stays, taken


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


def test_a_call_runs_beside_the_event_loop(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)

    async def run() -> str:
        return await pool.call(lambda: threading.current_thread().name, seconds=30, gone=stays)

    assert asyncio.run(run()) == "model-0"


def test_a_line_that_is_always_busy_keeps_no_other_waiting(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1, most_waiting=1000)
    busy, other = Gate(is_open=True), Gate(is_open=True)

    async def run() -> int:
        rounds = 0

        async def again() -> None:
            nonlocal rounds
            while not done.is_set():
                await asking(pool, busy, "again")
                rounds += 1

        done = asyncio.Event()
        clients = [asyncio.create_task(again()) for _ in range(32)]
        while rounds < 2000:
            await asyncio.sleep(0.001)
        before = rounds
        await asking(pool, other, "once")
        done.set()
        await asyncio.gather(*clients)
        return rounds - before

    assert asyncio.run(run()) < 500  # of some thousand that would have gone first, by turns that were left over


def test_two_idle_threads_are_woken_for_two_requests_of_one_turn(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2)
    warm, line = Gate(is_open=True), Gate(most=1)

    async def run() -> None:
        await asyncio.gather(*(asking(pool, warm, n) for n in range(8)))
        await asyncio.sleep(0.05)  # both wait for work by now
        waiting = [asking(pool, line, "one"), asking(pool, line, "two")]
        await taken(line, 2)
        line.open()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_panic_of_a_library_ends_neither_the_thread_nor_the_loop(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)
    line = Gate(is_open=True)

    class Panic(BaseException):
        pass

    def panics() -> None:
        raise Panic("of a library")

    async def run() -> Any:
        with pytest.raises(RuntimeError, match="of a library"):
            await pool.call(panics, seconds=30, gone=stays)
        return await asking(pool, line, "next")

    assert asyncio.run(run()) == ["next"]


def test_closing_ends_what_waits_and_then_the_threads(make_pool: Made) -> None:
    pool, _ = make_pool(threads=2)
    line = Gate(is_open=True)
    before = threading.active_count()

    async def run() -> list[Any]:
        waiting = [asking(pool, line, n) for n in range(20)]
        await asyncio.sleep(0)
        pool.close()  # before any thread was woken for them
        return await asyncio.gather(*waiting)

    for _ in range(20):
        assert asyncio.run(run()) == [[n] for n in range(20)]
    assert threading.active_count() <= before
