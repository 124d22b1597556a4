"""NVIDIA's client, unchanged, over a real port: the Open Inference Protocol gives the numbers of /v1."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests.service.api.asking import LAW, LOGITS, MODEL, SCORES, TRAINING, scores, upload
from tests.service.bundles import CLASSES, HEIGHT, WIDTH, Made
from tests.service.conftest import Service, npy, png, running

Client = triton.InferenceServerClient
EXACT = {"rtol": 0, "atol": 5e-7}  # both are sums in float32, of one value or of a batch


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    with running(service.app) as url, Client(url.removeprefix("http://")) as client:
        yield client


def images(pixels: np.ndarray, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("images", pixels.shape, "UINT8").set_data_from_numpy(pixels, binary_data=binary)


def files(pixels: np.ndarray) -> triton.InferInput:
    encoded = np.array([png(image) for image in pixels], dtype=object)
    return triton.InferInput("image", encoded.shape, "BYTES").set_data_from_numpy(encoded)


def logits(values: Any = LOGITS, *, kind: str = "FP32", binary: bool = True) -> triton.InferInput:
    array = np.array(values, dtype={"FP32": np.float32, "FP64": np.float64}[kind])
    return triton.InferInput("logits", array.shape, kind).set_data_from_numpy(array, binary_data=binary)


def many(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(service: Service, pixels: np.ndarray, **params: Any) -> np.ndarray:
    """What /v1 says of the same images."""
    form = [("image", (f"{index}.png", png(image))) for index, image in enumerate(pixels)]
    return scores(service.post(SCORES, files=form, params=params))


def test_the_server_and_its_models_are_live_and_ready(client: Client) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pets")
    assert client.is_model_ready("pets", "1")
    assert not client.is_model_ready("pets", "2")
    assert not client.is_model_ready("birds")


def test_metadata_names_the_extensions_and_the_tensors(client: Client) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "equipoise"
    assert server["extensions"] == ["binary_tensor_data", "classification", "model_repository"]
    model = client.get_model_metadata("pets")
    assert model == client.get_model_metadata("pets", "1")
    assert (model["name"], model["versions"], model["platform"]) == ("pets", ["1"], "onnxruntime_onnx")
    taken = {each["name"]: (each["datatype"], each["shape"]) for each in model["inputs"]}
    assert taken == {
        "images": ("UINT8", [-1, HEIGHT, WIDTH, 3]),
        "image": ("BYTES", [-1]),
        "logits": ("FP32", [-1, 4]),
    }
    assert [each["name"] for each in model["outputs"]] == ["scores", "logits", "debiased"]
    assert all((each["datatype"], each["shape"]) == ("FP32", [-1, 4]) for each in model["outputs"])


@pytest.mark.parametrize("count", [1, 33])
@pytest.mark.parametrize("binary", [True, False])
def test_images_get_the_scores_of_v1(service: Service, client: Client, count: int, binary: bool) -> None:
    pixels = many(count)
    asked = [triton.InferRequestedOutput("scores", binary_data=binary)]
    answer = client.infer("pets", [images(pixels, binary=binary)], outputs=asked)
    came = answer.as_numpy("scores")
    assert (came.dtype, came.shape) == (np.float32, (count, 4))
    np.testing.assert_allclose(came, expected(service, pixels), **EXACT)
    assert [each["name"] for each in answer.get_response()["outputs"]] == ["scores"]


def test_image_files_are_read_by_the_rule_of_v1(service: Service, client: Client) -> None:
    larger = np.random.default_rng(3).integers(0, 256, size=(2, 3 * HEIGHT, 2 * WIDTH, 3), dtype=np.uint8)
    came = client.infer("pets", [files(larger)]).as_numpy("scores")
    np.testing.assert_allclose(came, expected(service, larger), **EXACT)


@pytest.mark.parametrize("kind", ["FP32", "FP64"])
@pytest.mark.parametrize("binary", [True, False])
def test_logits_get_the_scores_of_v1(service: Service, client: Client, kind: str, binary: bool) -> None:
    came = client.infer("pets", [logits(kind=kind, binary=binary)]).as_numpy("scores")
    np.testing.assert_allclose(came, scores(service.post(SCORES, json={"logits": LOGITS})), **EXACT)


def test_without_a_choice_all_outputs_come_and_each_is_a_step_of_the_algebra(client: Client, pets: Made) -> None:
    pixels = many(2)
    answer = client.infer("pets", [images(pixels)], request_id="seven")
    response = answer.get_response()
    assert [each["name"] for each in response["outputs"]] == ["scores", "logits", "debiased"]
    assert (response["model_name"], response["model_version"], response["id"]) == ("pets", "1", "seven")
    raw, debiased = answer.as_numpy("logits"), answer.as_numpy("debiased")
    np.testing.assert_allclose(raw, pets.raw(pixels), atol=1e-5)  # float32 products of 144 terms
    np.testing.assert_allclose(raw.mean(axis=1), 0, atol=1e-6)
    calibration = pets.manifest.calibration
    np.testing.assert_allclose(debiased, calibration.scale * raw + calibration.offset, atol=1e-5)
    adjusted = debiased - np.log(calibration.implied_prior.probs)
    weights = np.exp(adjusted - adjusted.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answer.as_numpy("scores"), weights / weights.sum(axis=1, keepdims=True), atol=1e-5)


def test_parameters_mean_what_they_mean_in_v1(service: Service, client: Client) -> None:
    assert upload(service, TRAINING, role="training").status_code == 201
    assert service.post(f"{MODEL}/calibrations/c1/activate").status_code == 200
    for asked in (
        {"prior": "training"},
        {"prior": "none"},
        {"prior": orjson.dumps(LAW).decode()},
        {"prior": '{"dog": 65, "cat": 20, "bee": 10, "ant": 5}'},
        {"kappa": 0.5},
        {"kappa": 0},
        {"calibration": "c2"},
        {"version": "production"},
    ):
        in_v1 = service.post(SCORES, json={"logits": LOGITS}, params=asked)
        answer = client.infer("pets", [logits()], parameters=asked)
        np.testing.assert_allclose(answer.as_numpy("scores"), scores(in_v1), **EXACT)
        used, prior = answer.get_response()["parameters"], in_v1.json()["prior"]
        assert used["calibration"] == in_v1.json()["calibration"]["id"] == asked.get("calibration", "c1")
        assert used["method"] == in_v1.json()["calibration"]["method"]
        assert (used["prior"], used.get("kappa")) == (prior["name"], asked.get("kappa"))


def test_the_answer_names_the_edition_of_a_stored_prior(service: Service, client: Client) -> None:
    service.put(f"{MODEL}/priors/summer", json={"weights": [1, 1, 1, 9]})
    service.put(f"{MODEL}/priors/summer", json={"weights": LAW})
    used = client.infer("pets", [logits()], parameters={"prior": "summer"}).get_response()["parameters"]
    assert used == {"calibration": "c1", "method": used["method"], "prior": "summer", "edition": 2}


def test_a_version_is_asked_for_in_the_address(
    make_service: Callable[..., Service], make_bundle: Callable[..., Made]
) -> None:
    service = make_service(make_bundle("old", seed=1), make_bundle("new", seed=2))
    pixels = many(2)
    with running(service.app) as url, Client(url.removeprefix("http://")) as client:
        assert client.get_model_metadata("pets")["versions"] == ["1", "2"]
        came = [client.infer("pets", [images(pixels)], model_version=each) for each in ("1", "2", "production")]
        newest = client.infer("pets", [images(pixels)])
    assert [each.get_response()["model_version"] for each in (*came, newest)] == ["1", "2", "2", "2"]
    np.testing.assert_allclose(came[0].as_numpy("scores"), expected(service, pixels, version="1"), **EXACT)
    np.testing.assert_array_equal(came[1].as_numpy("scores"), newest.as_numpy("scores"))
    assert np.abs(came[0].as_numpy("scores") - came[1].as_numpy("scores")).max() > 0.01


@pytest.mark.parametrize("binary", [True, False])
def test_classification_gives_the_best_classes_as_v1_ranks_them(service: Service, client: Client, binary: bool) -> None:
    asked = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
    came = client.infer("pets", [logits()], outputs=asked).as_numpy("scores")
    assert came.shape == (2, 2)
    ranked = service.post(SCORES, json={"logits": LOGITS}, params={"top_k": 2}).json()["results"]
    for row, result in zip(came, ranked, strict=True):
        for text, best in zip(row, result["top"], strict=True):
            score, index, name = (text.decode() if binary else text).split(":")
            assert (name, CLASSES[int(index)]) == (best["class"], best["class"])
            assert float(score) == pytest.approx(best["score"], rel=1e-6)


def test_outputs_come_in_the_order_and_the_form_that_each_was_asked_in(client: Client) -> None:
    asked = [
        triton.InferRequestedOutput("debiased", binary_data=True),
        triton.InferRequestedOutput("scores", binary_data=False, class_count=1),
        triton.InferRequestedOutput("logits", binary_data=True),
    ]
    answer = client.infer("pets", [logits()], outputs=asked)
    described = answer.get_response()["outputs"]
    assert [each["name"] for each in described] == ["debiased", "scores", "logits"]
    assert ["data" in each for each in described] == [False, True, False]
    alone = client.infer("pets", [logits()])
    for name in ("debiased", "logits"):
        np.testing.assert_array_equal(answer.as_numpy(name), alone.as_numpy(name))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_a_compressed_request_gets_the_same_answer(client: Client, algorithm: str) -> None:
    pixels = many(5)
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    packed = client.infer("pets", [images(pixels)], **options)
    plain = client.infer("pets", [images(pixels)])
    np.testing.assert_array_equal(packed.as_numpy("scores"), plain.as_numpy("scores"))


def test_requests_at_the_same_time_get_their_own_answers(service: Service) -> None:
    pixels = many(20)
    with running(service.app) as url, Client(url.removeprefix("http://"), concurrency=4) as client:
        waiting = [client.async_infer("pets", [images(pixels[n : n + 1])], request_id=str(n)) for n in range(20)]
        came = [each.get_result() for each in waiting]
    assert [each.get_response()["id"] for each in came] == [str(n) for n in range(20)]
    rows = np.concatenate([each.as_numpy("scores") for each in came])
    np.testing.assert_allclose(rows, expected(service, pixels), **EXACT)


def test_a_model_without_a_network_takes_logits_alone(
    make_service: Callable[..., Service], make_bundle: Callable[..., Made]
) -> None:
    service = make_service(make_bundle(network=False))
    with running(service.app) as url, Client(url.removeprefix("http://")) as client:
        assert client.is_model_ready("pets")
        model = client.get_model_metadata("pets")
        came = client.infer("pets", [logits()]).as_numpy("scores")
        with pytest.raises(InferenceServerException, match="takes one input, named logits; got 'images'"):
            client.infer("pets", [images(many(1))])
    assert (model["platform"], [each["name"] for each in model["inputs"]]) == ("equipoise", ["logits"])
    np.testing.assert_allclose(came, scores(service.post(SCORES, content=npy(np.array(LOGITS)))), **EXACT)


def test_hints_of_the_protocol_change_nothing(client: Client) -> None:
    hinted = client.infer("pets", [logits()], priority=3, timeout=1000)
    np.testing.assert_array_equal(hinted.as_numpy("scores"), client.infer("pets", [logits()]).as_numpy("scores"))
