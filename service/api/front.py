"""What every request passes first: its id, who sent it, its series and its line in the log; and the hot routes.

The routes that score are answered here, as plain ASGI: FastAPI, which documents them and would answer them by the same
functions, costs as much a request as everything else together.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from itertools import count
from time import perf_counter
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.access import foreign_host, scope_of
from service.api.call import Answer, Call, Server
from service.api.cross_site import check_same_site
from service.api.dependencies import KEY_NAME
from service.api.handlers import response_to
from service.api.infer_request import infer
from service.api.score_request import scores
from service.errors import ClientGone, CrossSite, QueueFull, status_of
from service.keys import Keys, KeyScope
from service.logs import request_id, request_line
from service.metrics import Metrics
from service.protocol import Direct

log = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
SANE_ID = re.compile(rb"[!-~]{1,128}")  # one of the client's that can stand in a header and in a line
FULL = status_of(QueueFull)  # counted, and not logged: a line each costs most when there is least time
LONGEST_KEPT = 200  # characters of a path


class Front:
    """The application as a server sees it.

    Args: app, for all that is not hot; keys, None where none are asked for; only_local, whether requests must name this
        machine as their host.
    """

    def __init__(self, app: ASGIApp, server: Server, metrics: Metrics, keys: Keys | None, *, only_local: bool) -> None:
        self._app = app
        self._server = server
        self._metrics = metrics
        self._keys = keys
        self._only_local = only_local
        self._prefix = secrets.token_hex(6).encode()
        self._numbers = count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        headers = dict(scope["headers"])
        answered = _Answered(send, self._id_of(headers))
        request_id.set(answered.id.decode())
        route = _route_of(scope["method"], scope["path"])
        key = ""
        call = Call(self._server, scope, receive, headers)
        try:
            key = self._admitted(scope, headers, route.needs)
            if route.handler is None:
                await self._app(scope, receive, answered.send)
            else:
                await answered.with_body(await route.handler(call, *route.which), call.direct)
        except Exception as error:
            if answered.status:  # too late for another answer; the server closes the connection
                raise
            await response_to(scope, error)(scope, receive, answered.send)
        finally:
            call.close()
            seconds = perf_counter() - started
            status = answered.status or status_of(ClientGone)  # the server gave the request up
            self._metrics.request(route.name, route.model, status, seconds)
            if route.name == "manage" or (status >= 400 and status != FULL):
                request_line(scope["method"], scope["path"], status, seconds, model=route.model, key=key)

    def _id_of(self, headers: Mapping[bytes, bytes]) -> bytes:
        given = headers.get(REQUEST_ID)
        if given is not None and SANE_ID.fullmatch(given):
            return given
        return b"%s-%d" % (self._prefix, next(self._numbers))

    def _admitted(self, scope: Scope, headers: Mapping[bytes, bytes], needs: KeyScope | None) -> str:
        """The name of the key. Raises: MissingKey, WrongScope, CrossSite."""
        check_same_site(scope["method"], headers)
        if self._only_local and foreign_host(scope["headers"]):
            host = headers[b"host"][:80].decode("latin-1")
            raise CrossSite(
                f"without keys the service answers to localhost and to addresses; got the host {host!r}. "
                "Use http://127.0.0.1, make keys, or set EQUIPOISE_ALLOW_ANONYMOUS=true."
            )
        if self._keys is None or needs is None:
            return ""
        name = scope[KEY_NAME] = self._keys.check(headers.get(b"authorization", b""), needs)
        return name


class _Answered:
    """Sends an answer with the request's id, and knows its status; 0 before it is sent."""

    def __init__(self, send: Send, number: bytes) -> None:
        self.id = number
        self.status = 0
        self._send = send

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (REQUEST_ID, self.id)]
        await self._send(message)

    async def with_body(self, answer: Answer, direct: Direct | None) -> None:
        self.status = 200
        headers = [
            (b"content-type", answer.media_type),
            (b"content-length", b"%d" % len(answer.body)),
            (REQUEST_ID, self.id),
            *answer.headers,
        ]
        if direct is not None and direct.answer(headers, answer.body):
            return
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": answer.body})


class Route(NamedTuple):
    """Args: name, for metrics; needs, the scope of the key; handler, with `which` after the call; None for FastAPI."""

    name: str
    model: str
    needs: KeyScope | None
    handler: Callable[..., Awaitable[Answer]] | None = None
    which: tuple[str, ...] = ()


def _route_of(method: str, path: str) -> Route:
    return _known_route(method, path) if len(path) <= LONGEST_KEPT else _known_route.__wrapped__(method, path)


@lru_cache(maxsize=1024)
def _known_route(method: str, path: str) -> Route:
    parts, needs = path.split("/"), scope_of(method, path)
    if method == "POST":
        match parts:
            case ["", "v1", "models", model, "scores"] if model:
                return Route("scores", model, needs, scores, (model,))
            case ["", "v2", "models", model, "infer"] if model:
                return Route("infer", model, needs, infer, (model,))
            case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
                return Route("infer", model, needs, infer, (model, version))
    if path == "/metrics":
        return Route("metrics", "", needs)
    if path.startswith("/v2/health/"):
        return Route("health", "", needs)
    return Route("manage", parts[3] if len(parts) > 3 and parts[2] == "models" else "", needs)
