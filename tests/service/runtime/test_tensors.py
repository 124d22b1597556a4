"""The codec of the Open Inference Protocol: round trips, and nothing but documented errors for anything else."""

import base64
import gzip
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedBody
from service.runtime.tensors import DTYPES, Tensor, array_of, bytes_of, elements_of, float32, inflated, split

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
)
TENSORS = st.builds(
    Tensor,
    name=st.just("images"),
    datatype=st.sampled_from([*DTYPES, "BYTES"]),
    shape=st.lists(st.integers(1, 3) | st.integers(1, 1 << 40), min_size=1, max_size=4).map(tuple),
    data=st.binary(max_size=64) | JSON,
)


def tensor(datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    return Tensor(name="x", datatype=datatype, shape=shape, data=data)


@given(st.data(), st.sampled_from(sorted(DTYPES)), SHAPES)
def test_numbers_come_back_from_bytes_and_from_both_kinds_of_json(data: Any, datatype: str, shape: tuple) -> None:
    sent = data.draw(
        arrays.arrays(
            DTYPES[datatype],
            shape,
            elements={"allow_nan": False, "allow_infinity": False} if datatype != "UINT8" else None,
        )
    )
    for form in (sent.tobytes(), sent.tolist(), sent.ravel().tolist()):
        came = array_of(tensor(datatype, shape, form))
        assert came.dtype == sent.dtype
        np.testing.assert_array_equal(came, sent)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5))
def test_files_come_back_from_the_bytes_that_tritonclient_writes_and_from_base64(files: list[bytes]) -> None:
    binary = serialize_byte_tensor(np.array(files, dtype=object)).item()
    assert elements_of(tensor("BYTES", (len(files),), binary)) == files
    assert elements_of(tensor("BYTES", (len(files),), [base64.b64encode(each).decode() for each in files])) == files


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_texts_and_numbers_are_written_as_tritonclient_reads_them(texts: list[str]) -> None:
    assert [each.decode() for each in deserialize_bytes_tensor(bytes_of(texts))] == texts
    numbers = float32(np.array([[0.1, 1e300], [-1e300, -0.0]]))
    assert np.frombuffer(bytes_of(numbers), dtype="<f4").tolist() == numbers.ravel().tolist()
    assert np.isfinite(numbers).all()


@given(TENSORS)
def test_no_tensor_gives_anything_but_its_elements_or_a_documented_error(sent: Tensor) -> None:
    read = elements_of if sent.datatype == "BYTES" else array_of
    try:
        came = read(sent)
    except InvalidRequest:
        return
    assert (len(came) if isinstance(came, list) else came.shape) in (sent.size, sent.shape)


@given(st.binary(max_size=40), st.none() | st.integers(-3, 50) | st.integers())
def test_a_body_is_split_where_the_header_says_or_refused(body: bytes, length: int | None) -> None:
    if length is None or 0 <= length <= len(body):
        header, rest = split(body, length)
        assert header + (rest or b"") == body
        assert (len(header) if rest is not None else None) == length
    else:
        with pytest.raises(InvalidRequest, match=f"got {length} for a body of {len(body)} bytes"):
            split(body, length)


@given(st.binary(max_size=200), st.sampled_from(["identity", "gzip", "deflate"]), st.integers(1, 200))
def test_a_body_is_inflated_within_the_limit(body: bytes, encoding: str, limit: int) -> None:
    packed = {"identity": bytes, "gzip": gzip.compress, "deflate": zlib.compress}[encoding](body)
    if len(body) > limit and encoding != "identity":
        with pytest.raises(BodyTooLarge, match=f"{limit} bytes"):
            inflated(packed, encoding, limit)
    else:
        assert inflated(packed, encoding, limit) == body


@given(st.binary(max_size=60), st.sampled_from(["gzip", "deflate"]), st.binary(min_size=1, max_size=9), st.data())
def test_a_damaged_stream_is_refused(body: bytes, encoding: str, more: bytes, data: Any) -> None:
    packed = (gzip.compress if encoding == "gzip" else zlib.compress)(body)
    cut = packed[: data.draw(st.integers(0, len(packed) - 1))]
    for damaged in (more, cut, packed + more):
        with pytest.raises(InvalidRequest, match=f"{encoding} stream"):
            inflated(damaged, encoding, 1000)


def test_a_bomb_stops_at_the_limit() -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert len(bomb) < 50_000
    with pytest.raises(BodyTooLarge, match="EQUIPOISE_MAX_BODY_BYTES"):
        inflated(bomb, "deflate", 1000)


def test_an_unknown_encoding_is_named() -> None:
    with pytest.raises(UnsupportedBody, match="gzip, deflate or identity; got 'br'"):
        inflated(b"", "br", 1000)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (tensor("FP32", (2, 2), bytes(15)), "16 bytes; got 15"),
        (tensor("FP64", (2, 2), bytes(16)), "32 bytes; got 16"),
        (tensor("UINT8", (1 << 20, 1 << 20), b""), f"{1 << 40} bytes; got 0"),
        (tensor("UINT8", (2,), [1, 256]), "0 to 255; got 1 to 256"),
        (tensor("UINT8", (2,), [1, -1]), "0 to 255; got -1 to 1"),
        (tensor("UINT8", (2,), [1, 2.0]), "whole numbers and nothing else; got float"),
        (tensor("FP32", (2,), [1, True]), "got bool"),
        (tensor("FP32", (2,), [1, "a" * 1_000_000]), "got str"),
        (tensor("FP32", (2, 2), [[1, 2], [3]]), "nested as the shape"),
        (tensor("FP32", (2, 2), [[1, 2, 3, 4]]), "nested as the shape"),
        (tensor("FP32", (2, 1), [1, [2]]), "got list"),
        (tensor("FP32", (1,), None), "a list of 1 elements"),
        (tensor("BYTES", (1,), b"\x05\x00\x00\x00abc"), "element 0 goes beyond the 7 bytes"),
        (tensor("BYTES", (2,), b"\x01\x00\x00\x00a\x01\x00"), "element 1 goes beyond"),
        (tensor("BYTES", (1,), b"\xff\xff\xff\xff"), "element 0 goes beyond"),
        (tensor("BYTES", (1,), b"\x01\x00\x00\x00abc"), "ends after 5 bytes by its lengths; got 7"),
        (tensor("BYTES", (1,), ["not base64!"]), "base64"),
        (tensor("BYTES", (1,), [7]), "base64"),
    ],
)
def test_a_wrong_tensor_is_told_the_rule_and_what_came(sent: Tensor, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        (elements_of if sent.datatype == "BYTES" else array_of)(sent)
