"""Routes whose body FastAPI reads by itself, which it does without a bound."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

MAX_BYTES = 8 << 20  # a prior of 100,000 classes fits


class SmallBody(APIRoute):
    """A route that stops reading beyond the bound and answers 413."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await handle(Request(request.scope, _bounded(request.receive)))

        return handler


def _bounded(receive: Receive) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BYTES:  # FastAPI lets this class of error through while it reads a body, and no other
            raise HTTPException(413, f"has more than {MAX_BYTES:,} bytes")
        return message

    return counted
