"""Many requests at once: each gets its own answer, whatever happens to its neighbours and to the model."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import Settings
from tests.service.api.asking import LAW, SCORES
from tests.service.bundles import CLASSES, COUNTS, HEIGHT, WIDTH, Made, formula, write_bundle
from tests.service.conftest import Service, npy, png, running
from tests.service.load import calibrations_of, laws_of
from tests.service.processes import eventually, web
from tests.service.slow import slowly

POOL = np.random.default_rng(3).integers(0, 256, size=(12, HEIGHT, WIDTH, 3), dtype=np.uint8)
ROWS = np.random.default_rng(4).normal(size=(12, len(CLASSES))) * 3
OCTETS = {"content-type": "application/octet-stream"}
PRIORS = ("uniform", "training", "none", str(LAW))
TRAINING = {"c1": COUNTS, "c2": (4000, 100, 60, 9)}  # class counts, by calibration

some = st.integers(0, 11)
asked = st.tuples(
    st.sampled_from(["pixels", "png", "form", "json", "npy", "infer", "too few pixels", "no image", "wrong width"]),
    some,
    st.integers(1, 11),
    st.sampled_from(PRIORS),
    st.sampled_from([None, "c1", "c2"]),
)


@pytest.fixture(scope="module")
def two_calibrations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Made]]:
    """One model with two calibrations, one thread, so that batches are formed."""
    folder = tmp_path_factory.mktemp("load")
    made = write_bundle(folder / "bundle")
    service = Service(
        create_app(Settings(state_dir=folder / "state", model_threads=1, workers=0, most_waiting=1000), [made.path])
    )
    training = orjson.dumps(dict(zip(CLASSES, TRAINING["c2"], strict=True)))
    assert service.post("/v1/models/pets/class-frequencies?role=training", content=training).status_code == 201
    yield service, made
    service.close()


def request_of(kind: str, first: int, count: int, prior: str, calibration: str | None) -> tuple[str, dict[str, Any]]:
    rows = np.arange(first, first + count) % len(POOL)
    params = {"prior": prior} | ({} if calibration is None else {"calibration": calibration})
    if kind == "infer":
        tensor = {"name": "images", "shape": [count, HEIGHT, WIDTH, 3], "datatype": "UINT8"}
        document = {"parameters": params, "inputs": [tensor | {"data": POOL[rows].ravel().tolist()}]}
        return "/v2/models/pets/infer", {"json": document}
    options: dict[str, Any] = {
        "pixels": lambda: {"content": POOL[first].tobytes(), "headers": OCTETS},
        "png": lambda: {"content": png(POOL[first]), "headers": {"content-type": "image/png"}},
        "form": lambda: {"files": [("image", (f"{row}.png", png(POOL[row]))) for row in rows]},
        "json": lambda: {"json": {"logits": ROWS[rows].tolist()}},
        "npy": lambda: {"content": npy(ROWS[rows])},
        "too few pixels": lambda: {"content": POOL[first].tobytes()[:-1], "headers": OCTETS},
        "no image": lambda: {"files": [("image", ("a.png", png(POOL[first]))), ("image", ("b.png", b"none"))]},
        "wrong width": lambda: {"json": {"logits": [[1, 2, 3]]}},
    }[kind]()
    return SCORES, options | {"params": params}


def check(answer: httpx.Response, made: Made, calibrations: dict[str, dict], one: tuple[Any, ...]) -> None:
    kind, first, count, prior, calibration = one
    if kind in ("too few pixels", "no image", "wrong width"):
        assert answer.status_code == 422
        return
    assert answer.status_code == 200, answer.text
    document = answer.json()
    rows = np.arange(first, first + (1 if kind in ("pixels", "png") else count)) % len(POOL)
    raw = ROWS[rows] if kind in ("json", "npy") else made.raw(POOL[rows])
    name = calibration or "c2"
    used = calibrations[name]
    laws = {"uniform": None, "training": TRAINING[name], "none": used["implied_prior"], str(LAW): LAW}
    if kind == "infer":
        assert document["parameters"]["calibration"] == name
        got = np.array(document["outputs"][0]["data"]).reshape(-1, len(CLASSES))
    else:
        assert document["calibration"]["id"] == name
        got = np.array([result["scores"] for result in document["results"]])
    np.testing.assert_allclose(got, formula(used, raw, laws[prior]), atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(requests=st.lists(asked, min_size=10, max_size=40))
def test_answers_given_together_are_those_given_alone_and_reach_whoever_asked(
    two_calibrations: tuple[Service, Made], requests: list[tuple[Any, ...]]
) -> None:
    service, made = two_calibrations
    with_calibrations = {
        name: service.get(f"/v1/models/pets/calibrations/{name}").json()["calibration"] for name in ("c1", "c2")
    }

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            built = [request_of(*one) for one in requests]
            return await asyncio.gather(*(client.post(path, **options) for path, options in built))

    for one, answer in zip(requests, asyncio.run(ask()), strict=True):
        check(answer, made, with_calibrations, one)


def test_the_requests_of_that_test_were_answered_in_batches(two_calibrations: tuple[Service, Made]) -> None:
    service, _ = two_calibrations

    async def ask() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=service.app), base_url="http://localhost"
        ) as client:
            sent = [client.post(SCORES, content=each.tobytes(), headers=OCTETS) for each in POOL for _ in range(4)]
            assert {answer.status_code for answer in await asyncio.gather(*sent)} == {200}

    before = series(service.get("/metrics").text)
    asyncio.run(ask())
    after = series(service.get("/metrics").text)
    runs = 'equipoise_batch_size_count{model="pets"}'
    assert after[runs] - before.get(runs, 0) < 48


def series(text: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_a_form_in_several_batches_keeps_its_order_and_names_what_is_wrong(service: Service, pets: Made) -> None:
    rows = [number % len(POOL) for number in range(30)]
    files = [("image", (f"{number}.png", png(POOL[row]))) for number, row in enumerate(rows)]
    answer = service.post(SCORES, files=files, params={"prior": "uniform"})
    got = np.array([result["scores"] for result in answer.json()["results"]])
    np.testing.assert_allclose(got, pets.scores(pets.raw(POOL[rows])), atol=1e-5)
    files[19] = ("image", ("spoilt.png", b"no image"))
    assert service.post(SCORES, files=files).json()["detail"].startswith("file 20 (spoilt.png): ")


def test_versions_that_change_under_load_lose_and_mix_nothing(
    make_service: Callable[..., Service], make_bundle: Callable[..., Made]
) -> None:
    made = [make_bundle(f"version-{seed}", seed=seed) for seed in (0, 1)]
    service = make_service(made[0], made[1])
    answers: list[httpx.Response] = []
    stop = False

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop:
                answers.append(client.post(SCORES, content=POOL[0].tobytes(), headers=OCTETS))

    with running(service.app) as url, ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(ask, url) for _ in range(4)]
        for number in range(20):
            target = f"/v1/models/pets/versions/{number % 2 + 1}/activate"
            assert web.post(f"{url}{target}").status_code == 200
            if number % 5 == 0:
                body = f"ant,{900 + number}\nbee,200\ncat,50\ndog,10\n"
                role = web.post(f"{url}/v1/models/pets/class-frequencies?role=target", content=body)
                assert role.status_code == 201
        stop = True
        for each in asking:
            each.result()
        calibrations, laws = calibrations_of(url), laws_of(url, CLASSES)
    documents = [answer.json() for answer in answers if answer.status_code == 200]
    assert len(documents) == len(answers)
    assert {each["version"] for each in documents} == {"1", "2"}
    for each in documents:
        law = laws[(each["prior"]["name"], each["prior"].get("edition"))]
        raw = made[int(each["version"]) - 1].raw(POOL[:1])
        expected = formula(calibrations[each["calibration"]["id"]], raw, law)
        np.testing.assert_allclose(np.array([each["results"][0]["scores"]]), expected, atol=1e-5)


@pytest.fixture
def slow(make_service: Callable[..., Service], make_bundle: Callable[..., Made]) -> Callable[..., Service]:
    def make(**chosen: Any) -> Service:
        return make_service(make_bundle(edit_graph=slowly(12)), model_threads=1, **chosen)

    return make


def ask_many(url: str, count: int, **params: Any) -> list[httpx.Response]:
    def ask(number: int) -> httpx.Response:
        return web.post(f"{url}{SCORES}", content=POOL[number].tobytes(), headers=OCTETS, params=params, timeout=60)

    with ThreadPoolExecutor(count) as clients:
        return list(clients.map(ask, range(count)))


def test_a_full_queue_refuses_some_and_answers_the_others(slow: Callable[..., Service]) -> None:
    service = slow(most_waiting=2)
    with running(service.app) as url:
        answers = ask_many(url, 12)
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 12
        for answer in refused:
            assert (answer.status_code, answer.json()["type"]) == (429, "/problems/queue-full")
            assert int(answer.headers["retry-after"]) >= 1
        assert ask_many(url, 1)[0].status_code == 200
        known = series(web.get(f"{url}/metrics").text)
    assert known['equipoise_dropped_total{reason="full"}'] == len(refused)


def test_a_request_past_its_deadline_is_told_so_in_both_protocols(slow: Callable[..., Service]) -> None:
    service = slow()
    with running(service.app) as url:
        late = ask_many(url, 1, timeout=0.01)[0]
        tensor = {
            "name": "images",
            "shape": [1, HEIGHT, WIDTH, 3],
            "datatype": "UINT8",
            "data": POOL[0].ravel().tolist(),
        }
        infer = {"parameters": {"timeout": 10_000}, "inputs": [tensor]}
        also = web.post(f"{url}/v2/models/pets/infer", json=infer, timeout=60)
    assert (late.status_code, late.json()["type"]) == (503, "/problems/deadline-passed")
    assert late.headers["retry-after"]
    assert (also.status_code, "in the time that" in also.json()["error"]) == (503, True)


def test_a_client_may_ask_for_less_time_than_the_service_gives_and_not_for_more(slow: Callable[..., Service]) -> None:
    service = slow(deadline_seconds=0.02)
    with running(service.app) as url:
        assert ask_many(url, 1, timeout=60)[0].status_code == 503


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=60)


def head_of(length: int) -> bytes:
    lines = [f"POST {SCORES} HTTP/1.1", "Host: localhost", "Content-Type: application/octet-stream"]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def test_a_request_whose_client_left_costs_the_network_nothing(slow: Callable[..., Service]) -> None:
    service = slow()
    body = POOL[0].tobytes()
    with running(service.app) as url, connected(url) as first, connected(url) as leaving:
        first.sendall(head_of(len(body)) + body)
        eventually(lambda: service.app.state.pool._started and service.app.state.pool.waiting == 0, seconds=30)
        leaving.sendall(head_of(len(body)) + body)
        leaving.close()
        assert first.recv(1000).startswith(b"HTTP/1.1 200")
        eventually(lambda: "gone" in " ".join(dropped(url)), seconds=30)
        known = series(web.get(f"{url}/metrics").text)
    assert known['equipoise_batch_size_count{model="pets"}'] == 1


def dropped(url: str) -> list[str]:
    known = series(web.get(f"{url}/metrics").text)
    return [name for name, value in known.items() if name.startswith("equipoise_dropped_total") and value]


def test_a_client_that_stalls_in_its_body_is_told_and_holds_up_nobody(
    make_service: Callable[..., Service], pets: Made
) -> None:
    service = make_service(pets, stall_seconds=0.5)
    body = POOL[0].tobytes()
    with running(service.app) as url, connected(url) as stalled, connected(url) as silent:
        stalled.sendall(head_of(len(body)) + body[:10])
        silent.sendall(head_of(len(body)))
        assert {answer.status_code for answer in ask_many(url, 8)} == {200}
        for each in (stalled, silent):
            assert each.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_client_that_does_not_read_its_answers_holds_up_nobody(
    make_service: Callable[..., Service], pets: Made
) -> None:
    service = make_service(pets)
    body = POOL[0].tobytes()
    with running(service.app) as url, connected(url) as deaf:
        deaf.settimeout(0.2)
        try:
            for _ in range(20_000):
                deaf.sendall(head_of(len(body)) + body)
        except TimeoutError:
            pass  # the service reads no more from it
        assert {answer.status_code for answer in ask_many(url, 8)} == {200}


def test_bodies_that_are_on_their_way_have_a_bound_together(make_service: Callable[..., Service], pets: Made) -> None:
    service = make_service(pets, body_memory_bytes=1 << 20)
    with running(service.app) as url:
        with connected(url) as first, connected(url) as second:
            for each in (first, second):
                each.sendall(head_of(1 << 20) + bytes(700_000))
            refused = [each.recv(1000)[:12] for each in (first, second) if answers(each)]
            assert refused == [b"HTTP/1.1 429"]
        eventually(lambda: service.app.state.server.room.held == 0, seconds=30)
        assert ask_many(url, 1)[0].status_code == 200
    assert service.app.state.server.room.held == 0


def answers(client: socket.socket) -> bool:
    """Whether an answer has come, although the body is not complete."""
    client.settimeout(1.0)
    try:
        return bool(client.recv(1, socket.MSG_PEEK))
    except TimeoutError:
        return False


def test_a_head_without_an_end_is_cut(make_service: Callable[..., Service], pets: Made) -> None:
    service = make_service(pets)
    with running(service.app) as url, connected(url) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with suppress(ConnectionError):
            for _ in range(100):
                client.sendall(b"x" * (1 << 16))
        with suppress(ConnectionError):  # it may be reset, since much is left unread
            assert client.recv(100).startswith(b"HTTP/1.1 400")
        assert ask_many(url, 1)[0].status_code == 200


def test_many_requests_on_one_connection_are_no_long_head(service: Service) -> None:
    with running(service.app) as url, httpx.Client(base_url=url) as client:
        note = {"x-note": "x" * 8000}
        for _ in range(60):
            assert client.post(SCORES, content=POOL[0].tobytes(), headers=OCTETS | note).status_code == 200
