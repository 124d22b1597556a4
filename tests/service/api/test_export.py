"""`GET …/calibrations/{calibration}/bundle`: complete in itself, and the same scores in any runtime."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from onnx import ModelProto

from models.calibration.types import LogitSet
from models.onnx_graph.graph import session
from tests.models.onnx_graph.networks import IMAGES, by_hand, labelled, network
from tests.service.api.asking import LOGITS, MODEL, ask, refused, scores
from tests.service.api.importing import BIRDS, npz, send
from tests.service.conftest import Service, png

Start = Callable[..., Service]
COUNTS = b"ant,900\nbee,30\ncat,9\ndog,1\n"


@pytest.fixture
def birds(service: Service) -> Service:
    """With a model whose graph is in the standard form, and a calibration set."""
    assert send(service, network(), logits=npz(labelled(40))).status_code == 201
    return service


def recount(service: Service) -> httpx.Response:
    return service.post(f"{BIRDS}/class-frequencies", content=COUNTS, params={"role": "training"})


def other_examples(service: Service) -> httpx.Response:
    labels = np.repeat(np.arange(4), 30)
    logits = 3 * np.eye(4)[labels] + np.random.default_rng(9).normal(size=(120, 4))
    examples = LogitSet(logits=logits, labels=labels, split="calibration")
    return service.post(f"{BIRDS}/calibration-set", content=npz(examples))


def exported(service: Service, calibration: str, model: str = BIRDS) -> bytes:
    answer = service.get(f"{model}/calibrations/{calibration}/bundle")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar"), answer.text
    return answer.content


def image_scores(service: Service, **params: str) -> np.ndarray:
    files = [("image", png(image)) for image in IMAGES]
    return scores(service.post(f"{BIRDS}/scores", files=files, params={"prior": "uniform"} | params))


def member(bundle: bytes, name: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        file = archive.extractfile(name)
        assert file is not None
        return file.read()


@pytest.mark.parametrize("change", [None, recount, other_examples])
def test_the_exported_graph_gives_the_scores_of_the_service_in_any_runtime(
    birds: Service, change: Callable[[Service], httpx.Response] | None
) -> None:
    before = image_scores(birds)
    calibration = "c1"
    if change is not None:
        answer = change(birds)
        assert answer.status_code == 201, answer.text
        calibration = answer.json()["active"]["calibration"]["id"]
        assert np.abs(image_scores(birds) - before).max() > 1e-3
    graph = session(member(exported(birds, calibration), "model.onnx"))
    logits, given = graph.run(["logits", "scores"], {"images": IMAGES})
    np.testing.assert_allclose(given, image_scores(birds), atol=1e-5)
    raw = by_hand()
    np.testing.assert_allclose(logits, raw - raw.mean(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("change", [None, recount, other_examples])
def test_a_bundle_that_is_registered_elsewhere_scores_and_refits_the_same(
    birds: Service, make_service: Start, tmp_path: Path, change: Callable[[Service], httpx.Response] | None
) -> None:
    if change is not None:
        change(birds)
    calibration = birds.get(BIRDS).json()["active"]["calibration"]["id"]
    elsewhere = make_service(state_dir=tmp_path / "elsewhere")
    assert elsewhere.post("/v1/models", content=exported(birds, calibration)).status_code == 201
    np.testing.assert_array_equal(image_scores(elsewhere), image_scores(birds))
    details = [each.get(BIRDS).json() for each in (birds, elsewhere)]
    for name in ("class_names", "class_counts", "trained_with", "implied_prior", "input", "calibration_set"):
        assert details[0][name] == details[1][name]
    reports = [recount(each).json() for each in (birds, elsewhere)]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    np.testing.assert_array_equal(image_scores(elsewhere), image_scores(birds))


def test_an_earlier_calibration_can_be_exported_too(birds: Service) -> None:
    expected = image_scores(birds)
    recount(birds)
    (given,) = session(member(exported(birds, "c1"), "model.onnx")).run(["scores"], {"images": IMAGES})
    np.testing.assert_allclose(given, expected, atol=1e-5)


def test_the_same_export_has_the_same_bytes_and_says_where_it_came_from(birds: Service) -> None:
    assert exported(birds, "c1") == exported(birds, "c1")
    assert b"birds version 1, c1" in member(exported(birds, "c1"), "manifest.json")
    disposition = birds.get(f"{BIRDS}/calibrations/c1/bundle").headers["content-disposition"]
    assert disposition == 'attachment; filename="birds-v1-c1.tar"'


def test_a_model_that_is_sent_logits_is_exported_without_a_graph(
    make_service: Start, make_bundle: Callable, tmp_path: Path
) -> None:
    service = make_service(make_bundle(network=False))
    service.post(f"{MODEL}/class-frequencies", content=COUNTS, params={"role": "training"})
    bundle = exported(service, "c2", MODEL)
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        assert archive.getnames() == ["manifest.json", "calibration_set.npz"]
    elsewhere = make_service(state_dir=tmp_path / "elsewhere")
    elsewhere.post("/v1/models", content=bundle)
    answers = [each.post(f"{MODEL}/scores", json={"logits": LOGITS}) for each in (service, elsewhere)]
    np.testing.assert_array_equal(scores(answers[0]), scores(answers[1]))


def test_what_is_not_there_is_not_exported(birds: Service) -> None:
    refused(birds.get(f"{BIRDS}/calibrations/c9/bundle"), 404, "unknown-calibration")
    refused(birds.get("/v1/models/fish/calibrations/c1/bundle"), 404, "unknown-model")
    assert ask(birds).status_code == 200


def test_a_graph_whose_calibration_is_fixed_is_said_to_be_that(make_service: Start, make_bundle: Callable) -> None:
    def fix(graph: ModelProto) -> None:
        del graph.graph.input[1:]

    service = make_service(make_bundle(edit_graph=fix))
    refused(service.get(f"{MODEL}/calibrations/c1/bundle"), 422, "invalid-model", "lacks log_prior")
