"""What every request passes first: its id, the host that it names, and the way to the routes that score."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from tests.service.api.asking import LOGITS, SCORES, refused
from tests.service.bundles import Made
from tests.service.conftest import Service, npy, png


def test_an_answer_carries_the_id_of_its_request(service: Service) -> None:
    own = [service.post(SCORES, json={"logits": LOGITS}).headers["x-request-id"] for _ in range(2)]
    own.append(service.get("/v1/models").headers["x-request-id"])
    own.append(service.get("/v1/nothing").headers["x-request-id"])
    own.append(service.post("/v1/models/birds/scores", json={"logits": LOGITS}).headers["x-request-id"])
    assert len(set(own)) == 5
    for path in (SCORES, "/v1/models", "/v1/nothing", "/v1/models/birds/scores", "/v2/models/birds/infer"):
        answer = service.request("POST", path, json={"logits": LOGITS}, headers={"X-Request-Id": "from-the-client"})
        assert answer.headers.get_list("x-request-id") == ["from-the-client"]


@pytest.mark.parametrize("odd", ["", "two words", "x" * 129, "é"])
def test_an_id_that_could_not_stand_in_a_log_gets_another(service: Service, odd: str) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS}, headers={"X-Request-Id": odd.encode()})
    assert answer.headers["x-request-id"] not in ("", odd)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_without_keys_a_page_cannot_reach_the_service_under_a_name_of_its_own(service: Service, host: str) -> None:
    for method, path in (("POST", SCORES), ("GET", "/v1/models")):
        refused(service.request(method, path, json={"logits": LOGITS}, headers={"Host": host}), 403, "cross-site", host)


def test_a_long_name_of_a_host_is_not_sent_back_at_length(service: Service) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS}, headers={"Host": "x" * 50_000})
    assert (answer.status_code, len(answer.content) < 1000) == (403, True)


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "[::1]:8000", "192.0.2.7"])
def test_localhost_and_addresses_are_its_hosts(service: Service, host: str) -> None:
    assert service.post(SCORES, json={"logits": LOGITS}, headers={"Host": host}).status_code == 200


def test_a_service_that_everybody_may_ask_has_any_name(make_service: Callable[..., Service], pets: Made) -> None:
    service = make_service(pets, allow_anonymous=True)
    assert service.post(SCORES, json={"logits": LOGITS}, headers={"Host": "models.example"}).status_code == 200


def by_fastapi(service: Service, path: str, **options: Any) -> httpx.Response:
    """The route as FastAPI has it, without the front."""

    async def routes(scope: Any, receive: Any, send: Any) -> None:
        await FastAPI.__call__(service.app, scope, receive, send)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=routes), base_url="http://localhost") as client:
            return await client.post(path, **options)

    return asyncio.run(ask())


def test_fastapi_gives_the_answers_of_the_front(service: Service, pixels: np.ndarray) -> None:
    infer = {"inputs": [{"name": "logits", "shape": [2, 4], "datatype": "FP32", "data": LOGITS}]}
    asked: list[tuple[str, dict[str, Any]]] = [
        (SCORES, {"json": {"logits": LOGITS}}),
        (f"{SCORES}?prior=training&top_k=2", {"content": npy(np.array(LOGITS))}),
        (SCORES, {"content": png(pixels[0]), "headers": {"content-type": "image/png"}}),
        (SCORES, {"content": pixels[0].tobytes(), "headers": {"content-type": "application/octet-stream"}}),
        (SCORES, {"files": [("image", ("a.png", png(each))) for each in pixels]}),
        (f"{SCORES}?prior=nothing", {"json": {"logits": LOGITS}}),
        (f"{SCORES}?topk=2", {"json": {"logits": LOGITS}}),
        (f"{SCORES}?top_k=two", {"json": {"logits": LOGITS}}),
        ("/v1/models/birds/scores", {"json": {"logits": LOGITS}}),
        ("/v2/models/pets/infer", {"json": infer}),
        ("/v2/models/pets/versions/1/infer", {"json": infer}),
        ("/v2/models/pets/versions/9/infer", {"json": infer}),
    ]
    for path, options in asked:
        front, fastapi = service.post(path, **options), by_fastapi(service, path, **options)
        assert (front.status_code, front.json()) == (fastapi.status_code, fastapi.json()), path
        assert front.headers["content-type"] == fastapi.headers["content-type"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_another_method_on_a_route_that_scores_is_told_the_right_one(service: Service, method: str) -> None:
    answer = service.request(method, SCORES)
    refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "POST"


def test_a_time_that_a_client_gives_is_a_positive_number(service: Service) -> None:
    assert service.post(SCORES, json={"logits": LOGITS}, params={"timeout": "0.5"}).status_code == 200
    for timeout in ("0", "-1", "soon", "nan"):
        refused(service.post(SCORES, json={"logits": LOGITS}, params={"timeout": timeout}), 422, "invalid-request")
