"""Undo, demanded states, changes at the same time, restarts; and what is not there."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.service.api.asking import (
    LOGITS,
    MODEL,
    TARGET,
    TRAINING,
    ask,
    history,
    live,
    other_target,
    refused,
    scores,
    stored_priors,
    upload,
)
from tests.service.bundles import CLASSES, Made, formula
from tests.service.conftest import Service, running

# Undo


def test_undo_walks_back_through_every_change_to_the_last_byte(service: Service) -> None:
    answers = [ask(service).content]
    for change in (
        lambda: upload(service, name="summer"),
        lambda: upload(service, TRAINING, role="training"),
        lambda: service.post(f"{MODEL}/priors/training/activate"),
        lambda: service.post(f"{MODEL}/calibrations/c1/activate"),
    ):
        assert change().status_code in (200, 201)
        answers.append(ask(service).content)
    assert len(set(answers)) == 5
    for expected in reversed(answers[:-1]):
        assert service.post(f"{MODEL}/undo").status_code == 200
        assert ask(service).content == expected
    refused(service.post(f"{MODEL}/undo"), 409, "nothing-to-undo")
    assert len(history(service)) == 9


def test_a_change_after_an_undo_is_undone_first(service: Service) -> None:
    first = ask(service).content
    upload(service, name="summer")
    service.post(f"{MODEL}/undo")
    upload(service, other_target(50), name="winter")
    service.post(f"{MODEL}/undo")
    assert ask(service).content == first
    refused(service.post(f"{MODEL}/undo"), 409, "nothing-to-undo")


def test_the_history_tells_what_happened(service: Service) -> None:
    upload(service, name="summer")
    service.post(f"{MODEL}/undo")
    rows = history(service)
    assert [row["revision"] for row in rows] == [1, 2, 3]
    assert [row["action"] for row in rows] == [
        "registered",
        "uploaded target prior summer",
        "undo, back to revision 1",
    ]
    assert [row["prior"] for row in rows] == ["uniform", "summer", "uniform"]


def test_an_undo_of_a_change_that_is_not_the_newest_any_more_is_refused(service: Service) -> None:
    link = upload(service, name="mine").json()["undo"]["href"]
    upload(service, other_target(50), name="theirs")
    answer = service.post(link)
    refused(answer, 409, "changed-since", "revision 2", "revision 3")
    assert answer.headers["etag"] == '"3"'
    assert live(service)["prior"] == "theirs"


def test_the_same_undo_twice_undoes_once(service: Service) -> None:
    link = upload(service).json()["undo"]["href"]
    assert service.post(link).status_code == 200
    refused(service.post(link), 409, "changed-since")
    assert len(history(service)) == 3


CHANGES = [
    f"{MODEL}/undo",
    f"{MODEL}/calibrations/c1/activate",
    f"{MODEL}/priors/training/activate",
    f"{MODEL}/versions/1/activate",
    f"{MODEL}/class-frequencies?role=target",
    f"{MODEL}/class-frequencies?role=target&dry_run=true",
]


@pytest.mark.parametrize("url", CHANGES)
@pytest.mark.parametrize(
    ("header", "fits"), [('"2"', True), ('"1", "2"', True), ("*", True), ('"1"', False), ('"x"', False)]
)
def test_a_change_may_demand_the_state_it_was_meant_for(service: Service, url: str, header: str, fits: bool) -> None:
    upload(service, name="summer")
    answer = service.post(url, content=TARGET, headers={"if-match": header})
    if fits:
        assert answer.status_code in (200, 201), answer.text
    else:
        refused(answer, 409, "changed-since", "revision 2")
        assert answer.headers["etag"] == '"2"'
        assert len(history(service)) == 2


@pytest.mark.parametrize("header", ["2", "", '"2', "2, 3"])
def test_an_etag_without_its_quotes_is_said_to_be_that(service: Service, header: str) -> None:
    upload(service)
    answer = service.post(f"{MODEL}/undo", headers={"if-match": header})
    refused(answer, 422, "invalid-request", "with its quotes", header)


def test_the_etag_of_a_model_is_the_one_that_changes_ask_for(service: Service) -> None:
    etag = service.get(MODEL).headers["etag"]
    assert upload(service, headers={"if-match": etag}).status_code == 201
    refused(upload(service, headers={"if-match": etag}), 409, "changed-since")


# At the same time


def test_uploads_at_once_are_all_in_the_history_and_none_is_half_applied(service: Service, pets: Made) -> None:
    files = [other_target(number) for number in range(6)] + [TRAINING.replace(b"9}", b"%d}" % n) for n in range(1, 4)]
    with running(service.app) as url, ThreadPoolExecutor(len(files)) as pool:

        def send(file: bytes) -> httpx.Response:
            role = "training" if file.startswith(b"{") else "target"
            return httpx.post(f"{url}{MODEL}/class-frequencies?role={role}", content=file, timeout=60)

        answers = list(pool.map(send, files))
    assert [answer.status_code for answer in answers] == [201] * len(files)
    assert sorted(answer.json()["revision"] for answer in answers) == list(range(2, len(files) + 2))
    rows = history(service)
    assert [row["revision"] for row in rows] == list(range(1, len(files) + 2))
    assert rows[-1]["calibration"] == "c4"
    for answer in answers:  # the state of each revision is what its sender was told
        row = rows[answer.json()["revision"] - 1]
        told = answer.json()["active"]
        assert (row["prior"], row["calibration"]) == (told["prior"], told["calibration"]["id"])
    fitted = service.get(f"{MODEL}/calibrations/c4").json()["calibration"]
    law = next(row for row in service.get(f"{MODEL}/priors").json()["priors"] if row["active"])["probs"]
    expected = formula(fitted, np.array(LOGITS), [law[name] for name in CLASSES])
    np.testing.assert_allclose(scores(ask(service)), expected, atol=1e-12)


def test_two_processes_on_one_database_lose_nothing(make_service: Callable[..., Service], pets: Made) -> None:
    services = [make_service(pets), make_service(pets)]  # each with its own locks, as two processes have

    def send(number: int) -> int:
        return upload(services[number % 2], other_target(number)).status_code

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(send, range(8))) == [201] * 8
    assert [row["revision"] for row in history(services[0])] == list(range(1, 10))
    assert len(stored_priors(services[1])) == 8


def test_a_request_keeps_the_state_it_began_with(service: Service, pets: Made) -> None:
    async def run() -> set[bytes]:
        transport = httpx.ASGITransport(app=service.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            seen: set[bytes] = set()
            done = asyncio.Event()

            async def keep_asking() -> None:
                while not done.is_set():
                    seen.add((await client.post(f"{MODEL}/scores", json={"logits": LOGITS})).content)
                    await asyncio.sleep(0)  # as a server does between two requests

            asking = [asyncio.create_task(keep_asking()) for _ in range(3)]
            for number in range(5):
                url = f"{MODEL}/class-frequencies?role=target&name=p{number}"
                await client.post(url, content=other_target(number))
            done.set()
            await asyncio.gather(*asking)
            return seen

    seen = asyncio.run(run())
    allowed = {ask(service, params={"prior": f"p{number}"}).content for number in range(5)}
    allowed.add(ask(service, params={"prior": "uniform"}).content)
    assert seen <= allowed


# After a restart


def test_a_restart_keeps_state_and_answers_to_the_last_byte(make_service: Callable[..., Service], pets: Made) -> None:
    first = make_service(pets)
    upload(first, name="summer")
    upload(first, TRAINING, role="training")
    expected, changes = ask(first).content, history(first)
    first.close()
    for bundles in ((), (pets,)):  # without the bundle, and with the same one again
        again = make_service(*bundles)
        assert ask(again).content == expected
        assert history(again) == changes
        again.close()
    last = make_service()
    assert last.post(f"{MODEL}/undo").json()["active"]["prior"] == "summer"
    assert live(last)["calibration"]["id"] == "c1"


# What is not there


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/v1/models/cars", "unknown-model"),
        ("GET", "/v1/models/cars/calibrations", "unknown-model"),
        ("GET", "/v1/models/cars/calibrations/c1", "unknown-model"),
        ("GET", "/v1/models/cars/priors", "unknown-model"),
        ("GET", "/v1/models/cars/history", "unknown-model"),
        ("POST", "/v1/models/cars/undo", "unknown-model"),
        ("POST", "/v1/models/cars/calibrations/c1/activate", "unknown-model"),
        ("POST", "/v1/models/cars/versions/1/activate", "unknown-model"),
        ("POST", "/v1/models/cars/priors/uniform/activate", "unknown-model"),
        ("GET", f"{MODEL}/calibrations/c2", "unknown-calibration"),
        ("GET", f"{MODEL}/calibrations/1", "unknown-calibration"),
        ("POST", f"{MODEL}/calibrations/c0/activate", "unknown-calibration"),
        ("POST", f"{MODEL}/calibrations/c99999999999999999999/activate", "unknown-calibration"),
        ("POST", f"{MODEL}/versions/2/activate", "unknown-version"),
        ("POST", f"{MODEL}/versions/v1/activate", "unknown-version"),
        ("POST", f"{MODEL}/priors/winter/activate", "unknown-prior"),
    ],
)
def test_what_is_not_there_is_a_404_of_its_own_kind(service: Service, method: str, path: str, kind: str) -> None:
    refused(service.request(method, path), 404, kind)


def test_an_upload_to_an_unknown_model_is_refused(service: Service) -> None:
    answer = service.post("/v1/models/cars/class-frequencies?role=target", content=TARGET)
    refused(answer, 404, "unknown-model")


def test_none_cannot_be_a_models_active_prior(service: Service) -> None:
    refused(service.post(f"{MODEL}/priors/none/activate"), 422, "invalid-request", "none")
