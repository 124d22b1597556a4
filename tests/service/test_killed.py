"""kill -9 to the server and its worker in the middle of everything: nothing half applied, nothing acknowledged lost."""

import io
import random
import socket
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.load import LOGITS, MODEL
from tests.service.processes import Process, eventually, web

ROUNDS = 4
BUNDLES = 12  # sent in turn; one that is known already changes nothing


class Owner(threading.Thread):
    """Sends one change after the other, each with a key of its own, until the server is gone."""

    def __init__(self, send: Callable[[int], httpx.Response], first: int) -> None:
        super().__init__()
        self._send = send
        self.number = first
        self.acknowledged: dict[int, dict] = {}

    def run(self) -> None:
        while True:
            try:
                answer = self._send(self.number)
            except httpx.TransportError:
                return
            assert answer.status_code in (200, 201), answer.text
            self.acknowledged[self.number] = answer.json()
            self.number += 1


def frequencies(url: str, number: int) -> httpx.Response:
    role = "training" if number % 3 == 2 else "target"
    body = f"ant,{900 + number}\nbee,200\ncat,50\ndog,10\n"
    options = {"params": {"role": role}, "headers": {"idempotency-key": f"upload-{number}"}, "timeout": 60}
    return web.post(f"{url}{MODEL}/class-frequencies", content=body, **options)


def packed(made: Made) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(made.path, "bundle")
    return buffer.getvalue()


def register(url: str, bundle: bytes, number: int) -> httpx.Response:
    headers = {"idempotency-key": f"bundle-{number}", "content-type": "application/x-tar"}
    return web.post(f"{url}/v1/models", content=bundle, headers=headers, timeout=60)


def jobs_end(process: Process) -> bool:
    rows = web.get(f"{process.url}/v1/jobs?limit=1000").json()["jobs"]
    return all(row["status"] in ("done", "failed") for row in rows)


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
def test_what_was_acknowledged_is_there_and_what_is_there_is_whole(
    tmp_path: Path, make_bundle: Callable[..., Made], request: pytest.FixtureRequest, store: str
) -> None:
    settings = {"job_wait_seconds": 60}
    if store == "postgres":
        settings["database_url"] = request.getfixturevalue("postgres_url")
    chance = random.Random(0)
    pets, birds = make_bundle("pets"), [make_bundle(f"birds{seed}", name="birds", seed=seed) for seed in range(BUNDLES)]
    bundles = [packed(each) for each in birds]
    process = Process(tmp_path / "server", pets.path, **settings)
    uploads: dict[int, dict] = {}
    registered: dict[int, dict] = {}
    first = [0, 0]
    try:
        for _ in range(ROUNDS):
            url = process.url
            owners = [
                Owner(lambda number, url=url: frequencies(url, number), first[0]),
                Owner(lambda number, url=url: register(url, bundles[number % BUNDLES], number), first[1]),
            ]
            for owner in owners:
                owner.start()
            eventually(lambda owners=owners: all(owner.acknowledged for owner in owners), seconds=60)
            threading.Event().wait(chance.uniform(0.0, 0.6))
            process.kill()
            for owner, known in zip(owners, (uploads, registered), strict=True):
                owner.join()
                known |= owner.acknowledged
            first = [owner.number for owner in owners]  # the one that was not answered is sent again
            process.start()
        eventually(lambda: jobs_end(process), seconds=60)
        for again in (
            frequencies(process.url, first[0]),
            register(process.url, bundles[first[1] % BUNDLES], first[1]),
        ):
            assert again.status_code in (200, 201), again.text
        check_uploads(process, uploads)
        check_versions(process, registered, birds)
    finally:
        process.stop()


def check_uploads(process: Process, acknowledged: dict[int, dict]) -> None:
    assert acknowledged
    changes = web.get(f"{process.url}{MODEL}/history").json()["changes"]
    assert [row["revision"] for row in changes] == list(range(1, len(changes) + 1))
    calibrations = {row["id"] for row in web.get(f"{process.url}{MODEL}/calibrations").json()["calibrations"]}
    assert {row["calibration"] for row in changes} == calibrations  # none is without its change, or a change without it
    kept = [web.get(f"{process.url}{MODEL}/history/{row['revision']}/file").text for row in changes[1:]]
    assert len(set(kept)) == len(kept)  # sent again under its key, nothing was applied twice
    for number, answer in acknowledged.items():
        row = changes[answer["revision"] - 1]
        assert (row["calibration"], row["prior"]) == (
            answer["active"]["calibration"]["id"],
            answer["active"]["prior"],
        )
        assert f"ant,{900 + number}\n" in kept[answer["revision"] - 2]


def check_versions(process: Process, acknowledged: dict[int, dict], made: list[Made]) -> None:
    assert acknowledged
    birds = f"{process.url}/v1/models/birds"
    versions = [row["version"] for row in web.get(birds).json()["versions"]]
    assert versions == [str(number + 1) for number in range(len(versions))]
    pixels = np.random.default_rng(3).integers(0, 256, size=(1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number, answer in acknowledged.items():
        scored = web.post(
            f"{birds}/scores",
            params={"version": answer["version"], "prior": "uniform"},
            content=pixels.tobytes(),
            headers={"content-type": "application/octet-stream"},
        )
        bundle = made[number % BUNDLES]
        expected = bundle.scores(bundle.raw(pixels))
        np.testing.assert_allclose(scored.json()["results"][0]["scores"], expected[0], atol=1e-5)


def test_half_a_body_and_a_killed_server_leave_nothing(tmp_path: Path, pets: Made) -> None:
    process = Process(tmp_path / "server", pets.path)
    try:
        before = web.post(f"{process.url}{MODEL}/scores", json={"logits": LOGITS}).content
        address = urlsplit(process.url)
        with socket.create_connection((address.hostname, address.port)) as client:
            lines = [f"POST {MODEL}/class-frequencies?role=target HTTP/1.1", "Host: localhost", "Content-Length: 1000"]
            client.sendall("\r\n".join([*lines, "", ""]).encode() + b"ant,900\nbee,1\n")
            eventually(lambda: list((tmp_path / "server/state").glob("upload-*")), seconds=20)
            process.kill()
        process.start()
        assert web.post(f"{process.url}{MODEL}/scores", json={"logits": LOGITS}).content == before
        assert web.get(f"{process.url}/v1/jobs").json() == {"jobs": []}
    finally:
        process.stop()
