"""Numbers that clients send: JSON and .npy files, checked as whole arrays and not one by one."""

from __future__ import annotations

import io
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.calibration.errors import InvalidLogits, InvalidPrior
from models.calibration.types import FloatArray
from service.errors import InvalidRequest

NPY_MAGIC = b"\x93NUMPY"
NUMERIC = "iuf"  # dtype kinds: signed, unsigned and floating


def logits_of_npy(data: bytes) -> FloatArray:
    """`(N, C)` from an .npy file of `(C,)` or `(N, C)` numbers. Raises: InvalidLogits."""
    try:
        array = array_of_npy(data, NUMERIC)
    except ValueError as error:
        raise InvalidLogits(
            f"the logits are not a sound .npy file of numbers: {error}. Write it with numpy.save, as (C,) or (N, C)."
        ) from error
    return _rows(array)


def array_of_npy(data: bytes, kinds: str) -> NDArray[Any]:
    """The array of an .npy file whose dtype is of one of these kinds; nothing is unpickled.

    Raises: ValueError.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"format version {version} is not read; plain arrays need 1.0 or 2.0")
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = header(stream)
        if dtype.kind not in kinds:
            raise ValueError(f"its dtype is {dtype}")
        # The length is compared before anything is reserved: the header may promise terabytes.
        array = np.frombuffer(data, dtype=dtype, offset=stream.tell())
        return array.reshape(shape, order="F" if fortran_order else "C")
    except Exception as error:  # NumPy evaluates the header as text, which fails in many ways
        raise ValueError(str(error)) from error


def logits_of_json(values: Any) -> FloatArray:
    """`(N, C)` from a JSON list of numbers or of rows of numbers; checked as one array, not one by one.

    Raises: InvalidLogits.
    """
    return _rows(numbers(values, InvalidLogits, "logits are one list of numbers a row, all rows alike"))


def read_json(data: bytes) -> Any:
    """Raises: InvalidRequest for anything that is not JSON, NaN and numbers beyond float64 among it."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}. NaN and infinity are no JSON numbers.") from error


def _rows(array: Any) -> FloatArray:
    if array.ndim == 1:
        array = array[None]
    if array.size == 0:
        raise InvalidLogits(f"logits have at least one row and one number a class; got shape {array.shape}.")
    if array.dtype == np.float64:
        return np.ascontiguousarray(array)  # orjson writes rows of this order only
    with np.errstate(over="ignore"):  # a wider float becomes infinity, which is refused with the logits
        return np.asarray(array, dtype=np.float64, order="C")


def numbers(values: Any, error_class: type[InvalidLogits | InvalidPrior], rule: str) -> NDArray[Any]:
    """Lists of numbers, however deep, as an array. Raises: the given error with its rule."""
    level = [values]
    while level:  # before NumPy, which gives every element the room of the longest text among them
        kinds = set(map(type, level))
        if str in kinds:
            raise error_class(f"{rule}; got text among them.")
        level = list(chain.from_iterable(each for each in level if isinstance(each, list))) if list in kinds else []
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as error:
        raise error_class(f"{rule}; got lists of different lengths or depths.") from error
    if array.dtype.kind not in NUMERIC:
        raise error_class(f"{rule}; got something else among them ({array.dtype}).")
    return array
