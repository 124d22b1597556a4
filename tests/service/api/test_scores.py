"""`POST /v1/models/{model}/scores`: every kind of body and every option, held against the formula."""

from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
import pytest

from tests.service.api.asking import LOGITS, SCORES, refused, scores
from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.conftest import Service, npy, png

# What may be sent


@pytest.mark.parametrize(
    "kind", ["image/png", "image/jpeg", "image/x-unknown", None, "application/x-www-form-urlencoded"]
)
def test_an_image_file_is_scored_by_the_formula(
    service: Service, pets: Made, pixels: np.ndarray, kind: str | None
) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = service.post(SCORES, content=png(pixels[0]), headers=headers)
    np.testing.assert_allclose(scores(answer), pets.scores(pets.raw(pixels[:1])), atol=1e-6)


def test_raw_pixels_give_the_same_answer_as_the_image_file(service: Service, pixels: np.ndarray) -> None:
    octets = {"content-type": "application/octet-stream"}
    raw = service.post(SCORES, content=pixels[0].tobytes(), headers=octets)
    assert raw.content == service.post(SCORES, content=png(pixels[0])).content
    assert (
        raw.content == service.post(SCORES, content=png(pixels[0]), headers=octets).content
    )  # another length: sniffed


def test_octets_of_exactly_the_right_length_are_pixels_even_if_they_look_like_a_file(
    service: Service, pets: Made
) -> None:
    data = png(np.zeros((2, 2, 3), dtype=np.uint8)).ljust(HEIGHT * WIDTH * 3, b"\0")
    assert len(data) == HEIGHT * WIDTH * 3
    octets = service.post(SCORES, content=data, headers={"content-type": "application/octet-stream"})
    as_pixels = np.frombuffer(data, dtype=np.uint8).reshape(1, HEIGHT, WIDTH, 3)
    np.testing.assert_allclose(scores(octets), pets.scores(pets.raw(as_pixels)), atol=1e-6)
    file = service.post(SCORES, content=data)  # without a type it is the file that it looks like
    black = np.zeros((1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    np.testing.assert_allclose(scores(file), pets.scores(pets.raw(black)), atol=1e-6)


def test_several_images_in_a_form_are_answered_in_their_order(service: Service, pets: Made, pixels: np.ndarray) -> None:
    files = [("image", (f"{index}.png", png(image))) for index, image in enumerate(pixels)]
    answer = service.post(SCORES, files=files)
    np.testing.assert_allclose(scores(answer), pets.scores(pets.raw(pixels)), atol=1e-6)


def test_json_logits_are_scored_by_the_formula(service: Service, pets: Made) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS})
    np.testing.assert_allclose(scores(answer), pets.scores(np.array(LOGITS)), atol=1e-12)
    assert service.post(SCORES, json={"logits": LOGITS[0]}).json()["results"] == answer.json()["results"][:1]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "int64", "uint8"])
@pytest.mark.parametrize("kind", ["application/x-npy", "application/octet-stream", None])
def test_npy_logits_give_the_same_answer_as_json(service: Service, dtype: str, kind: str | None) -> None:
    logits = np.array([[2, 1, 5, 0], [0, 0, 0, 3], [1, 2, 3, 4]])
    headers = {} if kind is None else {"content-type": kind}
    answer = service.post(SCORES, content=npy(logits.astype(dtype)), headers=headers)
    assert answer.content == service.post(SCORES, json={"logits": logits.tolist()}).content
    fortran = service.post(SCORES, content=npy(np.asfortranarray(logits, dtype=dtype)), headers=headers)
    assert fortran.content == answer.content


def test_logits_and_their_log_softmax_give_the_same_answer(service: Service) -> None:
    shifted = np.array(LOGITS) - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    one, other = (service.post(SCORES, json={"logits": values}) for values in (LOGITS, shifted.tolist()))
    np.testing.assert_allclose(scores(one), scores(other), atol=1e-12)


def test_a_model_without_a_network_takes_logits_and_refuses_images(
    make_bundle: Callable[..., Made], make_service: Callable[..., Service], pixels: np.ndarray
) -> None:
    made = make_bundle(network=False)
    service = make_service(made)
    assert service.get("/v1/models/pets").json()["input"] is None
    np.testing.assert_allclose(
        scores(service.post(SCORES, json={"logits": LOGITS})), made.scores(np.array(LOGITS)), atol=1e-12
    )
    octets = {"content-type": "application/octet-stream"}
    assert service.post(SCORES, content=npy(np.array(LOGITS)), headers=octets).status_code == 200
    refused(service.post(SCORES, content=png(pixels[0]), headers={"content-type": "image/png"}), 422, "logits-only")
    files = {"image": png(pixels[0])}
    for image in ({"content": png(pixels[0])}, {"content": png(pixels[0]), "headers": octets}, {"files": files}):
        refused(service.post(SCORES, **image), 422, "logits-only", "takes no images", "JSON", ".npy")


# What may be asked


def test_the_answer_says_what_produced_it(service: Service, pets: Made) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS}).json()
    assert {key: value for key, value in answer.items() if key != "results"} == {
        "model": "pets",
        "version": "1",
        "calibration": {"id": "c1", "method": pets.manifest.calibration.method},
        "prior": {"name": "uniform"},
    }
    first = answer["results"][0]
    assert first["class"] == pets.manifest.class_names[int(np.argmax(first["scores"]))]
    assert first["score"] == max(first["scores"])


INLINE = [0.5, 0.25, 0.25, 0.0]
BY_NAME = {"dog": 0, "ant": 2, "cat": 1, "bee": 1}


@pytest.mark.parametrize(
    ("prior", "name", "law"),
    [
        ("uniform", "uniform", [1, 1, 1, 1]),
        ("training", "training", [1000, 200, 50, 10]),
        (INLINE, "inline", INLINE),
        (BY_NAME, "inline", INLINE),
        ([1e308, 1e308, 0, 0], "inline", [1, 1, 0, 0]),
    ],
)
@pytest.mark.parametrize("where", ["query", "body"])
def test_a_prior_may_be_given_by_name_or_inline(
    service: Service, pets: Made, prior: Any, name: str, law: list[float], where: str
) -> None:
    text = prior if isinstance(prior, str) else orjson.dumps(prior).decode()
    options = {"params": {"prior": text}} if where == "query" else {}
    body = {"logits": LOGITS} | ({"prior": prior} if where == "body" else {})
    answer = service.post(SCORES, json=body, **options)
    assert answer.json()["prior"] == {"name": name}
    np.testing.assert_allclose(scores(answer), pets.scores(np.array(LOGITS), law), atol=1e-12)


@pytest.mark.parametrize("kappa", [-0.5, 0, 0.5, 1, 1.5])
@pytest.mark.parametrize("where", ["query", "body"])
def test_kappa_is_the_law_between_uniform_and_training(service: Service, pets: Made, kappa: float, where: str) -> None:
    options = {"params": {"kappa": kappa}} if where == "query" else {}
    body = {"logits": LOGITS} | ({"kappa": kappa} if where == "body" else {})
    answer = service.post(SCORES, json=body, **options)
    assert answer.json()["prior"] == {"name": "kappa", "kappa": kappa}
    law = np.array(pets.manifest.ledger.class_counts) ** float(kappa)
    np.testing.assert_allclose(scores(answer), pets.scores(np.array(LOGITS), law), atol=1e-12)


def test_kappa_goes_with_an_image_as_well(service: Service, pets: Made, pixels: np.ndarray) -> None:
    answer = service.post(SCORES, content=png(pixels[0]), params={"kappa": 1, "explain": True})
    np.testing.assert_allclose(scores(answer), pets.scores(pets.raw(pixels[:1]), [1000, 200, 50, 10]), atol=1e-6)
    named = service.post(SCORES, content=png(pixels[0]), params={"prior": "training", "explain": True})
    one, other = (each.json()["results"][0]["explain"]["log_prior_shift"] for each in (answer, named))
    np.testing.assert_allclose(one, other, atol=1e-12)


def test_kappa_is_described_with_its_range_and_an_example(service: Service) -> None:
    route = service.get("/openapi.json").json()["paths"]["/v1/models/{model}/scores"]["post"]
    (in_query,) = [each["schema"] for each in route["parameters"] if each["name"] == "kappa"]
    in_body = route["requestBody"]["content"]["application/json"]["schema"]["properties"]["kappa"]
    assert in_query["examples"] == [0.5]
    for schema in (in_query, in_body):
        assert (schema["minimum"], schema["maximum"]) == (-0.5, 1.5)


def test_the_prior_none_is_the_softmax_of_the_debiased_logits(service: Service, pets: Made) -> None:
    answer = service.post(SCORES, params={"prior": "none"}, json={"logits": LOGITS})
    implied = pets.manifest.calibration.implied_prior.probs
    np.testing.assert_allclose(scores(answer), pets.scores(np.array(LOGITS), implied), atol=1e-12)


def test_top_k_lists_the_best_classes_first_and_leaves_the_rest_out(service: Service, pets: Made) -> None:
    every = service.post(SCORES, json={"logits": LOGITS}).json()["results"][0]
    best = service.post(SCORES, params={"top_k": 2}, json={"logits": LOGITS}).json()["results"][0]
    by_score = sorted(zip(every["scores"], pets.manifest.class_names, strict=True), reverse=True)
    assert best["top"] == [{"class": name, "score": score} for score, name in by_score[:2]]
    assert "scores" not in best
    assert (best["class"], best["score"]) == (every["class"], every["score"])


def test_explain_shows_each_step(service: Service, pets: Made) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS, "explain": True, "prior": INLINE, "top_k": 1}).json()
    shown = answer["results"][0]["explain"]
    raw = np.exp(LOGITS[0]) / np.exp(LOGITS[0]).sum()
    implied = pets.manifest.calibration.implied_prior.probs
    np.testing.assert_allclose(shown["raw"], raw, atol=1e-12)
    np.testing.assert_allclose(shown["debiased"], pets.scores(np.array(LOGITS), implied)[0], atol=1e-12)
    np.testing.assert_allclose(shown["adjusted"], pets.scores(np.array(LOGITS), INLINE)[0], atol=1e-12)
    np.testing.assert_allclose(shown["log_prior_shift"][:3], np.log(INLINE[:3]) - np.log(implied[:3]), atol=1e-12)
    assert shown["log_prior_shift"][3] is None
    assert shown["adjusted"][3] == 0
