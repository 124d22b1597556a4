"""Clients that keep asking for scores, and the check of every answer against the formula in NumPy."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from tests.service.bundles import Made, formula
from tests.service.processes import web

PAUSE_SECONDS = 0.01  # between two requests of a thread: the servers have other things to do on the same processors
MODEL = "/v1/models/pets"
LOGITS = [[2.0, -1.0, 0.5, 0.0], [0.0, 0.0, 0.0, 3.0]]


@dataclass
class Load:
    """Threads that ask every given URL, in turn for scores of logits and of pixels, until they are stopped."""

    urls: Sequence[str]
    pixels: np.ndarray
    answers: list[tuple[bool, dict[str, Any]]] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(url,)) for url in self.urls for _ in range(2)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, url: str) -> None:
        images = False
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self._stop.is_set():
                images = not images
                try:
                    if images:
                        headers = {"content-type": "application/octet-stream"}
                        body = self.pixels[0].tobytes()
                        answer = client.post(f"{MODEL}/scores", content=body, headers=headers)
                    else:
                        answer = client.post(f"{MODEL}/scores", json={"logits": LOGITS})
                except httpx.TransportError as error:
                    self.refused.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers.append((images, answer.json()))
                else:
                    self.refused.append(answer.text)
                self._stop.wait(PAUSE_SECONDS)


def check(
    load: Load, made: Made, calibrations: dict[str, dict], laws: dict[tuple[str, int | None], list[float]]
) -> None:
    """Every answer names a calibration and a prior that there were, and its scores are those of the formula."""
    raw = {True: made.raw(load.pixels[:1]), False: np.array(LOGITS)}
    expected: dict[tuple, np.ndarray] = {}
    for images, answer in load.answers:
        prior = (answer["prior"]["name"], answer["prior"].get("edition"))
        key = (images, answer["calibration"]["id"], prior)
        if key not in expected:
            expected[key] = formula(calibrations[key[1]], raw[images], laws[prior])
        got = np.array([result["scores"] for result in answer["results"]])
        np.testing.assert_allclose(got, expected[key], atol=1e-5 if images else 1e-12)


def body(number: int) -> bytes:
    """Class frequencies, other ones for every number."""
    return f"ant,{1000 + number}\nbee,200\ncat,50\ndog,{10 + number}\n".encode()


def upload(url: str, number: int) -> httpx.Response:
    """A target prior, or every fourth time training counts; never the same twice."""
    role = "training" if number % 4 == 3 else "target"
    return web.post(f"{url}{MODEL}/class-frequencies?role={role}", content=body(number), timeout=120)


def live(url: str) -> tuple[str, str]:
    """The calibration and the prior by which a process answers now."""
    answer = web.post(f"{url}{MODEL}/scores", json={"logits": LOGITS}, timeout=30).json()
    return answer["calibration"]["id"], answer["prior"]["name"]


def degraded(url: str) -> list[str]:
    return list(web.get(f"{url}/v2/health/ready", timeout=30).json()["degraded"])


def calibrations_of(url: str) -> dict[str, dict]:
    listed = web.get(f"{url}{MODEL}/calibrations").json()["calibrations"]
    return {row["id"]: web.get(f"{url}{MODEL}/calibrations/{row['id']}").json()["calibration"] for row in listed}


def laws_of(url: str, class_names: Sequence[str]) -> dict[tuple[str, int | None], list[float]]:
    rows = web.get(f"{url}{MODEL}/priors").json()["priors"]
    return {(row["name"], row["edition"]): [row["probs"][name] for name in class_names] for row in rows}
