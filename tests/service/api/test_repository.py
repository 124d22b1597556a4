"""The model repository extension: what is in memory, by NVIDIA's client and by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.service.api.asking import LOGITS, SCORES, inference_refused
from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.conftest import Service, running

INDEX = "/v2/repository/index"
READY = {"name": "pets", "version": "1", "state": "READY", "reason": ""}
PIXELS = bytes(HEIGHT * WIDTH * 3)


def index(service: Service, name: str = "pets") -> dict:
    (entry,) = [each for each in service.post(INDEX).json() if each["name"] == name]
    return dict(entry)


def test_the_client_unloads_and_loads_and_the_model_answers_all_the_time(service: Service) -> None:
    networks = service.app.state.follower.registry.get("pets").runner
    with running(service.app) as url, triton.InferenceServerClient(url.removeprefix("http://")) as client:
        assert client.get_model_repository_index() == [READY]
        client.unload_model("pets")
        (entry,) = client.get_model_repository_index()
        assert (entry["state"], entry["version"]) == ("UNAVAILABLE", "1")
        assert "next request loads it" in entry["reason"]
        assert not networks.is_loaded()
        client.load_model("pets")
        assert client.get_model_repository_index() == [READY]
        assert networks.is_loaded()
        for name, parameters in (("birds", {}), ("pets", {"config": "{}"})):
            with pytest.raises(InferenceServerException, match=r"no model 'birds'|parameters\.config"):
                client.load_model(name, **parameters)


def test_an_unloaded_network_comes_back_with_the_next_request_or_probe(service: Service) -> None:
    first = service.post(SCORES, content=PIXELS, headers={"Content-Type": "application/octet-stream"}).content
    for ask in (
        lambda: service.post(SCORES, content=PIXELS, headers={"Content-Type": "application/octet-stream"}),
        lambda: service.get("/v2/models/pets/ready"),
        lambda: service.get("/v2/models/pets/versions/1/ready"),
    ):
        assert service.post("/v2/repository/models/pets/unload").json()["state"] == "UNAVAILABLE"
        answer = ask()
        assert answer.status_code == 200
        assert answer.content == first or answer.json() == {"name": "pets", "ready": True}
        assert index(service) == READY


def test_the_index_leaves_out_what_is_not_ready_on_request(
    make_service: Callable[..., Service], make_bundle: Callable[..., Made]
) -> None:
    service = make_service(make_bundle("pets"), make_bundle("birds", name="birds", network=False))
    assert service.post("/v2/repository/models/pets/unload").status_code == 200
    assert service.post("/v2/repository/models/birds/unload").json()["state"] == "READY"  # nothing to take out
    assert [each["name"] for each in service.post(INDEX, json={}).json()] == ["birds", "pets"]
    assert [each["name"] for each in service.post(INDEX, json={"ready": True}).json()] == ["birds"]
    assert [each["name"] for each in service.post(INDEX, json={"ready": False}).json()] == ["birds", "pets"]


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again(
    make_service: Callable[..., Service], pets: Made, tmp_path: Path
) -> None:
    make_service(pets)
    artifact = next((tmp_path / "state/artifacts").rglob(pets.manifest.files["model.onnx"]))
    graph = artifact.read_bytes()
    artifact.write_bytes(b"damaged")
    service = make_service()
    entry = index(service)
    assert (entry["version"], entry["state"]) == ("", "UNAVAILABLE")
    assert "damaged" in entry["reason"]
    for method, path in (
        ("POST", "/v2/repository/models/pets/load"),
        ("POST", "/v2/repository/models/pets/unload"),
        ("GET", "/v2/models/pets/ready"),
        ("GET", "/v2/models/pets"),
        ("POST", "/v2/models/pets/infer"),
    ):
        body = {"inputs": [{"name": "logits", "shape": [2, 4], "datatype": "FP32", "data": LOGITS}]}
        answer = service.request(method, path, json=body if path.endswith("infer") else None)
        inference_refused(answer, 503, "damaged")
        assert answer.headers["retry-after"] == "2"
    artifact.write_bytes(graph)
    assert service.post("/v2/repository/models/pets/load").json() == READY
    assert service.get("/v2/models/pets/ready").status_code == 200


def test_readiness_of_a_model_tells_when_its_network_is_gone(service: Service, pets: Made, tmp_path: Path) -> None:
    assert service.post("/v2/repository/models/pets/unload").status_code == 200
    next((tmp_path / "state/artifacts").rglob(pets.manifest.files["model.onnx"])).unlink()
    inference_refused(service.get("/v2/models/pets/ready"), 503, "cannot be loaded")
    inference_refused(service.post("/v2/repository/models/pets/load"), 503, "cannot be loaded")


@pytest.mark.parametrize("path", [INDEX, "/v2/repository/models/pets/load", "/v2/repository/models/pets/unload"])
@pytest.mark.parametrize("body", [b"[]", b"{", b'{"redy": true}', b'{"parameters": {"files": 1}}'])
def test_a_wrong_body_is_refused_and_changes_nothing(service: Service, path: str, body: bytes) -> None:
    inference_refused(service.post(path, content=body), 400)
    assert index(service) == READY
