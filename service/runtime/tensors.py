"""Tensors of the Open Inference Protocol: from bytes and JSON to arrays and back. It knows neither models nor HTTP.

Sizes are compared before anything is reserved: a request may promise terabytes.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import BodyTooLarge, InvalidRequest, UnsupportedBody

BYTES = "BYTES"
DTYPES: dict[str, np.dtype[Any]] = {"UINT8": np.dtype("u1"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8")}
WINDOWS = {"gzip": 31, "deflate": 15}  # zlib's wbits for a gzip and a zlib stream
FLOAT32 = np.finfo(np.float32)
LENGTH = struct.Struct("<I")  # of an element of a BYTES tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """A tensor as it came: `data` is bytes where it follows the JSON, and otherwise what stands in the JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def inflated(body: bytes, encoding: str, limit: int) -> bytes:
    """The body without its Content-Encoding. Raises: UnsupportedBody, BodyTooLarge, InvalidRequest."""
    if encoding == "identity":
        return body
    if encoding not in WINDOWS:
        raise UnsupportedBody(f"a Content-Encoding is gzip, deflate or identity; got {encoding[:80]!r}.")
    stream = zlib.decompressobj(WINDOWS[encoding])
    try:
        data = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidRequest(
            f"the body is not a {encoding} stream: {error}. Send it as Content-Encoding says."
        ) from error
    if len(data) > limit:
        raise BodyTooLarge(f"a body has at most {limit:,} bytes (EQUIPOISE_MAX_BODY_BYTES); this one inflates to more.")
    if not stream.eof or stream.unused_data:
        came = "more follows it" if stream.eof else "it is cut off"
        raise InvalidRequest(f"the body is one complete {encoding} stream; {came}. Send it again.")
    return data


def split(body: bytes, header_length: int | None) -> tuple[bytes, bytes | None]:
    """The JSON of a body and the binary data after it, None for JSON alone. Raises: InvalidRequest."""
    if header_length is None:
        return body, None
    if not 0 <= header_length <= len(body):
        raise InvalidRequest(
            "Inference-Header-Content-Length is the length of the JSON at the beginning of the body, before any "
            f"compression; got {header_length} for a body of {len(body)} bytes."
        )
    return body[:header_length], body[header_length:]


def array_of(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor that is not BYTES, in its shape. Raises: InvalidRequest."""
    dtype = DTYPES[tensor.datatype]
    if not isinstance(tensor.data, bytes):
        return _array_of_json(tensor, dtype)
    if len(tensor.data) != tensor.size * dtype.itemsize:
        raise InvalidRequest(
            f"{_shown(tensor)} is {tensor.size * dtype.itemsize} bytes; got {len(tensor.data)}. "
            "Send the numbers row by row, little-endian."
        )
    return np.asarray(np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape))


def _array_of_json(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    values = _flat(tensor)
    whole = dtype.kind == "u"
    if whole:
        with suppress(TypeError, ValueError):  # or what is wrong is found below
            return np.frombuffer(bytes(values), dtype=dtype).reshape(tensor.shape)
    # Not by NumPy, which gives every element the room of the longest text among them.
    others = set(map(type, values)) - ({int} if whole else {int, float})
    if others:
        kinds = ", ".join(sorted(each.__name__ for each in others))
        rule = "whole numbers" if whole else "numbers"
        raise InvalidRequest(f"{_shown(tensor)} holds {rule} and nothing else; got {kinds} among them.")
    if whole and not 0 <= min(values) <= max(values) <= 255:
        raise InvalidRequest(f"{_shown(tensor)} holds numbers from 0 to 255; got {min(values)} to {max(values)}.")
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinity, which the algebra refuses
        return np.array(values, dtype=np.float64).astype(dtype).reshape(tensor.shape)


def _flat(tensor: Tensor) -> list[Any]:
    """The elements of JSON data, which is a flat list or nested as the shape says."""
    values = tensor.data
    if isinstance(values, list) and len(values) == tensor.size and not isinstance(values[0], list):
        return values
    rows = [values]
    for length in tensor.shape:
        if not all(isinstance(row, list) and len(row) == length for row in rows):
            raise InvalidRequest(
                f"the data of {_shown(tensor)} is a list of {tensor.size} elements, or lists nested as the shape; got "
                "something else."
            )
        rows = list(chain.from_iterable(rows))
    return rows


def elements_of(tensor: Tensor) -> list[bytes]:
    """The elements of a BYTES tensor: each after its length where they are binary, in base64 in JSON.

    Raises: InvalidRequest.
    """
    if isinstance(tensor.data, bytes):
        return _elements_of_bytes(tensor)
    try:
        return [base64.b64decode(each, validate=True) for each in _flat(tensor)]
    except (TypeError, ValueError, binascii.Error) as error:
        raise InvalidRequest(f"{_shown(tensor)} holds files in base64 as JSON strings: {error}.") from error


def _elements_of_bytes(tensor: Tensor) -> list[bytes]:
    data, start = tensor.data, 0
    found: list[bytes] = []
    for _ in range(tensor.size):
        begin = start + LENGTH.size
        end = begin + LENGTH.unpack_from(data, start)[0] if begin <= len(data) else begin
        if end > len(data):
            raise InvalidRequest(
                f"{_shown(tensor)} is {tensor.size} elements, each after its length in 4 bytes, little-endian; element "
                f"{len(found)} goes beyond the {len(data)} bytes that came."
            )
        found.append(data[begin:end])
        start = end
    if start != len(data):
        raise InvalidRequest(f"{_shown(tensor)} ends after {start} bytes by its lengths; got {len(data)}.")
    return found


def float32(values: NDArray[Any]) -> NDArray[np.float32]:
    """As outputs are sent; what lies beyond float32 becomes its end, since JSON has no infinity."""
    if values.dtype == DTYPES["FP32"]:
        return values
    return np.asarray(np.clip(values, FLOAT32.min, FLOAT32.max), dtype="<f4")


def bytes_of(values: NDArray[np.float32] | Sequence[str]) -> bytes:
    """Binary data of an output: numbers row by row, or texts each after its length."""
    if isinstance(values, np.ndarray):
        return values.tobytes()
    texts = [each.encode() for each in values]
    return b"".join(LENGTH.pack(len(each)) + each for each in texts)


def _shown(tensor: Tensor) -> str:
    return f"{tensor.datatype} {tensor.name!r} of shape {list(tensor.shape)}"
