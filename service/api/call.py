"""A request on its way through a hot route: plain ASGI, without the steps of FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Request, Response
from starlette.types import Receive, Scope

from models.calibration.apply import LogitArray, ScoreMap
from models.images import UInt8Array
from service.api import bodies
from service.api.bodies import Limits, Room
from service.api.parameters import number_of
from service.errors import DeadlinePassed, InvalidRequest
from service.follow import Follower
from service.protocol import direct_of
from service.runtime.batches import Files, pieces_of
from service.runtime.laws import LONGEST_KEPT, Asked, Law, law_of
from service.runtime.live import PRODUCTION, LiveModel
from service.runtime.networks import StoredNetwork
from service.runtime.pool import Pool
from service.runtime.scoring import check_amount
from service.settings import Settings

T = TypeVar("T")

LIGHT_BYTES = 32 << 10  # a body of this size is read on the event loop, in well under a millisecond
LIGHT_NUMBERS = 10_000  # and so many are written there
WAITING_THREADS = 8


class Answer(NamedTuple):
    body: bytes
    media_type: bytes = b"application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What answers hot routes.

    Args: waiting, threads for what waits for a database or for a network to load, apart from those of FastAPI.
    """

    follower: Follower
    pool: Pool
    settings: Settings
    limits: Limits
    room: Room
    waiting: ThreadPoolExecutor

    @classmethod
    def of(cls, follower: Follower, pool: Pool, settings: Settings) -> Server:
        most = settings.max_body_bytes
        rule = f"a body has at most {most:,} bytes (EQUIPOISE_MAX_BODY_BYTES)"
        return cls(
            follower=follower,
            pool=pool,
            settings=settings,
            limits=Limits(most_bytes=most, stall_seconds=settings.stall_seconds, rule=rule),
            room=Room(settings.body_memory_bytes),
            waiting=ThreadPoolExecutor(WAITING_THREADS, thread_name_prefix="waiting"),
        )

    def close(self) -> None:
        self.waiting.shutdown(wait=False, cancel_futures=True)
        self.pool.close()


class Call:
    """One request: its body, the state that it asks for, and work within the time that it has.

    The time begins with the last byte of the body. Args: headers with names in lower case.
    """

    __slots__ = ("_held", "_until", "direct", "headers", "query", "receive", "server")

    def __init__(self, server: Server, scope: Scope, receive: Receive, headers: Mapping[bytes, bytes]) -> None:
        self.server = server
        self.headers = headers
        self.query: bytes = scope["query_string"]
        self.receive = receive
        self.direct = direct_of(receive)
        self._held = 0
        self._until = 0.0

    async def body(self) -> bytes:
        """Raises: BodyTooLarge, BodyStalled, ClientGone, QueueFull."""
        data = None if self.direct is None else self.direct.body()
        if data is None:
            data = await bodies.read(self.headers, self.receive, self.server.limits, self.server.room)
        else:
            self.server.limits.check(len(data))
            self.server.room.take(len(data))
        self._held = len(data)
        self._until = perf_counter() + self.server.settings.deadline_seconds
        return data

    def close(self) -> None:
        """Give back what it holds."""
        self.server.room.give(self._held)

    def text(self, header: bytes) -> str:
        return self.headers.get(header, b"").decode("latin-1")

    def wants_within(self, seconds: float) -> None:
        """A client may have less time than the service gives, and not more."""
        self._until = min(self._until, perf_counter() + seconds)

    async def live(self, model: str, *, version: str | None, calibration: str | None) -> LiveModel:
        """The live state, or the version or calibration that the request names. Raises: as `asked_for`."""
        live = self.server.follower.registry.get(model)
        if calibration is None and version in (None, PRODUCTION, live.version):
            return live
        work = partial(asked_for, self.server.follower, model, version=version, calibration=calibration)
        return await self._wait_for(work)

    async def law(self, live: LiveModel, prior: Asked, kappa: float | None) -> Law:
        """Raises: as `law_of`."""
        if isinstance(prior, str) and len(prior) > LONGEST_KEPT:
            return await self.do(partial(law_of, live, prior, kappa), light=False)
        return law_of(live, prior, kappa)

    async def run(self, live: LiveModel, pixels: UInt8Array | Files, scores: ScoreMap | None) -> LogitArray:
        """Scores `(N, C)`, or raw logits without a map. Raises: BodyTooLarge,
        InvalidLogits, ModelNotLoaded, InvalidImage, ImageTooLarge, and what the pool raises."""
        network = live.runner
        assert isinstance(network, StoredNetwork)  # a model without one takes no pixels
        check_amount(len(pixels), live)
        line = network.in_memory()
        if line is None:
            line = await self._wait_for(network.demanded)
        parts = await self.server.pool.ask(line, pieces_of(pixels, scores), seconds=self._left(), gone=self._gone)
        found: LogitArray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found

    async def do(self, work: Callable[[], T], *, light: bool) -> T:
        """What `work` gives; by a model thread, where it would hold the event loop for long."""
        return work() if light else await self.server.pool.call(work, seconds=self._left(), gone=self._gone)

    def _left(self) -> float:
        return max(0.0, self._until - perf_counter())

    async def _wait_for(self, work: Callable[[], T]) -> T:
        """Raises: DeadlinePassed, and what `work` raises."""
        try:
            async with asyncio.timeout(self._left()):
                return await asyncio.get_running_loop().run_in_executor(self.server.waiting, work)
        except TimeoutError:
            raise DeadlinePassed from None

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def answered(request: Request, handler: Callable[..., Awaitable[Answer]], *which: Any) -> Response:
    """A hot route as an endpoint of FastAPI, with the same answer."""
    call = Call(request.app.state.server, request.scope, request.receive, dict(request.scope["headers"]))
    try:
        answer = await handler(call, *which)
    finally:
        call.close()
    more = {name.decode(): value.decode() for name, value in answer.headers}
    return Response(answer.body, media_type=answer.media_type.decode(), headers=more)


def asked_for(follower: Follower, model: str, *, version: str | None, calibration: str | None) -> LiveModel:
    """The live state, or the version or calibration that the request names.

    Raises: UnknownModel, ModelNotLoaded, UnknownVersion, UnknownCalibration, StorageUnavailable, InvalidRequest.
    """
    live = follower.registry.get(model)
    if version is None and calibration is None:
        return live
    if version is not None and calibration is not None:
        raise InvalidRequest("a calibration belongs to a version: give `version` or `calibration`, not both.")
    number = None if calibration is None else number_of(model, calibration)
    return follower.variant(live, version=version, calibration=number)
