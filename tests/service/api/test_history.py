"""Who changed what, when, by which file and to what effect; undo beside changes of nothing live; deleting a model."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
import numpy as np
import pytest
from starlette.types import Message, Receive, Scope, Send

from tests.service.api.asking import (
    LOGITS,
    MODEL,
    TARGET,
    TRAINING,
    ask,
    history,
    live,
    refused,
    scores,
    upload,
)
from tests.service.bundles import Made
from tests.service.conftest import Service, names

Make = Callable[..., Made]
Start = Callable[..., Service]


def test_every_change_says_who_when_and_by_which_file(service: Service) -> None:
    before = datetime.now(UTC)
    upload(service, name="summer", headers={"from": "ada@example.org"})
    service.post(f"{MODEL}/undo", headers={"from": "josé@example.org".encode()})
    first, uploaded, undone = history(service)
    assert [row["actor"] for row in (first, uploaded, undone)] == [None, "ada@example.org", "josé@example.org"]
    assert before <= datetime.fromisoformat(uploaded["created_at"]) <= datetime.fromisoformat(undone["created_at"])
    kept = service.get(f"{MODEL}/history/2/file")
    assert (kept.content, kept.headers["etag"]) == (TARGET, f'"{uploaded["file_digest"]}"')
    assert (uploaded["prior"], uploaded["prior_edition"], uploaded["undoes_to"]) == ("summer", 1, 1)
    assert first["file_digest"] is None
    assert undone["file_digest"] is None


@pytest.mark.parametrize(("file", "role"), [(TARGET, "target"), (TRAINING, "training")])
def test_a_change_keeps_the_figures_before_and_after_it(service: Service, file: bytes, role: str) -> None:
    report = upload(service, file, role=role).json()
    row = history(service)[-1]
    assert row["metrics"] == report["metrics"]
    assert row["metrics"]["before"] != row["metrics"]["after"]
    change = service.get(f"{MODEL}/history/2").json()
    assert change["report"]["classes"] == report["classes"]
    assert {key: value for key, value in change.items() if key != "report"} == row
    assert history(service)[0]["metrics"] is None


def test_the_files_of_all_uploads_are_kept_even_where_their_calibration_is_deleted(service: Service) -> None:
    files = [TRAINING.replace(b"9}", b"%d}" % number) for number in (5, 6, 7)]
    for file in files:
        upload(service, file, role="training")
    service.post(f"{MODEL}/calibrations/c1/activate")
    assert service.delete(f"{MODEL}/calibrations/c3").status_code == 200
    assert [service.get(f"{MODEL}/history/{number}/file").content for number in (2, 3, 4)] == files
    assert service.get(f"{MODEL}/history/3").json()["metrics"] is not None


def test_a_large_file_of_a_change_is_sent_in_pieces_and_not_held_as_a_whole(service: Service) -> None:
    spaces = b" " * (3 << 20)
    file = b'{"logits": [[3, 0, 0, 0], [0, 3, 0, 0]], "labels": ["ant", "bee"]}' + spaces
    assert service.post(f"{MODEL}/calibration-set", content=file).status_code == 201
    largest = 0

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def count(message: Message) -> None:
            nonlocal largest
            largest = max(largest, len(message.get("body", b"")))
            await send(message)

        await service.app(scope, receive, count)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=watched), base_url="http://localhost") as client:
            return await client.get(f"{MODEL}/history/2/file")

    kept = asyncio.run(ask())
    assert (kept.content, kept.headers["content-length"]) == (file, str(len(file)))
    assert largest <= 1 << 20


@pytest.mark.parametrize("revision", ["0", "9", "x", "99999999999"])
def test_a_change_that_never_was_is_a_404(service: Service, revision: str) -> None:
    refused(service.get(f"{MODEL}/history/{revision}"), 404, "unknown-revision")
    refused(service.get(f"{MODEL}/history/{revision}/file"), 404, "unknown-revision")


def test_an_undo_passes_over_changes_of_nothing_live(make_bundle: Make, make_service: Start) -> None:
    service = make_service(make_bundle("old", seed=1), make_bundle("new", seed=2))
    before = ask(service).content
    upload(service, TRAINING, role="training")
    beside = [
        service.put(f"{MODEL}/aliases/candidate", json={"version": "1"}),
        service.put(f"{MODEL}/priors/winter", json={"weights": [1, 2, 3, 4]}),
        service.delete(f"{MODEL}/priors/winter"),
        service.delete(f"{MODEL}/aliases/candidate"),
    ]
    assert [answer.status_code for answer in beside] == [200] * 4
    assert [answer.json()["undo"] for answer in beside] == [None] * 4
    undone = service.post(f"{MODEL}/undo")
    assert undone.json()["action"] == "undo, back to revision 2"
    assert ask(service).content == before
    assert service.post(f"{MODEL}/undo").json()["active"]["version"] == "1"
    refused(service.post(f"{MODEL}/undo"), 409, "nothing-to-undo")


def test_an_undo_leaves_names_and_other_priors_as_they_are(service: Service) -> None:
    upload(service, name="summer")
    service.put(f"{MODEL}/priors/winter", json={"weights": [1, 2, 3, 4]})
    service.put(f"{MODEL}/aliases/candidate", json={"version": "1"})
    service.post(f"{MODEL}/undo")
    assert names(service.get(f"{MODEL}/priors").json()["priors"]) == ["uniform", "training", "summer", "winter"]
    assert service.get(f"{MODEL}/aliases").json()["aliases"]["candidate"] == "1"


# Deleting a model


def test_a_model_is_deleted_only_by_who_has_seen_its_state(service: Service) -> None:
    upload(service)
    refused(service.delete(MODEL), 428, "precondition-required", '"2"')
    refused(service.delete(MODEL, headers={"if-match": "*"}), 428, "precondition-required")
    stale = service.delete(MODEL, headers={"if-match": '"1"'})
    refused(stale, 409, "changed-since", "revision 2")
    assert stale.headers["etag"] == '"2"'
    assert ask(service).status_code == 200
    deleted = service.delete(MODEL, headers={"if-match": '"2"'})
    assert (deleted.status_code, deleted.content) == (204, b"")
    for gone in (ask(service), service.get(MODEL), service.delete(MODEL), upload(service)):
        refused(gone, 404, "unknown-model")
    assert service.get("/v1/models").json() == {"models": []}


def test_a_model_made_again_under_the_same_name_has_nothing_of_the_former(
    make_bundle: Make, make_service: Start
) -> None:
    service = make_service(make_bundle("old", seed=1))
    upload(service, name="summer", headers={"idempotency-key": "a"})
    service.put(f"{MODEL}/aliases/candidate", json={"version": "1"})
    service.delete(MODEL, headers={"if-match": '"3"'})
    new = make_bundle("new", seed=2)
    again = make_service(new)
    assert [row["action"] for row in history(again)] == ["registered"]
    assert (live(again)["version"], live(again)["prior"]) == ("1", "uniform")
    assert again.get(f"{MODEL}/aliases").json() == {"aliases": {"production": "1"}}
    assert names(again.get(f"{MODEL}/priors").json()["priors"]) == ["uniform", "training"]
    np.testing.assert_allclose(scores(ask(again)), new.scores(np.array(LOGITS)), atol=1e-12)
    assert upload(again, name="summer", headers={"idempotency-key": "a"}).json()["revision"] == 2


def test_other_models_stay_when_one_is_deleted(make_bundle: Make, make_service: Start) -> None:
    service = make_service(make_bundle("one"), make_bundle("two", name="birds", seed=2))
    birds = "/v1/models/birds"
    upload(service)
    assert service.delete(birds, headers={"if-match": '"1"'}).status_code == 204
    assert ask(service).status_code == 200
    assert len(history(service)) == 2
    again = make_service()
    assert names(again.get("/v1/models").json()["models"]) == ["pets"]


def test_a_bundle_can_be_given_again_after_its_model_was_deleted(make_service: Start, pets: Made) -> None:
    service = make_service(pets)
    before = ask(service).content
    service.delete(MODEL, headers={"if-match": '"1"'})
    assert ask(make_service(pets)).content == before
    assert len(history(service)) == 1
