"""Registering bundles: what is new, what is known, what goes live, and what happens when something cannot be loaded."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.calibration.manifest import MODEL_FILE
from service.errors import InvalidBundle
from tests.service.api.asking import (
    LOGITS,
    MODEL,
    SCORES,
    TARGET,
    history,
    inference_refused,
    live,
    refused,
    scores,
    stored_priors,
    upload,
)
from tests.service.bundles import COUNTS, HEIGHT, WIDTH, Made, edit_manifest
from tests.service.conftest import Service, png

Make = Callable[..., Made]
Start = Callable[..., Service]


def test_a_model_says_what_it_is(service: Service, pets: Made) -> None:
    detail = service.get(MODEL).json()
    created = detail["versions"][0].pop("created_at")
    assert created.endswith("+00:00")
    assert detail == {
        "name": "pets",
        "class_names": ["ant", "bee", "cat", "dog"],
        "class_counts": list(COUNTS),
        "input": {"height": HEIGHT, "width": WIDTH},
        "trained_with": "cross-entropy",
        "implied_prior": {"source": "rule", "probs": pytest.approx(np.array(COUNTS) / sum(COUNTS))},
        "calibration_set": True,
        "warnings": [],
        "versions": [{"version": "1", "active": True, "aliases": []}],
        "active": {
            "version": "1",
            "calibration": {"id": "c1", "method": pets.manifest.calibration.method},
            "prior": "uniform",
        },
        "revision": 1,
    }


def test_all_models_are_listed_by_name(make_bundle: Make, make_service: Start) -> None:
    service = make_service(make_bundle("one", name="pets"), make_bundle("two", name="birds", seed=2))
    listed = service.get("/v1/models").json()["models"]
    assert [model["name"] for model in listed] == ["birds", "pets"]
    assert listed[0]["active"]["prior"] == "uniform"
    assert make_service().get("/v1/models").json()["models"] == listed


def test_a_bundle_in_an_archive_is_served_too(make_service: Start, pets: Made, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "pets.tar", "w") as archive:
        archive.add(pets.path, "pets")
    service = make_service(Made(path=tmp_path / "pets.tar", manifest=pets.manifest, weight=pets.weight, bias=pets.bias))
    np.testing.assert_allclose(
        scores(service.post(SCORES, json={"logits": LOGITS})), pets.scores(np.array(LOGITS)), atol=1e-12
    )


def test_other_content_under_a_known_name_is_a_new_version_with_its_own_calibration(
    make_bundle: Make, make_service: Start, pixels: np.ndarray
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    service = make_service(old)
    upload(service, name="summer")
    before = service.post(SCORES, content=png(pixels[0])).content
    service = make_service(new)
    assert live(service)["version"] == "2"
    assert live(service)["calibration"]["id"] == "c2"
    assert live(service)["prior"] == "summer"  # the place is the same, and so are the classes
    law = [5, 10, 20, 65]
    now = service.post(SCORES, content=png(pixels[0]))
    np.testing.assert_allclose(scores(now), new.scores(new.raw(pixels[:1]), law), atol=1e-6)
    assert service.post(f"{MODEL}/undo").json()["active"]["version"] == "1"
    assert service.post(SCORES, content=png(pixels[0])).content == before
    assert service.post(f"{MODEL}/versions/2/activate").json()["active"]["version"] == "2"
    assert service.post(SCORES, content=png(pixels[0])).content == now.content
    assert service.post(f"{MODEL}/calibrations/c1/activate").json()["active"]["version"] == "1"
    assert service.post(SCORES, content=png(pixels[0])).content == before


def test_a_version_that_was_undone_stays_undone_when_its_bundle_is_given_again(
    make_bundle: Make, make_service: Start
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    service = make_service(old, new)
    service.post(f"{MODEL}/undo")
    again = make_service(old, new)
    assert live(again)["version"] == "1"
    assert len(history(again)) == 3


def test_a_version_with_other_classes_begins_with_the_uniform_prior(make_bundle: Make, make_service: Start) -> None:
    service = make_service(make_bundle("old"))
    upload(service, name="summer")
    fewer = make_bundle("new", classes=("ant", "bee", "cow"), counts=(30, 20, 10))
    service = make_service(fewer)
    assert live(service)["prior"] == "uniform"
    logits = [[1.0, 2.0, 3.0]]
    np.testing.assert_allclose(
        scores(service.post(SCORES, json={"logits": logits})), fewer.scores(np.array(logits)), atol=1e-12
    )
    refused(service.post(f"{MODEL}/priors/summer/activate"), 404, "unknown-prior", "other classes")
    refused(service.post(SCORES, json={"logits": logits, "prior": "summer"}), 404, "unknown-prior")
    assert service.post(f"{MODEL}/undo").json()["active"]["prior"] == "summer"


def test_a_stored_prior_follows_the_names_of_the_classes_and_not_their_order(
    make_bundle: Make, make_service: Start
) -> None:
    upload(make_service(make_bundle("old")), name="summer")
    turned = make_bundle("new", classes=("dog", "cat", "bee", "ant"))
    service = make_service(turned)
    expected = turned.scores(np.array(LOGITS), [65, 20, 10, 5])
    np.testing.assert_allclose(scores(service.post(SCORES, json={"logits": LOGITS})), expected, atol=1e-12)


def test_a_balanced_softmax_head_is_not_debiased_twice(make_bundle: Make, make_service: Start) -> None:
    service = make_service(make_bundle(trained_with="balanced-softmax", calibration_set=False))
    np.testing.assert_allclose(service.get(MODEL).json()["implied_prior"]["probs"], 0.25)


def test_a_bundle_whose_graph_does_not_fit_is_refused_and_leaves_no_trace(
    make_bundle: Make, make_service: Start
) -> None:
    good, bad = make_bundle("good"), make_bundle("bad", seed=2)
    edit_manifest(bad.path, lambda document: document.update(input={"height": 9, "width": 9}))
    service = make_service(good)
    with pytest.raises(InvalidBundle, match="must take one input"):
        make_service(bad)
    assert len(history(service)) == 1
    assert len(service.get(MODEL).json()["versions"]) == 1


def test_readiness_names_a_model_that_cannot_be_loaded_and_the_others_answer(
    make_bundle: Make, make_service: Start, tmp_path: Path
) -> None:
    pets, birds = make_bundle("pets"), make_bundle("birds", name="birds", seed=2)
    service = make_service(pets, birds)
    assert service.get("/v2/health/ready").json() == {"ready": True, "degraded": []}
    artifact(tmp_path, pets).write_bytes(b"damaged")
    service = make_service()
    answer = service.get("/v2/health/ready")
    inference_refused(answer, 503, "not ready: model pets: artifact")
    assert answer.headers["retry-after"] == "2"
    refused(service.post(SCORES, json={"logits": LOGITS}), 503, "model-not-loaded", "damaged")
    assert service.post("/v1/models/birds/scores", json={"logits": LOGITS}).status_code == 200
    assert service.get("/v2/health/live").json() == {"live": True}
    assert make_service(pets).get("/v2/health/ready").status_code == 200  # the bundle mends it


def test_an_undo_to_a_version_that_cannot_be_loaded_changes_nothing(
    make_bundle: Make, make_service: Start, tmp_path: Path
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    make_service(old, new)
    service = make_service()  # another process, which has only the live network in memory
    before = service.post(SCORES, json={"logits": LOGITS}).content
    artifact(tmp_path, old).unlink()
    refused(service.post(f"{MODEL}/undo"), 503, "storage-unavailable")
    assert len(history(service)) == 2
    assert service.post(SCORES, json={"logits": LOGITS}).content == before


def test_a_service_without_a_model_is_not_ready(make_service: Start) -> None:
    service = make_service()
    assert service.get("/v1/models").json() == {"models": []}
    inference_refused(service.get("/v2/health/ready"), 503, "no model is registered")


def test_an_upload_that_cannot_be_stored_is_not_acknowledged(make_service: Start, pets: Made, tmp_path: Path) -> None:
    service = make_service(pets)
    before = service.post(SCORES, json={"logits": LOGITS}).content
    folder = tmp_path / "state" / "artifacts" / "sha256"
    folder.rename(folder.with_name("moved"))
    folder.write_text("a file in place of the folder")
    refused(upload(service, TARGET), 503, "storage-unavailable")
    assert len(history(service)) == 1
    assert service.post(SCORES, json={"logits": LOGITS}).content == before


@pytest.mark.parametrize(("file", "role"), [(TARGET, "target"), (b"ant,40\nbee,10\ncat,6\ndog,9\n", "training")])
def test_an_upload_that_the_database_refuses_at_the_last_step_leaves_nothing_behind(
    make_service: Start, pets: Made, file: bytes, role: str
) -> None:
    service = make_service(pets)
    before = service.post(SCORES, json={"logits": LOGITS}).content
    with service.app.state.catalog.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON changes BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
    refused(upload(service, file, role=role), 503, "storage-unavailable")
    assert service.post(SCORES, json={"logits": LOGITS}).content == before
    assert len(history(service)) == 1
    assert len(service.get(f"{MODEL}/calibrations").json()["calibrations"]) == 1
    assert stored_priors(service) == []


def test_scoring_goes_on_while_the_database_is_gone(make_service: Start, pets: Made, tmp_path: Path) -> None:
    service = make_service(pets)
    before = service.post(SCORES, json={"logits": LOGITS}).content
    service.close()  # connections in the pool would keep the file open
    for file in (tmp_path / "state").glob("equipoise.db*"):
        file.unlink()
    (tmp_path / "state" / "equipoise.db").mkdir()
    assert service.post(SCORES, json={"logits": LOGITS}).content == before
    refused(upload(service), 503, "storage-unavailable", "nothing was changed")


def test_the_whole_job_runs_on_postgresql_too(make_service: Start, pets: Made, postgres_url: str) -> None:
    service = make_service(pets, database_url=postgres_url)
    first = service.post(SCORES, json={"logits": LOGITS}).content
    assert upload(service, name="summer").status_code == 201
    assert upload(service, b"ant,40\nbee,10\ncat,6\ndog,9\n", role="training").status_code == 201
    second = service.post(SCORES, json={"logits": LOGITS}).content
    again = make_service(pets, database_url=postgres_url)
    assert again.post(SCORES, json={"logits": LOGITS}).content == second != first
    for _ in range(2):
        assert again.post(f"{MODEL}/undo").status_code == 200
    assert again.post(SCORES, json={"logits": LOGITS}).content == first


def artifact(tmp_path: Path, made: Made) -> Path:
    digest = made.manifest.files[MODEL_FILE]
    return tmp_path / "state" / "artifacts" / "sha256" / digest[:2] / digest
