"""Request bodies within their limits, by the ASGI messages alone; and the files of a form."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import Receive

from service.errors import BodyStalled, BodyTooLarge, ClientGone, InvalidRequest, QueueFull

FORM = "multipart/form-data"
STALLED = "the body stalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Args: most_bytes of a body; stall_seconds, how long nothing may come before its end; rule, for errors."""

    most_bytes: int
    stall_seconds: float
    rule: str

    def check(self, received: int) -> None:
        """Raises: BodyTooLarge."""
        if received > self.most_bytes:
            raise BodyTooLarge(f"{self.rule}; this one is longer.")


@dataclass(slots=True)
class Room:
    """For all bodies that are in memory at the same time; on the event loop. One alone is taken whatever its size."""

    most_bytes: int
    held: int = 0

    def take(self, count: int) -> None:
        """Raises: QueueFull."""
        if self.held and self.held + count > self.most_bytes:
            raise QueueFull(
                f"the bodies of all requests have at most {self.most_bytes:,} bytes (EQUIPOISE_BODY_MEMORY_BYTES); "
                "others hold them now. Try again in a moment.",
                retry_after=1,
            )
        self.held += count

    def give(self, count: int) -> None:
        self.held -= count


async def read(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits, room: Room) -> bytes:
    """The whole body, for which room is taken; whoever gets it gives the room back when it is done with.

    Raises: BodyTooLarge, BodyStalled, ClientGone, QueueFull.
    """
    _check_announced(headers, limits)
    parts: list[bytes] = []
    received, more = 0, True
    try:
        while more:
            part, more = await _next(receive, limits, received)
            room.take(len(part))
            received += len(part)
            if not more and not parts:  # most bodies come in one piece
                return part
            parts.append(part)
        return b"".join(parts)
    except BaseException:
        room.give(received)
        raise


async def chunks(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises: BodyTooLarge, BodyStalled, ClientGone."""
    _check_announced(headers, limits)
    received, more = 0, True
    while more:
        part, more = await _next(receive, limits, received)
        received += len(part)
        yield part


def _check_announced(headers: Mapping[bytes, bytes], limits: Limits) -> None:
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > limits.most_bytes:
        raise BodyTooLarge(f"{limits.rule}; this one announces {int(announced):,}.")


async def _next(receive: Receive, limits: Limits, received: int) -> tuple[bytes, bool]:
    """What comes next, and whether more follows; counted, because a length may be missing or wrong."""
    task = asyncio.current_task()
    assert task is not None
    # What asyncio.timeout does, in a quarter of its time: this is done for every request.
    timer = asyncio.get_running_loop().call_later(limits.stall_seconds, task.cancel, STALLED)
    try:
        message = await receive()
    except asyncio.CancelledError as cancelled:
        if cancelled.args != (STALLED,) or task.uncancel():
            raise
        raise BodyStalled(
            f"a body goes on within {limits.stall_seconds:g} s (EQUIPOISE_STALL_SECONDS); after {received:,} bytes "
            "nothing more came. Send it again."
        ) from None
    finally:
        timer.cancel()
    if message["type"] == "http.disconnect":
        raise ClientGone("the client left before the body was complete.")
    part: bytes = message.get("body", b"")
    limits.check(received + len(part))
    return part, message.get("more_body", False)


async def files_of(headers: Mapping[bytes, bytes], data: bytes) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """The names of the files of a form, and the files. Raises: InvalidRequest."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(Headers(raw=list(headers.items())), whole()).parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}. Send files as curl -F image=@FILE does.") from error
    try:
        values = [value for _, value in form.multi_items()]
        files = [value for value in values if isinstance(value, UploadFile)]
        if not files or len(files) < len(values):
            raise InvalidRequest("a form holds files and nothing else; options belong into the query.")
        return tuple(file.filename or "no name" for file in files), tuple([await file.read() for file in files])
    finally:
        await form.close()
