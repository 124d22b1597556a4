"""A request on its way through a hot route: plain ASGI, without the steps of FastAPI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive

from models.calibration.apply import LogitArray, ScoreMap
from models.images import UInt8Array
from service.api import bodies
from service.api.bodies import Limits
from service.api.parameters import number_of
from service.errors import InvalidRequest
from service.follow import Follower
from service.runtime.batches import Files, pieces_of
from service.runtime.live import LiveModel
from service.runtime.networks import StoredNetwork
from service.runtime.pool import Pool
from service.settings import Settings

T = TypeVar("T")

LIGHT_BYTES = 32 << 10  # numbers in a body of this size are read on the event loop, in well under a millisecond
LIGHT_NUMBERS = 10_000  # and so many are written there


class Answer(NamedTuple):
    body: bytes
    media_type: bytes = b"application/json"
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """What answers hot routes."""

    follower: Follower
    pool: Pool
    settings: Settings
    limits: Limits

    @classmethod
    def of(cls, follower: Follower, pool: Pool, settings: Settings) -> Server:
        most = settings.max_body_bytes
        rule = f"a body has at most {most:,} bytes (EQUIPOISE_MAX_BODY_BYTES)"
        limits = Limits(most_bytes=most, stall_seconds=settings.stall_seconds, rule=rule)
        return cls(follower=follower, pool=pool, settings=settings, limits=limits)


@dataclass(slots=True)
class Call:
    """Args: headers with names in lower case; seconds, after which the client does not want the answer any more."""

    server: Server
    headers: Mapping[bytes, bytes]
    query: bytes
    receive: Receive
    seconds: float

    async def body(self) -> bytes:
        """Raises: BodyTooLarge, BodyStalled, ClientGone."""
        return await bodies.read(self.headers, self.receive, self.server.limits)

    def text(self, header: bytes) -> str:
        return self.headers.get(header, b"").decode("latin-1")

    def wants_within(self, seconds: float) -> None:
        """A client may have less time than the service gives, and not more."""
        self.seconds = min(self.seconds, seconds)

    async def live(self, model: str, *, version: str | None, calibration: str | None) -> LiveModel:
        """The live state, or the version or calibration that the request names. Raises: as `asked_for`."""
        follower = self.server.follower
        if version is None and calibration is None:
            return follower.registry.get(model)
        return await run_in_threadpool(asked_for, follower, model, version=version, calibration=calibration)

    async def run(self, live: LiveModel, pixels: UInt8Array | Files, scores: ScoreMap | None) -> LogitArray:
        """Scores `(N, C)`, or raw logits without a map. Raises: InvalidLogits, ModelNotLoaded,
        InvalidImage, ImageTooLarge, and what the pool raises."""
        network = live.runner
        assert isinstance(network, StoredNetwork)  # a model without one takes no pixels
        line = network.in_memory()
        if line is None:
            line = await run_in_threadpool(network.demanded)
        parts = await self.server.pool.ask(line, pieces_of(pixels, scores), seconds=self.seconds, gone=self._gone)
        found: LogitArray = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return found

    async def do(self, work: Callable[[], T], *, light: bool) -> T:
        """What `work` gives; by a model thread, where it would hold the event loop for long."""
        return work() if light else await self.server.pool.call(work, seconds=self.seconds, gone=self._gone)

    async def _gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass


async def answered(request: Request, handler: Callable[..., Awaitable[Answer]], *which: Any) -> Response:
    """A hot route as an endpoint of FastAPI, with the same answer."""
    server: Server = request.app.state.server
    query, headers = request.scope["query_string"], dict(request.scope["headers"])
    answer = await handler(Call(server, headers, query, request.receive, server.settings.deadline_seconds), *which)
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
