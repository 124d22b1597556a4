"""What the tests of the routes ask, and how an answer is read."""

from typing import Any

import httpx
import numpy as np

from tests.service.conftest import Service

MODEL = "/v1/models/pets"
TARGET = b"class,count\nant,5\nbee,10\ncat,20\ndog,65\n"
LAW = [5, 10, 20, 65]
TRAINING = b'{"ant": 4000, "bee": 100, "cat": 60, "dog": 9}'
SCORES = "/v1/models/pets/scores"
LOGITS = [[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 3.0]]


def scores(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.array([result["scores"] for result in response.json()["results"]])


def refused(response: httpx.Response, status: int, kind: str, *words: str) -> None:
    assert response.headers["content-type"] == "application/problem+json", response.text
    document = response.json()
    assert (response.status_code, document["status"], document["type"]) == (status, status, f"/problems/{kind}")
    for word in words:
        assert word in document["detail"]


def inference_refused(response: httpx.Response, status: int, *words: str) -> None:
    assert response.headers["content-type"] == "application/json", response.text
    assert (response.status_code, list(response.json())) == (status, ["error"]), response.text
    for word in words:
        assert word in response.json()["error"]


def ask(service: Service, **options: Any) -> httpx.Response:
    return service.post(f"{MODEL}/scores", json={"logits": LOGITS}, **options)


def upload(service: Service, data: bytes = TARGET, *, role: str = "target", **params: Any) -> httpx.Response:
    headers = params.pop("headers", {})
    return service.post(f"{MODEL}/class-frequencies", content=data, params={"role": role} | params, headers=headers)


def history(service: Service) -> list[dict]:
    return list(service.get(f"{MODEL}/history").json()["changes"])


def stored_priors(service: Service) -> list[dict]:
    return [row for row in service.get(f"{MODEL}/priors").json()["priors"] if row["edition"] is not None]


def live(service: Service) -> dict:
    return dict(service.get(MODEL).json()["active"])


def other_target(number: int) -> bytes:
    return f"class,count\nant,{number + 1}\nbee,10\ncat,20\ndog,65\n".encode()
