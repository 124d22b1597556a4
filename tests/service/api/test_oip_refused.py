"""Whatever is wrong with a request of the Open Inference Protocol, the answer is a documented error and never a 500."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.settings import Settings
from tests.service.api.asking import LOGITS, inference_refused
from tests.service.bundles import HEIGHT, WIDTH, Made, write_bundle
from tests.service.conftest import Service, png

INFER = "/v2/models/pets/infer"
LENGTH = "Inference-Header-Content-Length"
PIXELS = bytes(HEIGHT * WIDTH * 3)
SIZE = len(PIXELS)
DOCUMENTED = {200, 400, 404, 413, 415}
ONE = {"name": "logits", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests: what is refused changes nothing."""
    folder = tmp_path_factory.mktemp("refusing")
    chosen = Settings(state_dir=folder / "state", workers=0, model_threads=1)
    service = Service(create_app(chosen, [write_bundle(folder / "bundle").path]))
    yield service
    service.close()


def images(**changed: Any) -> dict:
    return {"name": "images", "shape": [1, HEIGHT, WIDTH, 3], "datatype": "UINT8", **changed}


def sent(size: Any = SIZE, **changed: Any) -> dict:
    return images(parameters={"binary_data_size": size}, **changed)


def binary(document: Any, data: bytes = PIXELS, **headers: str) -> dict:
    header = document if isinstance(document, bytes) else orjson.dumps(document)
    return {"content": header + data, "headers": {LENGTH: str(len(header))} | headers}


def asked(service: Service, **changed: Any) -> httpx.Response:
    return service.post(INFER, json={"inputs": [ONE]} | changed)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ([], "Input should be"),
        ({}, "inputs: Field required"),
        ({"inputs": []}, "at least 1 item"),
        ({"inputs": [ONE, ONE]}, "at most 1 item"),
        ({"inputs": [ONE], "output": []}, "output: Extra inputs are not permitted"),
        ({"inputs": [ONE], "id": 7}, "id: Input should be a valid string, got 7"),
        ({"inputs": [ONE | {"name": "pixels"}]}, "named images or image or logits; got 'pixels'"),
        ({"inputs": [ONE | {"datatype": "FP16"}]}, "got 'FP16'"),
        ({"inputs": [ONE | {"datatype": "UINT8"}]}, "input 'logits' is FP32 or FP64; got UINT8"),
        ({"inputs": [ONE | {"shape": [1, 3]}]}, "shape [-1, 4], where -1 is any number; got [1, 3]"),
        ({"inputs": [ONE | {"shape": [4]}]}, "got [4]"),
        ({"inputs": [ONE | {"shape": [0, 4]}]}, "greater than or equal to 1, got 0"),
        ({"inputs": [ONE | {"shape": [-1, 4]}]}, "greater than or equal to 1, got -1"),
        ({"inputs": [ONE | {"shape": [1 << 60, 4]}]}, "elements"),
        ({"inputs": [ONE | {"data": [1, 2, 3]}]}, "a list of 4 elements"),
        ({"inputs": [ONE | {"data": [1, 2, 3, "4"]}]}, "got str"),
        ({"inputs": [ONE | {"data": [1, 2, 3, 1e39]}]}, "float32"),
        ({"inputs": [images(data=PIXELS.decode())]}, "elements"),
        ({"inputs": [images(shape=[1, 5, 5, 3], data=[0] * 75)]}, f"[-1, {HEIGHT}, {WIDTH}, 3]"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AAAA"]}]}, "element 0 of 'image'"),
        ({"inputs": [{"name": "image", "shape": [1001], "datatype": "BYTES", "data": []}]}, "at most 1000 files"),
        ({"inputs": [ONE], "outputs": [{"name": "probs"}]}, "got 'probs'"),
        ({"inputs": [ONE], "outputs": [{"name": "scores"}] * 2}, "asked for once; got scores, scores"),
        ({"inputs": [ONE], "outputs": [{"name": "scores", "parameters": {"classification": 5}}]}, "1 to 4"),
        ({"inputs": [ONE], "outputs": [{"name": "scores", "parameters": {"classification": 0}}]}, "got 0"),
        ({"inputs": [ONE], "outputs": [{"name": "scores", "parameters": {"shared_memory_region": "a"}}]}, "shared_mem"),
        ({"inputs": [ONE], "parameters": {"top_k": 2}}, "parameters.top_k"),
        ({"inputs": [ONE], "parameters": {"kappa": 9}}, "kappa"),
        ({"inputs": [ONE], "parameters": {"kappa": True}}, "kappa"),
        ({"inputs": [ONE], "parameters": {"prior": "[1, 2]"}}, "prior"),
        ({"inputs": [ONE], "parameters": {"prior": f'["{"1" * 1_000_000}"{", 1" * 100_000}]'}}, "got text among them"),
        ({"inputs": [ONE], "parameters": {"prior": "uniform", "kappa": 0.5}}, "Give one of them"),
        ({"inputs": [ONE], "parameters": {"version": "1", "calibration": "c1"}}, "not both"),
        ({"inputs": [ONE], "parameters": {str(number): 1 for number in range(100_000)}}, "100000 members"),
    ],
)
def test_a_wrong_request_is_told_the_rule_and_what_came(service: Service, document: Any, words: str) -> None:
    inference_refused(service.post(INFER, json=document), 400, words)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (binary({"inputs": [sent()]}, PIXELS[:-1]), f"the number of bytes after the JSON, {SIZE - 1}"),
        (binary({"inputs": [sent()]}, PIXELS + b"a"), f"after the JSON, {SIZE + 1}; got {SIZE}"),
        (binary({"inputs": [sent(-1)]}), "binary_data_size: Input should be greater than or equal to 0, got -1"),
        (binary({"inputs": [sent(SIZE - 3)]}, PIXELS[:-3]), f"is {SIZE} bytes; got {SIZE - 3}"),
        (binary({"inputs": [sent(data=[1])]}), "in the JSON or after it; got both"),
        (binary({"inputs": [images()]}), "set binary_data_size"),
        (binary({"inputs": [sent(shape=[1 << 50, HEIGHT, WIDTH, 3])]}), f"got {SIZE}"),
        ({"json": {"inputs": [sent()]}}, f"needs the header {LENGTH}"),
        (binary({"inputs": [sent()]}, **{LENGTH: "99999"}), "the length of the JSON at the beginning of the body"),
        (binary({"inputs": [sent()]}, **{LENGTH: "-1"}), LENGTH),
        (binary({"inputs": [sent()]}, **{LENGTH: "ten"}), LENGTH),
        (binary({"inputs": [sent()]}, **{LENGTH: "9" * 5000}), LENGTH),
        (binary({"inputs": [sent()]}, **{LENGTH: "0"}), "not JSON"),
        (binary({"inputs": [sent()]}, **{LENGTH: "12"}), "not JSON"),
        (binary(b"[" * 200_000), "not JSON"),
        (binary({"inputs": [ONE | {"data": None, "parameters": {"binary_data_size": 16}}]},
                np.full(4, np.nan, np.float32).tobytes()), "finite"),
        ({"content": b""}, "not JSON"),
        ({"content": b"\xff\xfe"}, "not JSON"),
        ({"content": b'{"inputs": [{"name": "logits", "shape": [1, 4], "datatype": "FP32", "data": [NaN]}]}'}, "NaN"),
        ({"content": gzip.compress(b"{}")[:-3], "headers": {"Content-Encoding": "gzip"}}, "gzip stream; it is cut off"),
        ({"content": b"{}", "headers": {"Content-Encoding": "deflate"}}, "not a deflate stream"),
    ],
)  # fmt: skip
def test_a_body_that_does_not_hold_what_it_says_is_refused(service: Service, request_: dict, words: str) -> None:
    inference_refused(service.post(INFER, **request_), 400, words)


def test_a_nest_of_lists_is_refused_and_not_followed(service: Service) -> None:
    nest: Any = 1.0
    for _ in range(500):
        nest = [nest]
    inference_refused(service.post(INFER, json={"inputs": [ONE | {"shape": [4, 4], "data": nest}]}), 400, "nested")


def test_what_is_too_large_is_refused_with_413_also_when_it_is_compressed(
    make_service: Callable[..., Service], pets: Made
) -> None:
    service = make_service(pets, max_body_bytes=10_000, max_pixels=100)
    body = orjson.dumps({"inputs": [ONE], "id": "a" * 10_000})
    inference_refused(service.post(INFER, content=body), 413, "10,000 bytes")
    packed = zlib.compress(body)
    assert len(packed) < 200
    headers = {"Content-Encoding": "deflate"}
    inference_refused(service.post(INFER, content=packed, headers=headers), 413, "10,000 bytes", "inflates")
    picture = png(np.zeros((20, 20, 3), dtype=np.uint8))
    data = len(picture).to_bytes(4, "little") + picture
    one = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    inference_refused(service.post(INFER, **binary({"inputs": [one]}, data)), 413, "100 pixels", "20 x 20")


def test_what_is_not_there_is_404(service: Service) -> None:
    inference_refused(service.post("/v2/models/birds/infer", json={"inputs": [ONE]}), 404, "'birds'", "pets")
    inference_refused(service.post("/v2/models/pets/versions/7/infer", json={"inputs": [ONE]}), 404, "7")
    inference_refused(service.get("/v2/models/pets/versions/beta"), 404, "beta", "production")
    inference_refused(service.get("/v2/models/pets/versions/7/ready"), 404, "7")
    inference_refused(asked(service, parameters={"prior": "winter"}), 404, "winter")
    inference_refused(asked(service, parameters={"calibration": "c9"}), 404, "c9")
    inference_refused(asked(service, parameters={"calibration": "best"}), 404, "best")


def test_a_version_stands_in_one_place(service: Service) -> None:
    document = {"inputs": [ONE], "parameters": {"version": "1"}}
    inference_refused(service.post("/v2/models/pets/versions/1/infer", json=document), 400, "Give it once")


def test_an_unknown_encoding_is_415(service: Service) -> None:
    answer = service.post(INFER, json={"inputs": [ONE]}, headers={"Content-Encoding": "br"})
    inference_refused(answer, 415, "gzip, deflate or identity; got 'br'")


def test_a_page_of_another_site_is_refused_in_the_same_form(service: Service) -> None:
    answer = service.post(INFER, json={"inputs": [ONE]}, headers={"Sec-Fetch-Site": "cross-site"})
    inference_refused(answer, 403, "another site")


def test_numbers_beyond_float32_on_the_way_out_are_its_end(service: Service) -> None:
    edge = [[3e38, -3e38, 3e38, -3e38]]
    answer = asked(service, inputs=[ONE | {"datatype": "FP64", "data": edge}])
    assert answer.status_code == 200
    assert all(np.isfinite(each["data"]).all() for each in answer.json()["outputs"])


VALID = [
    orjson.dumps({"inputs": [{"name": "logits", "shape": [2, 4], "datatype": "FP64", "data": LOGITS}]}),
    orjson.dumps({"inputs": [sent()], "outputs": [{"name": "scores"}], "parameters": {"kappa": 0.5}}) + PIXELS,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid request with some of its bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        data[start : start + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
    return bytes(data)


@settings(max_examples=300, deadline=None)
@given(mutated() | st.binary(max_size=60), st.none() | st.integers(0, 300) | st.just(len(VALID[1]) - SIZE))
def test_no_mutated_request_finds_anything_but_an_answer_or_a_documented_error(
    service: Service, body: bytes, length: int | None
) -> None:
    answer = service.post(INFER, content=body, headers={} if length is None else {LENGTH: str(length)})
    assert answer.status_code in DOCUMENTED, answer.text
    assert answer.status_code == 200 or list(answer.json()) == ["error"]


near = st.integers(-2, 2) | st.sampled_from([-SIZE, SIZE, 1 << 40])  # too short, too long, negative, huge
right = st.just(0)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["UINT8", "UINT8", "INT8", "FP32", "FP64", "BYTES", "BOOL", ""]),
    st.sampled_from(
        [[1, HEIGHT, WIDTH, 3], [1, HEIGHT, WIDTH, 3], [SIZE], [2, HEIGHT, WIDTH, 3], [-1, HEIGHT, WIDTH, 3]]
    ),
    right | near,
    right | near,
    right | near,
    st.integers(1, 3),
)
def test_a_binary_header_is_believed_only_where_all_of_it_fits(
    service: Service, datatype: str, shape: list[int], size: int, length: int, data: int, inputs: int
) -> None:
    tensors = [sent(SIZE + size, datatype=datatype) | {"shape": shape} for _ in range(inputs)]  # which overlap
    header = orjson.dumps({"inputs": tensors, "outputs": [{"name": "scores"}]})
    body = header + bytes(max(0, min(SIZE + data, 4 * SIZE)))
    answer = service.post(INFER, content=body, headers={LENGTH: str(len(header) + length)})
    fits = (datatype, shape, inputs) == ("UINT8", [1, HEIGHT, WIDTH, 3], 1) and size == length == 0
    assert answer.status_code == (200 if fits and len(body) == len(header) + SIZE else 400), answer.text
