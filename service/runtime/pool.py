"""The threads that do the work of requests, and the one bounded queue before them.

A free thread takes its share of what waits, ceil(waiting / threads), and never waits for more to come: on a CPU a batch
costs as much as its examples one by one, so a wait would buy nothing, and a thread that took everything would leave the
others idle. It knows neither networks nor HTTP.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil
from queue import SimpleQueue
from time import perf_counter
from typing import Any, Protocol, TypeVar

from models.calibration.errors import CalibrationError
from service.errors import ClientGone, DeadlinePassed, QueueFull

T = TypeVar("T")

PATIENCE_SECONDS = 0.1  # a request that waits longer is watched: its client may leave, its deadline may pass
MEMORY = 0.1  # weight of the newest batch in the running mean


class Line(ABC):
    """Work of one kind: what waits in it may be done together.

    Args: name, for metrics; most, examples together.
    """

    def __init__(self, name: str, *, most: int) -> None:
        self.name = name
        self.most = most
        self.waiting: deque[Piece] = deque()  # this and the next belong to the pool, under its lock
        self.examples = 0
        self.seconds_each = 0.0  # an example, by a running mean

    @abstractmethod
    def do(self, payloads: Sequence[Any]) -> Sequence[Any]:
        """A result for each; an exception among them is raised to the one who asked, and to nobody else."""


class Observer(Protocol):
    """Who hears what the threads do."""

    def batch(self, model: str, examples: int, waited: Sequence[float], seconds: float) -> None: ...

    def dropped(self, reason: str) -> None: ...


@dataclass(slots=True, eq=False)
class Piece:
    """Args: examples, how many `payload` holds; alone, not to be done together with others."""

    payload: Any
    examples: int = 1
    alone: bool = False
    asked: _Asked = field(init=False, repr=False)  # this and the next two belong to the pool
    index: int = field(init=False)
    cost: float = field(init=False)  # expected, in seconds of a thread

    def share_of(self, line: Line) -> int:
        """Of a batch, in examples; the whole of it for what is done alone."""
        return line.most if self.alone else self.examples


@dataclass(slots=True, eq=False)
class _Asked:
    """One request: its pieces may be done by several threads."""

    line: Line
    gone: Callable[[], Awaitable[None]]
    future: asyncio.Future[list[Any]]
    results: list[Any]
    left: int
    at: float
    seconds: float

    def deliver(self, index: int, result: Any) -> None:
        """On the event loop."""
        if self.future.done():
            return
        if isinstance(result, Exception):
            if isinstance(result, CalibrationError):  # its frames hold the body, in a cycle that is seldom collected
                result.__traceback__ = result.__cause__ = result.__context__ = None
            self.future.set_exception(RuntimeError(repr(result)) if isinstance(result, StopIteration) else result)
            return
        self.results[index] = result
        self.left -= 1
        if self.left == 0:
            self.future.set_result(self.results)


class Pool:
    """Args: threads, that work at the same time; most_waiting, pieces that wait, beyond which requests are refused."""

    def __init__(self, threads: int, *, most_waiting: int, observer: Observer) -> None:
        self._threads = threads
        self._most_waiting = most_waiting
        self._observer = observer
        self._lock = threading.Lock()  # guards the next four and the lines; held for a few steps only
        self._waiting = 0  # pieces
        self._cost = 0.0  # expected, of all that waits
        self._turns: dict[Line, None] = {}  # the lines in which something waits, whose turn is next first
        self._idle = 0  # threads that nobody has woken yet
        self._woken: SimpleQueue[bool] = SimpleQueue()  # true for work, false for the end
        self._waking: asyncio.AbstractEventLoop | None = None  # that will wake threads in its next turn
        self._unwatched: dict[_Asked, None] = {}  # who came first in front
        self._looking: set[asyncio.AbstractEventLoop] = set()  # that will look whom of them to watch
        self._started: list[threading.Thread] = []
        self._calls = _Calls("", most=1)

    @property
    def waiting(self) -> int:
        """Pieces of requests that no thread has taken yet."""
        return self._waiting

    async def ask(
        self, line: Line, pieces: Sequence[Piece], *, seconds: float, gone: Callable[[], Awaitable[None]]
    ) -> list[Any]:
        """The results of the pieces, in their order.

        Args: seconds, after which the answer is of no use; gone, ends when the client has left.
        Raises: QueueFull, DeadlinePassed, ClientGone, and what the work raises.
        """
        loop = asyncio.get_running_loop()
        results: list[Any] = [None] * len(pieces)
        asked = _Asked(line, gone, loop.create_future(), results, len(pieces), perf_counter(), seconds)
        self._put(asked, pieces)
        if self._waking is not loop:  # once a turn of the loop, so that what came in one turn is taken together
            self._waking = loop
            loop.call_soon(self._wake)
        self._unwatched[asked] = None
        if seconds < 2 * PATIENCE_SECONDS:  # its deadline may pass before somebody looks
            loop.call_later(seconds, self._watch, asked)
        elif loop not in self._looking:
            self._looking.add(loop)
            loop.call_later(PATIENCE_SECONDS, self._look, loop)
        try:
            return await asked.future
        finally:
            self._unwatched.pop(asked, None)
            # Or an error that they hold, and this frame, would hold each other and the request's body.
            del asked, pieces

    async def call(self, work: Callable[[], T], *, seconds: float, gone: Callable[[], Awaitable[None]]) -> T:
        """What `work` gives, which would hold the event loop for too long. Raises: as `ask`."""
        results: list[T] = await self.ask(self._calls, [Piece(work)], seconds=seconds, gone=gone)
        return results[0]

    def close(self) -> None:
        """End the threads when they have done what waits."""
        for _ in self._started:
            self._woken.put(False)
        for thread in self._started:
            thread.join()
        self._started, self._idle = [], 0

    def _put(self, asked: _Asked, pieces: Sequence[Piece]) -> None:
        line = asked.line
        with self._lock:
            if not self._started:
                self._start()
            if self._waiting:
                self._check_room(asked.seconds)
            for index, piece in enumerate(pieces):
                piece.asked, piece.index, piece.cost = asked, index, piece.examples * line.seconds_each
                line.waiting.append(piece)
                line.examples += piece.examples
                self._cost += piece.cost
            self._turns.setdefault(line)
            self._waiting += len(pieces)

    def _wake(self) -> None:
        """As many idle threads as there is work for; one that is busy looks by itself when it is done."""
        self._waking = None
        with self._lock:
            count = min(self._idle, self._waiting)
            self._idle -= count
        for _ in range(count):
            self._woken.put(True)

    def _check_room(self, seconds: float) -> None:
        expected = self._cost / self._threads
        if self._waiting < self._most_waiting and expected <= seconds:
            return
        self._observer.dropped("full")
        raise QueueFull(
            f"a request is taken while fewer than {self._most_waiting} wait and it can be answered within "
            f"{seconds:.2g} s; {self._waiting} wait now, for about {expected:.2g} s. Try again in a moment.",
            retry_after=ceil(expected),
        )

    def _start(self) -> None:
        self._started = [
            threading.Thread(target=self._run, name=f"model-{number}", daemon=True) for number in range(self._threads)
        ]
        for thread in self._started:
            thread.start()

    def _run(self) -> None:
        goes_on = True
        while True:
            line, taken = self._take()
            if line is not None:
                self._do(line, taken)
            elif goes_on:
                goes_on = self._woken.get()
            else:
                return

    def _take(self) -> tuple[Line | None, list[Piece]]:
        """A thread's share of the line whose turn it is; None where nothing waits, and the thread counts as idle."""
        with self._lock:
            while self._turns:
                line = next(iter(self._turns))
                del self._turns[line]
                taken = self._share_of(line)  # nothing, where nobody waits for it any more
                if line.waiting:
                    self._turns[line] = None  # behind the others
                if taken:
                    return line, taken
            self._idle += 1
            return None, []

    def _share_of(self, line: Line) -> list[Piece]:
        taken: list[Piece] = []
        room = min(line.most, ceil(line.examples / self._threads))
        while line.waiting and (not taken or line.waiting[0].share_of(line) <= room):
            each = line.waiting.popleft()
            self._forget(line, each)
            if not each.asked.future.done():  # or nobody waits: the client left, or another piece failed
                taken.append(each)
                room -= each.share_of(line)
        return taken

    def _forget(self, line: Line, each: Piece) -> None:
        line.examples -= each.examples
        self._waiting -= 1
        self._cost = self._cost - each.cost if self._waiting else 0.0  # rounding errors do not add up

    def _do(self, line: Line, taken: Sequence[Piece]) -> None:
        started = perf_counter()
        try:
            results = line.do([each.payload for each in taken])
        except Exception as error:  # each who asked gets it, and the thread goes on
            results = [error] * len(taken)
        except BaseException as error:  # such as a panic of a library; it must end neither the thread nor the loop
            results = [RuntimeError(repr(error))] * len(taken)
        seconds = perf_counter() - started
        examples = sum(each.examples for each in taken)
        line.seconds_each += MEMORY * (seconds / examples - line.seconds_each)
        self._observer.batch(line.name, examples, [started - each.asked.at for each in taken], seconds)
        _deliver(taken, results)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all, and none for each: most are answered before it."""
        before = perf_counter() - PATIENCE_SECONDS
        own = [asked for asked in list(self._unwatched) if asked.future.get_loop() is loop]
        for asked in own:
            if asked.at <= before:
                self._watch(asked)
        if own:
            loop.call_later(PATIENCE_SECONDS / 2, self._look, loop)
        else:
            self._looking.discard(loop)

    def _watch(self, asked: _Asked) -> None:
        self._unwatched.pop(asked, None)
        if not asked.future.done():
            watcher = asyncio.ensure_future(self._watched(asked))
            asked.future.add_done_callback(lambda _: watcher.cancel())

    async def _watched(self, asked: _Asked) -> None:
        error: Exception
        try:
            async with asyncio.timeout(max(0.0, asked.at + asked.seconds - perf_counter())):
                await asked.gone()
            reason, error = "gone", ClientGone("the client left before its answer was there.")
        except TimeoutError:
            reason, error = "deadline", DeadlinePassed()
        if not asked.future.done():
            self._drop(asked)
            self._observer.dropped(reason)
            asked.future.set_exception(error)

    def _drop(self, asked: _Asked) -> None:
        """Make room at once for others."""
        line = asked.line
        with self._lock:
            for each in [each for each in line.waiting if each.asked is asked]:
                line.waiting.remove(each)
                self._forget(line, each)


class _Calls(Line):
    """Whatever is heavy and of no network."""

    def do(self, payloads: Sequence[Callable[[], Any]]) -> list[Any]:
        return [work() for work in payloads]


def _deliver(taken: Sequence[Piece], results: Sequence[Any]) -> None:
    """One message to the event loop for the whole batch; usually there is one loop."""
    for loop in {each.asked.future.get_loop() for each in taken}:
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(_deliver_all, loop, taken, results)


def _deliver_all(loop: asyncio.AbstractEventLoop, taken: Sequence[Piece], results: Sequence[Any]) -> None:
    for each, result in zip(taken, results, strict=True):
        if each.asked.future.get_loop() is loop:
            each.asked.deliver(each.index, result)
