"""Uploads as jobs: waited for or followed, asked for once, cancelled, listed."""

import time
from typing import Any

import httpx
import pytest

from tests.service.api.asking import MODEL, TARGET, TRAINING, ask, history, live, other_target, refused, upload
from tests.service.conftest import Service, WorkerThread, names

AT_ONCE = {"prefer": "respond-async"}


def key(text: str, **more: str) -> dict[str, str]:
    return {"idempotency-key": text} | more


def ended(service: Service, where: str) -> dict[str, Any]:
    deadline = time.monotonic() + 30
    while (job := service.get(where).json())["status"] in ("queued", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return dict(job)


@pytest.fixture
def idle(service: Service) -> Service:
    """A service whose worker does nothing."""
    service.worker.stop()
    return service


def let_work(service: Service) -> None:
    service.worker = WorkerThread(service.app)
    service.worker.start()


def test_a_request_that_does_not_wait_is_told_where_to_follow_its_job(idle: Service) -> None:
    answer = upload(idle, name="summer", headers=AT_ONCE | {"from": "ada"})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert {name: job[name] for name in ("kind", "model", "status", "progress", "actor", "result", "problem")} == {
        "kind": "class-frequencies",
        "model": "pets",
        "status": "queued",
        "progress": 0.0,
        "actor": "ada",
        "result": None,
        "problem": None,
    }
    assert live(idle)["prior"] == "uniform"
    let_work(idle)
    done = ended(idle, answer.headers["location"])
    assert (done["status"], done["progress"], done["attempts"], done["problem"]) == ("done", 1.0, 1, None)
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert (done["result"]["active"]["prior"], done["result"]["revision"]) == ("summer", 2)
    assert live(idle)["prior"] == "summer"


def test_a_request_waits_as_long_as_it_says(idle: Service) -> None:
    assert upload(idle, headers={"prefer": "wait=0"}).status_code == 202
    let_work(idle)
    assert upload(idle, headers={"prefer": "handling=lenient, wait=60"}).status_code == 201


def test_the_answer_says_which_job_it_came_from(service: Service) -> None:
    answer = upload(service)
    job = service.get(answer.headers["content-location"]).json()
    assert (job["status"], job["result"]) == ("done", answer.json())


def test_a_job_that_is_refused_ends_with_the_problem_that_a_waiting_client_gets(service: Service) -> None:
    accepted = upload(service, b"class,count\nant,5\n", headers=AT_ONCE)
    failed = ended(service, accepted.headers["location"])
    assert (failed["status"], failed["result"]) == ("failed", None)
    waited = upload(service, b"class,count\nant,5\n")
    assert failed["problem"] == waited.json()
    refused(waited, 422, "frequency-file-error")


# Once only


@pytest.mark.parametrize(("file", "role"), [(TARGET, "target"), (TRAINING, "training")])
def test_the_same_request_under_a_key_makes_one_change(service: Service, file: bytes, role: str) -> None:
    headers = key("a") | {"x-request-id": "the-same"}
    first = upload(service, file, role=role, headers=headers)
    again = upload(service, file, role=role, headers=headers)
    assert (again.status_code, again.content, again.headers) == (201, first.content, first.headers)
    assert len(history(service)) == 2
    assert upload(service, file, role=role, headers=key("b")).json()["revision"] == 3


def test_a_retry_while_the_job_waits_is_the_same_job(idle: Service) -> None:
    jobs = [upload(idle, headers=key("a", **AT_ONCE)).json()["id"] for _ in range(3)]
    assert len(set(jobs)) == 1
    let_work(idle)
    assert upload(idle, headers=key("a")).json()["revision"] == 2
    assert len(history(idle)) == 2


def test_a_refusal_is_repeated_under_its_key(service: Service) -> None:
    first, again = (upload(service, b"{", headers=key("a")) for _ in range(2))
    refused(first, 422, "frequency-file-error")
    assert again.content == first.content
    assert len(service.get("/v1/jobs").json()["jobs"]) == 1


def other_requests(service: Service) -> list[httpx.Response]:
    return [
        upload(service, other_target(3), headers=key("a")),
        upload(service, name="winter", headers=key("a")),
        upload(service, dry_run=True, headers=key("a")),
        upload(service, headers=key("a", **{"if-match": '"2"'})),
    ]


def test_another_request_under_a_known_key_is_refused(service: Service) -> None:
    upload(service, headers=key("a"))
    for answer in other_requests(service):
        refused(answer, 422, "idempotency-key-reused", "'a'", "new key")
    assert len(history(service)) == 2


@pytest.mark.parametrize("text", ["", "a b", "x" * 201])
def test_a_key_that_is_none_is_refused(service: Service, text: str) -> None:
    refused(upload(service, headers=key(text)), 422, "invalid-request", "Idempotency-Key")


# Cancelling


def test_a_cancelled_job_changes_nothing(idle: Service) -> None:
    before = ask(idle).content
    where = upload(idle, TRAINING, role="training", headers=key("a", **AT_ONCE)).headers["location"]
    cancelled = idle.post(f"{where}/cancel")
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    let_work(idle)
    assert upload(idle, dry_run=True).status_code == 200  # the worker has passed over it
    assert idle.get(where).json()["status"] == "cancelled"
    assert ask(idle).content == before
    assert len(history(idle)) == 1
    refused(upload(idle, TRAINING, role="training", headers=key("a")), 409, "job-ended", "cancelled")


def test_a_job_that_has_ended_stays_as_it_is(service: Service) -> None:
    where = upload(service).headers["content-location"]
    assert service.post(f"{where}/cancel").json()["status"] == "done"
    assert len(history(service)) == 2


# Listing


def test_jobs_are_listed_the_newest_first_without_their_results(service: Service) -> None:
    for number in range(3):
        upload(service, other_target(number))
    rows = service.get("/v1/jobs").json()["jobs"]
    numbers = [int(name[1:]) for name in names(rows, "id")]
    assert numbers == sorted(numbers, reverse=True)
    assert [row["result"] for row in rows] == [None] * 3
    assert names(service.get("/v1/jobs", params={"limit": 1}).json()["jobs"], "id") == names(rows[:1], "id")
    assert service.get("/v1/jobs", params={"model": "birds"}).json() == {"jobs": []}
    assert len(service.get("/v1/jobs", params={"model": "pets"}).json()["jobs"]) == 3


@pytest.mark.parametrize("params", [{"limit": 0}, {"limit": 1001}, {"model": "a b"}, {"model": "\0"}])
def test_a_list_that_cannot_be_is_refused(service: Service, params: dict) -> None:
    refused(service.get("/v1/jobs", params=params), 422, "invalid-request")


@pytest.mark.parametrize("job", ["j9", "9", "j0", "j01", "jx", "j99999999999999999999"])
def test_a_job_that_is_not_there_is_a_404(service: Service, job: str) -> None:
    refused(service.get(f"/v1/jobs/{job}"), 404, "unknown-job")
    refused(service.post(f"/v1/jobs/{job}/cancel"), 404, "unknown-job")


def test_an_upload_to_a_model_that_is_not_there_becomes_no_job(service: Service) -> None:
    for name in ("birds", "a%00b"):
        answer = service.post(f"/v1/models/{name}/calibration-set", content=b"{}", headers=AT_ONCE)
        refused(answer, 404, "unknown-model")
    assert service.get("/v1/jobs").json() == {"jobs": []}
    assert service.get(MODEL).status_code == 200


def test_a_job_may_be_followed_through_another_process(make_service: Any, pets: Any) -> None:
    one, other = make_service(pets), make_service(pets)
    one.worker.stop()
    where = upload(one, name="summer", headers=AT_ONCE).headers["location"]
    assert ended(other, where)["result"]["active"]["prior"] == "summer"
    assert live(other)["prior"] == "summer"
