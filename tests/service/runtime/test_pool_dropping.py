"""Who is refused, and what is dropped before it costs anything."""

import asyncio
import gc
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import pytest

from models.calibration.errors import InvalidImage
from service.errors import ClientGone, DeadlinePassed, QueueFull
from service.runtime.pool import PATIENCE_SECONDS, Line, Piece
from tests.service.processes import eventually
from tests.service.runtime.gate import Gate, Made, asking, stays, taken


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
        with pytest.raises(DeadlinePassed):
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


def test_a_request_that_is_watched_and_then_answered_leaves_nothing_behind(make_pool: Made) -> None:
    pool, seen = make_pool(threads=1)
    line = Gate()

    async def run() -> set[asyncio.Task[Any]]:
        waiting = asking(pool, line, "long")
        await asyncio.sleep(2 * PATIENCE_SECONDS)
        line.open()
        assert await waiting == ["long"]
        await asking(pool, line, "short")
        await asyncio.sleep(2 * PATIENCE_SECONDS)
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(run()) == set()
    assert seen.reasons == []


def test_what_a_failed_request_sent_is_let_go_at_once(make_pool: Made) -> None:
    pool, _ = make_pool(threads=1)

    class Sent:
        pass

    class Refusing(Line):
        def do(self, payloads: Sequence[Any]) -> Sequence[Any]:
            try:
                raise InvalidImage(f"{len(payloads)} that are no images")
            except InvalidImage as error:
                return [error]

    line = Refusing("line", most=8)

    async def run() -> weakref.ref[Sent]:
        sent = Sent()
        known = weakref.ref(sent)
        with suppress(InvalidImage):  # and not pytest.raises, which keeps the error with all its frames
            await pool.ask(line, [Piece(sent)], seconds=30, gone=stays)
        return known

    gc.collect()
    gc.disable()  # as good as: a service collects seldom
    try:
        known = asyncio.run(run())
        eventually(lambda: known() is None, seconds=10)  # the thread has just handed it over
    finally:
        gc.enable()
