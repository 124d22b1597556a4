"""`POST /v1/models/{model}/scores`: everything that can be wrong with a body or an option."""

import gzip
import io
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from tests.service.api.asking import (
    LOGITS,
    SCORES,
    refused,
)
from tests.service.bundles import HEIGHT, WIDTH, Made
from tests.service.conftest import Service, npy, png


@pytest.mark.parametrize(
    ("logits", "kind"),
    [
        ([1, 2, 3], "shape-mismatch"),
        ([[1, 2, 3, 4, 5]], "shape-mismatch"),
        ([[[1, 2, 3, 4]]], "shape-mismatch"),
        (3, "shape-mismatch"),
        ([[1, 2, 3, 4], [1, 2]], "invalid-logits"),
        ([], "invalid-logits"),
        ([[]], "invalid-logits"),
        ([["1", "2", "3", "4"]], "invalid-logits"),
        ([["1" * 1_000_000] + [1] * 100_000], "invalid-logits"),  # as one array of texts: 400 GB
        ([[None, 1, 2, 3]], "invalid-logits"),
        ([[{}, 1, 2, 3]], "invalid-logits"),
        ("1,2,3,4", "invalid-logits"),
        ([True, False, True, False], "invalid-logits"),
        ({"ant": 1}, "invalid-logits"),
        ([[1e39, 0, 0, 0]], "invalid-logits"),
        ([[-1e300, 0, 0, 0]], "invalid-logits"),
        ([[10**30, 0, 0, 10**38 * 9]], "invalid-logits"),
    ],
)
def test_json_that_is_not_logits_is_refused(service: Service, logits: Any, kind: str) -> None:
    refused(service.post(SCORES, json={"logits": logits}), 422, kind)


@pytest.mark.parametrize(
    "body",
    [
        b'{"logits": [[NaN, 0, 0, 0]]}',
        b'{"logits": [[1e999, 0, 0, 0]]}',
        b'{"logits": [[Infinity, 0, 0, 0]]}',
        b'{"logits": [[1' + b"0" * 400 + b", 0, 0, 0]]}",
        b'{"logits": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"null",
        b'{"logits": [1,2,3,4], "topk": 3}',
        b'{"logits": [1,2,3,4], "top_k": "3"}',
        b'{"logits": [1,2,3,4], "top_k": 1.5}',
        b'{"logits": [1,2,3,4], "top_k": true}',
        b'{"logits": [1,2,3,4], "explain": "yes"}',
    ],
)
def test_a_json_body_that_breaks_the_rules_is_refused(service: Service, body: bytes) -> None:
    answer = service.post(SCORES, content=body, headers={"content-type": "application/json"})
    refused(answer, 422, "invalid-request", "JSON")


def test_lists_nested_deeper_than_arrays_are_refused(service: Service) -> None:
    body = b'{"logits": ' + b"[" * 100 + b"1" + b"]" * 100 + b"}"
    answer = service.post(SCORES, content=body, headers={"content-type": "application/json"})
    refused(answer, 422, "invalid-logits")


def npy_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(118 - 1) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([[np.nan, 0, 0, 0]])),
        npy(np.array([[np.inf, 0, 0, 0]])),
        npy(np.array([[1e39, 0, 0, 0]])),
        npy(np.array([[np.longdouble("1e4000"), 0, 0, 0]])),
        npy(np.array(["a", "b", "c", "d"])),
        npy(np.array([True, False, True, False])),
        npy(np.array([1j, 0, 0, 0])),
        npy(np.zeros((0, 4))),
        npy(np.zeros((2, 4)))[:-8],
        npy(np.zeros((2, 4))) + b"\0" * 8,
        npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 4)}"),
        npy_header("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}", b"cos\nsystem\n(S'true'\ntR."),
        npy_header("{'descr': '<f8', 'fortran_order': False, 'shape': (4,"),
        npy_header("((((((((((" * 10),
        b"\x93NUMPY",
        b"\x93NUMPY\x09\x00\x10\x00{}",
        b"not an npy file",
    ],
)
def test_an_npy_file_that_is_not_logits_is_refused(service: Service, data: bytes) -> None:
    refused(service.post(SCORES, content=data, headers={"content-type": "application/x-npy"}), 422, "invalid-logits")


def test_npy_logits_of_a_wrong_width_are_refused(service: Service) -> None:
    answer = service.post(SCORES, content=npy(np.zeros((2, 5))), headers={"content-type": "application/x-npy"})
    refused(answer, 422, "shape-mismatch", "(N, 4)", "(2, 5)")


@pytest.mark.parametrize("top_k", [0, -1, 5, 10**30, "two", "1.5", ""])
def test_a_top_k_that_is_no_number_of_classes_is_refused(service: Service, top_k: Any) -> None:
    refused(service.post(SCORES, params={"top_k": top_k}, json={"logits": LOGITS}), 422, "invalid-request", "top_k")
    if isinstance(top_k, int):
        refused(service.post(SCORES, json={"logits": LOGITS, "top_k": top_k}), 422, "invalid-request", "top_k")


@pytest.mark.parametrize(
    ("prior", "status", "kind"),
    [
        ("winter", 404, "unknown-prior"),
        ("", 404, "unknown-prior"),
        ([0.5, 0.5], 422, "shape-mismatch"),
        ([0.2, 0.2, 0.2, 0.2, 0.2], 422, "shape-mismatch"),
        ([0, 0, 0, 0], 422, "invalid-prior"),
        ([1, 1, -1, 1], 422, "invalid-prior"),
        ([[1, 1, 1, 1]], 422, "invalid-prior"),
        ([], 422, "invalid-prior"),
        (["1", "1", "1", "1"], 422, "invalid-prior"),
        ([None, 1, 1, 1], 422, "invalid-prior"),
        ({"ant": 1, "bee": 1, "cat": 1, "cow": 1}, 422, "unknown-class"),
        ({"ant": 1, "bee": 1, "cat": 1}, 422, "invalid-prior"),
        ({"ant": 1, "bee": 1, "cat": 1, "dog": "1"}, 422, "invalid-prior"),
        ({"ant": 1, "bee": 1, "cat": 1, "dog": [1]}, 422, "invalid-prior"),
        ({}, 422, "invalid-prior"),
    ],
)
@pytest.mark.parametrize("where", ["query", "body"])
def test_a_prior_that_is_none_is_refused(service: Service, prior: Any, status: int, kind: str, where: str) -> None:
    if where == "query":
        text = prior if isinstance(prior, str) else orjson.dumps(prior).decode()
        answer = service.post(SCORES, params={"prior": text}, json={"logits": LOGITS})
    else:
        answer = service.post(SCORES, json={"logits": LOGITS, "prior": prior})
    refused(answer, status, kind)


@pytest.mark.parametrize("prior", ["[NaN, 1, 1, 1]", "[1e999, 1, 1, 1]", "[1, 1, 1", '{"ant": Infinity}', "{ant: 1}"])
def test_an_inline_prior_that_is_not_json_is_refused(service: Service, prior: str) -> None:
    refused(service.post(SCORES, params={"prior": prior}, json={"logits": LOGITS}), 422, "invalid-prior", "JSON")


@pytest.mark.parametrize("prior", [5, True, 1.5])
def test_a_prior_in_the_body_is_a_name_or_a_law(service: Service, prior: Any) -> None:
    refused(service.post(SCORES, json={"logits": LOGITS, "prior": prior}), 422, "invalid-prior")


@pytest.mark.parametrize("kappa", [-0.51, 1.51, 1e300, "nan", "inf", "-inf"])
def test_a_kappa_out_of_range_is_told_the_range(service: Service, kappa: Any) -> None:
    answers = [service.post(SCORES, params={"kappa": kappa}, json={"logits": LOGITS})]
    if isinstance(kappa, float):
        answers.append(service.post(SCORES, json={"logits": LOGITS, "kappa": kappa}))
    for answer in answers:
        refused(answer, 422, "invalid-prior", "[-0.5, 1.5]", str(kappa))


@pytest.mark.parametrize("kappa", ["half", "0.5,1", "", [0.5], True, "NaN"])
def test_a_kappa_that_is_no_number_is_refused(service: Service, kappa: Any) -> None:
    refused(service.post(SCORES, json={"logits": LOGITS, "kappa": kappa}), 422, "invalid-request", "kappa")
    if kappa not in ("NaN", [0.5]):
        refused(service.post(SCORES, params={"kappa": kappa}, json={"logits": LOGITS}), 422, "invalid-request", "kappa")


@pytest.mark.parametrize("prior", ["uniform", [1, 1, 1, 1], "winter"])
def test_a_prior_and_a_kappa_are_one_too_many(service: Service, prior: Any) -> None:
    text = prior if isinstance(prior, str) else orjson.dumps(prior).decode()
    both = [
        service.post(SCORES, params={"prior": text, "kappa": 0}, json={"logits": LOGITS}),
        service.post(SCORES, params={"kappa": 0}, json={"logits": LOGITS, "prior": prior}),
        service.post(SCORES, params={"prior": text}, json={"logits": LOGITS, "kappa": 0}),
        service.post(SCORES, json={"logits": LOGITS, "prior": prior, "kappa": 0}),
    ]
    for answer in both:
        refused(answer, 422, "invalid-request", "prior and kappa", "Give one of them")


def test_an_option_in_query_and_body_is_refused(service: Service) -> None:
    answer = service.post(SCORES, params={"top_k": 1}, json={"logits": LOGITS, "top_k": 2})
    refused(answer, 422, "invalid-request", "top_k stands in the query and in the body")


def test_an_unknown_option_is_refused_and_not_ignored(service: Service) -> None:
    answer = service.post(SCORES, json={"logits": LOGITS}, params={"topk": 1})
    refused(answer, 422, "invalid-request", "'topk'", "top_k")


def animated() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def cut_off() -> bytes:
    return png(np.random.default_rng(1).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))[:6000]


def hundred_megapixels() -> bytes:
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "status", "kind", "words"),
    [
        (b"just a text", 422, "invalid-image", "begin with b'just a t'"),
        (animated(), 422, "invalid-image", "2 frames"),
        (hundred_megapixels(), 413, "image-too-large", "10000 x 10000"),
        (
            png(np.random.default_rng(1).integers(0, 256, size=(64, 64, 3), dtype=np.uint8))[:6000],
            422,
            "invalid-image",
            "damaged",
        ),
        (b"", 422, "invalid-request", "empty"),
    ],
)
@pytest.mark.parametrize("name", ["image/jpeg", None])
def test_a_file_that_is_not_one_still_image_is_refused(
    service: Service, data: bytes, status: int, kind: str, words: str, name: str | None
) -> None:
    headers = {} if name is None else {"content-type": name}
    refused(service.post(SCORES, content=data, headers=headers), status, kind, words)


def test_pixels_of_a_wrong_length_are_told_the_right_one(service: Service, pixels: np.ndarray) -> None:
    octets = {"content-type": "application/octet-stream"}
    answer = service.post(SCORES, content=pixels[0].tobytes()[:-1], headers=octets)
    refused(answer, 422, "invalid-image", f"{HEIGHT} x {WIDTH} x RGB = 144 bytes; got 143")


@pytest.mark.parametrize("kind", ["text/plain", "application/pdf", "video/mp4"])
def test_another_kind_of_body_is_refused(service: Service, kind: str) -> None:
    refused(service.post(SCORES, content=b"x", headers={"content-type": kind}), 415, "unsupported-body", kind)


def test_a_form_must_hold_files_and_nothing_else(service: Service, pixels: np.ndarray) -> None:
    refused(service.post(SCORES, files={"image": png(pixels[0])}, data={"top_k": "1"}), 422, "invalid-request", "query")
    broken = {"content-type": "multipart/form-data; boundary=x"}
    refused(service.post(SCORES, content=b"--y\r\n", headers=broken), 422, "invalid-request", "form")
    missing = {"content-type": "multipart/form-data"}
    refused(service.post(SCORES, content=b"--y\r\n", headers=missing), 422, "invalid-request", "form")


def test_one_bad_image_in_a_form_is_refused_as_a_whole(service: Service, pixels: np.ndarray) -> None:
    files = [("image", ("a.png", png(pixels[0]))), ("image", ("b.png", b"text"))]
    answer = service.post(SCORES, files=files)
    refused(answer, 422, "invalid-image", "file 2 (b.png): the bytes are not an image")


def test_a_form_says_which_of_its_images_is_too_large(
    make_service: Callable[..., Service], pets: Made, pixels: np.ndarray
) -> None:
    files = [("image", ("small.png", png(pixels[0, :2]))), ("image", ("dög.png", png(pixels[0])))]
    answer = make_service(pets, max_pixels=47).post(SCORES, files=files)
    refused(answer, 413, "image-too-large", "file 2 (dög.png): an image has at most 47")


def test_a_body_over_the_limit_is_refused_with_and_without_a_length(
    make_service: Callable[..., Service], pets: Made
) -> None:
    service = make_service(pets, max_body_bytes=1000)

    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100

    async def stream() -> Any:
        for piece in pieces():
            yield piece

    refused(service.post(SCORES, content=b"x" * 1001), 413, "body-too-large", "1,000", "announces 1,001")
    refused(service.post(SCORES, content=stream()), 413, "body-too-large", "1,000")
    assert service.post(SCORES, json={"logits": LOGITS}).status_code == 200


def test_the_limit_of_pixels_is_a_setting(make_service: Callable[..., Service], pets: Made, pixels: np.ndarray) -> None:
    refused(make_service(pets, max_pixels=47).post(SCORES, content=png(pixels[0])), 413, "image-too-large", "47")


def test_an_unknown_model_is_named(service: Service) -> None:
    answer = service.post("/v1/models/cars/scores", json={"logits": LOGITS})
    refused(answer, 404, "unknown-model", "'cars'", "pets")


def test_a_body_of_many_members_is_refused_in_a_few_words(service: Service) -> None:
    body = {"logits": LOGITS} | {f"option {number}": 1 for number in range(5000)}
    answer = service.post(SCORES, json=body)
    refused(answer, 422, "invalid-request", "got 5001 members")
    assert len(answer.content) < 1000


def test_an_answer_without_bound_is_refused_before_it_is_made(service: Service) -> None:
    rows = np.zeros((20_001, 4), dtype=np.uint8)
    refused(service.post(SCORES, content=npy(rows)), 413, "body-too-large", "20,000 examples", "20,001")
    assert service.post(SCORES, content=npy(rows[1:]), params={"top_k": 1}).status_code == 200
    tensor = {"name": "logits", "shape": [20_001, 4], "datatype": "FP32", "data": rows.ravel().tolist()}
    answer = service.post("/v2/models/pets/infer", json={"inputs": [tensor]})
    assert (answer.status_code, "20,001" in answer.json()["error"]) == (413, True)


def test_a_compressed_body_is_told_that_it_must_not_be(service: Service) -> None:
    body = gzip.compress(b'{"logits": [1, 2, 3, 4]}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    refused(service.post(SCORES, content=body, headers=headers), 415, "unsupported-body", "not compressed")


def test_what_a_client_sends_is_not_sent_back_at_length(service: Service) -> None:
    for path, options in (
        (SCORES, {"json": {"logits": [1, 2, 3, 4], "prior": "x" * 50_000}}),
        (SCORES, {"json": {"logits": [1, 2, 3, 4]}, "params": {"version": "x" * 50_000}}),
        (f"/v1/models/{'x' * 50_000}/scores", {"json": {"logits": [1, 2, 3, 4]}}),
    ):
        answer = service.post(path, **options)
        assert (answer.status_code, len(answer.content) < 1000) == (404, True)
