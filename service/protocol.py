"""HTTP as uvicorn speaks it, and what it can do for a route beyond the messages of ASGI.

A body that is there by the time a route looks needs no message, and an answer that is whole needs not two: uvicorn
writes its head and its body one after the other, which costs two calls of the operating system and two packets, and
wakes the client twice. Routes reach past the messages by `direct_of`.
"""

import asyncio
from collections.abc import Sequence

from starlette.types import Receive
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 256 << 10  # of a request's first line and headers; inline priors of some thousand classes fit


class DirectProtocol(HttpToolsProtocol):
    """For `uvicorn.Config(http=...)`. A head that is longer than anything sensible ends the connection."""

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self.send_400_response("The head of the request is too long.")

    def shutdown(self) -> None:
        """Behind an answer that waits for the end of this turn; one that comes later says that it is the last."""
        if self.cycle is not None and self.cycle.response_complete:
            self.loop.call_soon(super().shutdown)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        """Behind the answers to what came before."""
        self.loop.call_soon(self._refuse, msg)

    def _refuse(self, msg: str) -> None:
        if not self.transport.is_closing():  # or nobody is there to read it
            super().send_400_response(msg)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()


class Direct:
    """One request and its answer, without messages. Where it cannot serve it says so, and the messages do."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def body(self) -> bytes | None:
        """The whole body, None if it is not there yet."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
        """Send an answer of status 200 in one packet; False where messages have to.

        Args: headers in lower case, with the length of the body, and none that came from outside unchecked.
        """
        cycle = self._cycle
        if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
            return False
        cycle.response_started = cycle.response_complete = True
        lines = [b"%b: %b\r\n" % each for each in (*cycle.default_headers, *headers)]
        end = b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n"
        packet = b"".join((STATUS_LINE[200], *lines, end, body))
        if cycle.keep_alive:
            # Behind all that this turn of the loop has to do: each packet wakes a client, which takes a processor.
            asyncio.get_running_loop().call_soon(_write, cycle.transport, packet)
        else:
            _write(cycle.transport, packet)
            cycle.transport.close()
        cycle.message_event.set()  # for whoever waits for the client to leave
        cycle.on_response()
        return True


def _write(transport: asyncio.Transport, packet: bytes) -> None:
    if not transport.is_closing():  # as above
        transport.write(packet)


def direct_of(receive: Receive) -> Direct | None:
    """What uvicorn can do for this request, whose `receive` is a method of its own; None under another server.

    Not by an extension in the scope: uvicorn's object holds the scope, and a cycle a request is garbage whose
    collection stops everything for a tenth of a second.
    """
    cycle = getattr(receive, "__self__", None)
    return Direct(cycle) if isinstance(cycle, RequestResponseCycle) else None
