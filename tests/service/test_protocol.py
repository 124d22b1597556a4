"""HTTP over a real connection: answers in one piece, in order, and to the end."""

import asyncio
import logging
import re
import socket
import struct
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from service.protocol import DirectProtocol, direct_of
from tests.service.api.asking import SCORES
from tests.service.bundles import Made
from tests.service.conftest import Service, running

DATA_SEGMENTS_IN = 152  # offset in struct tcp_info of linux/tcp.h
BODY = b'{"logits": [[2.0, -1.0, 0.5, 0.0]]}'


def request(body: bytes = BODY, *more: str, path: str = SCORES) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=30)


def test_the_head_and_the_body_of_an_answer_arrive_in_one_packet(service: Service) -> None:
    with running(service.app) as url, connected(url) as client:
        for _ in range(20):
            client.sendall(request())
            head, _, body = client.recv(1 << 16).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert body.endswith(b"]}]}")
        information = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
    assert struct.unpack_from("I", information, DATA_SEGMENTS_IN) == (20,)


def test_requests_sent_ahead_are_answered_in_their_order(service: Service) -> None:
    with running(service.app) as url, connected(url) as client:
        sent = [request(BODY, f"X-Request-Id: number-{number}") for number in range(30)]
        client.sendall(b"".join(sent) + request(BODY, "X-Request-Id: last", "Connection: close"))
        came = b"".join(iter(lambda: client.recv(1 << 16), b""))
    positions = [came.index(f"x-request-id: number-{number}\r".encode()) for number in range(30)]
    assert positions == sorted(positions)
    assert came.count(b"HTTP/1.1 200") == 31
    assert came.endswith(b"]}]}")  # the last one whole, although the connection is closed after it


def test_a_client_that_waits_for_leave_to_send_its_body_gets_it(service: Service) -> None:
    with running(service.app) as url, connected(url) as client:
        for _ in range(3):
            head, _, body = request(BODY, "Expect: 100-continue").partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n")
            assert client.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
            client.sendall(body)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "body", [BODY, b'{"logits": [' + b"[2.0, -1.0, 0.5, 0.0]," * 9999 + b"[2.0, -1.0, 0.5, 0.0]]}"]
)
def test_a_body_that_comes_in_pieces_is_read_to_its_end(service: Service, body: bytes) -> None:
    whole = request(body)
    with running(service.app) as url, connected(url) as client:
        for cut in (len(whole) - len(body), len(whole) - len(body) + 1, len(whole) - 1):
            client.sendall(whole[:cut])
            time.sleep(0.05)  # long enough for what came to be read by itself
            client.sendall(whole[cut:])
            head, _, answer = client.recv(1 << 16).partition(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", head)[1])
            while len(answer) < length:
                answer += client.recv(1 << 16)
            assert answer.count(b'"class"') == body.count(b"2.0")


def test_an_old_client_is_answered_and_let_go(service: Service) -> None:
    with running(service.app) as url, connected(url) as client:
        client.sendall(request().replace(b"HTTP/1.1", b"HTTP/1.0"))
        came = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert came.startswith(b"HTTP/1.1 200")
    assert b"\r\nconnection: close\r\n" in came
    assert came.endswith(b"]}]}")


def asked_of(app: ASGIApp, state: ServerState) -> bytes:
    """What a client reads until its connection ends, of a server that is uvicorn without its own shutdown."""

    async def ask() -> bytes:
        config = uvicorn.Config(app, http=DirectProtocol, lifespan="off")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: DirectProtocol(config, state, {}), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request())
        came = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        server.close()
        return came

    return uvloop.run(ask())


def answer(receive: Receive) -> None:
    direct = direct_of(receive)
    assert direct is not None
    assert direct.answer([(b"content-length", b"5")], b"whole")


@pytest.mark.parametrize("stops_first", [True, False])
def test_an_answer_is_sent_although_the_server_stops_in_the_same_moment(stops_first: bool) -> None:
    state = ServerState()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (connection,) = state.connections
        loop = asyncio.get_running_loop()
        worked = loop.create_future()

        def happens() -> None:
            if stops_first:
                loop.call_soon(connection.shutdown)
            worked.set_result(None)  # for the rest of this function, later in the same turn

        loop.call_soon(happens)
        await worked
        answer(receive)
        if not stops_first:
            connection.shutdown()

    assert asked_of(app, state).endswith(b"\r\n\r\nwhole")


def test_an_answer_is_sent_before_what_came_after_its_request_is_refused() -> None:
    state = ServerState()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        answer(receive)
        (connection,) = state.connections
        connection.data_received(b"no HTTP\r\n\r\n")

    first, _, second = asked_of(app, state).partition(b"whole")
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize("sends", ["an answer", "the last answer", "a refusal"])
def test_what_is_sent_to_a_client_that_has_just_left_is_no_defect(sends: str, caplog: pytest.LogCaptureFixture) -> None:
    state = ServerState()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        (connection,) = state.connections
        connection.cycle.keep_alive = sends != "the last answer"
        connection.transport.close()
        if sends == "a refusal":
            connection.data_received(b"no HTTP\r\n\r\n")
        else:
            answer(receive)

    with caplog.at_level(logging.ERROR):
        assert asked_of(app, state) == b""
    assert [record.getMessage() for record in caplog.records] == []


def test_a_large_answer_is_whole(make_service: Callable[..., Service], pets: Made) -> None:
    service = make_service(pets)
    rows = b"[" + b",".join([b"[2.0, -1.0, 0.5, 0.0]"] * 15_000) + b"]"
    with running(service.app) as url, connected(url) as client:
        client.sendall(request(b'{"logits": ' + rows + b"}", "Connection: close"))
        came = b"".join(iter(lambda: client.recv(1 << 16), b""))
    head, _, body = came.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert body.count(b'"class"') == 15_000


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (request(), []),
        (request(BODY, "Connection: close"), []),
        (b"no HTTP\r\n\r\n", ["Invalid HTTP request received."]),
    ],
    ids=["request", "last request", "no HTTP"],
)
def test_a_client_that_leaves_at_once_is_no_defect(
    service: Service, caplog: pytest.LogCaptureFixture, sent: bytes, said: list[str]
) -> None:
    with caplog.at_level(logging.WARNING), running(service.app) as url:
        for _ in range(30):
            with connected(url) as client:
                client.sendall(sent)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
        with connected(url) as client:
            client.sendall(request())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
    assert {record.getMessage() for record in caplog.records} == set(said)
