"""From the body of a request to scores: what the body is, the logits it stands for, and the answer."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior
from models.calibration.prior import prior_between
from models.calibration.types import ClassPrior, DebiasedLogits, FloatArray, RawLogits, softmax
from models.images import UInt8Array, decode_image
from service.errors import InvalidRequest, LogitsOnly
from service.runtime.live import LiveModel

NPY_MAGIC = b"\x93NUMPY"
NUMERIC = "iuf"  # dtype kinds: signed, unsigned and floating


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Options:
    """How a client wants the answer. `prior` is a name, or numbers in class order or by class name; `kappa` is the law
    n^kappa between uniform (0) and training (1). One of the two at most; without both, the active prior."""

    prior: str | Sequence[Any] | dict[str, Any] | None = None
    kappa: float | None = None
    top_k: int | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scored:
    """From logits to scores, `(N, C)`. Args: prior, None for the word `none`; named, what answers say of the prior."""

    raw: RawLogits
    debiased: DebiasedLogits
    scores: FloatArray
    prior: ClassPrior | None
    named: dict[str, Any]


def scored(live: LiveModel, logits: FloatArray, options: Options) -> Scored:
    """Args: logits `(N, C)`, raw. Raises: as `score`."""
    raw = RawLogits(logits)
    debiased = live.deployment.calibration.debias(raw)
    named, prior = _prior(live, options)
    scores = debiased.scores() if prior is None else debiased.adjust(prior).scores()
    return Scored(raw=raw, debiased=debiased, scores=scores, prior=prior, named=named)


def score(live: LiveModel, logits: FloatArray, options: Options) -> dict[str, Any]:
    """The answer to a scores request, ready for orjson with numpy; it depends on the state and the input alone.

    Args: logits `(N, C)`, raw. Raises: ShapeMismatch, InvalidLogits, InvalidPrior, UnknownPrior, UnknownClass,
        InvalidRequest for a wrong `top_k`, or a `prior` and a `kappa`.
    """
    if options.top_k is not None and not 1 <= options.top_k <= len(live.class_names):
        raise InvalidRequest(f"top_k is 1 to {len(live.class_names)}, the number of classes; got {options.top_k}.")
    found = scored(live, logits, options)
    results = [_result(live.class_names, row, options.top_k) for row in found.scores]
    if options.explain:
        for result, explanation in zip(results, _explain(found), strict=True):
            result["explain"] = explanation
    return {
        "model": live.name,
        "version": live.version,
        "calibration": {"id": live.calibration, "method": live.deployment.calibration.method},
        "prior": found.named,
        "results": results,
    }


def logits_of_images(
    live: LiveModel, files: Sequence[bytes], *, max_pixels: int, names: Sequence[str] = ()
) -> FloatArray:
    """`(N, C)` from image files; `names`, where they have any, are told in errors.

    Raises: LogitsOnly, InvalidImage, ImageTooLarge.
    """
    if live.input_size is None or live.runner is None:
        raise _no_network(live)
    images = []
    for number, data in enumerate(files, start=1):
        try:
            size = live.input_size
            images.append(decode_image(data, height=size.height, width=size.width, max_pixels=max_pixels))
        except (InvalidImage, ImageTooLarge) as error:
            if not names:
                raise
            raise type(error)(f"file {number} ({names[number - 1]}): {error}") from error
    return live.runner.run(np.stack(images))


def logits_of_octets(live: LiveModel, data: bytes, *, pixels: bool, max_pixels: int) -> FloatArray:
    """`(N, C)` from a body of no stated kind: an .npy file or an image file; where `pixels` is true and the length is
    exactly right, raw pixels first. Raises: LogitsOnly, InvalidLogits, InvalidImage, ImageTooLarge."""
    if live.input_size is None or live.runner is None:
        if not data.startswith(NPY_MAGIC):
            raise _no_network(live)
        return logits_of_npy(data)
    shape = (live.input_size.height, live.input_size.width, 3)
    if pixels and len(data) == np.prod(shape):
        image: UInt8Array = np.frombuffer(data, dtype=np.uint8).reshape(1, *shape)
        return live.runner.run(image)
    if data.startswith(NPY_MAGIC):
        return logits_of_npy(data)
    try:
        return logits_of_images(live, [data], max_pixels=max_pixels)
    except InvalidImage as error:
        size = f"{shape[0]} x {shape[1]} x RGB = {np.prod(shape)}"
        raise InvalidImage(
            f"{error} Raw pixels, as application/octet-stream, are exactly {size} bytes; got {len(data)}."
        ) from error


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
    return _rows(_numbers(values, InvalidLogits, "logits are one list of numbers a row, all rows alike"))


def read_json(data: bytes) -> Any:
    """Raises: InvalidRequest for anything that is not JSON, NaN and numbers beyond float64 among it."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not JSON: {error}. NaN and infinity are no JSON numbers.") from error


def _no_network(live: LiveModel) -> LogitsOnly:
    return LogitsOnly(
        f"model {live.name!r} has no network and takes no images. Send its logits as JSON (with the Content-Type "
        "application/json) or as an .npy file."
    )


def _rows(array: Any) -> FloatArray:
    if array.ndim == 1:
        array = array[None]
    if array.size == 0:
        raise InvalidLogits(f"logits have at least one row and one number a class; got shape {array.shape}.")
    with np.errstate(over="ignore"):  # a wider float becomes infinity, which RawLogits refuses
        return np.asarray(array, dtype=np.float64, order="C")  # orjson writes rows of this order only


def _numbers(values: Any, error_class: type[InvalidLogits | InvalidPrior], rule: str) -> Any:
    level = [values]
    while level:  # before NumPy, which gives every element the room of the longest text among them
        if str in set(map(type, level)):
            raise error_class(f"{rule}; got text among them.")
        level = list(chain.from_iterable(each for each in level if isinstance(each, list)))
    try:
        array = np.array(values)
    except (ValueError, OverflowError) as error:
        raise error_class(f"{rule}; got lists of different lengths or depths.") from error
    if array.dtype.kind not in NUMERIC:
        raise error_class(f"{rule}; got something else among them ({array.dtype}).")
    return array


def _prior(live: LiveModel, options: Options) -> tuple[dict[str, Any], ClassPrior | None]:
    """What the answer says of the prior, and the law; the law is None for `none`."""
    asked, kappa = options.prior, options.kappa
    if kappa is not None:
        if asked is not None:
            raise InvalidRequest("prior and kappa both say which class law is meant. Give one of them.")
        return {"name": "kappa", "kappa": kappa}, prior_between(live.deployment.ledger.class_counts, kappa)
    if asked is None:
        return live.prior_shown(live.prior), live.deployment.prior
    if isinstance(asked, str) and not asked.lstrip().startswith(("[", "{")):
        law = live.prior_named(asked)
        return live.prior_shown(asked), law
    return {"name": "inline"}, _inline_prior(live, asked)


def _inline_prior(live: LiveModel, asked: str | Sequence[Any] | dict[str, Any]) -> ClassPrior:
    numbers = _inline(asked) if isinstance(asked, str) else asked
    rule = "a prior is one number a class, as a list in class order or an object by class name"
    if isinstance(numbers, dict):
        _numbers(list(numbers.values()), InvalidPrior, rule)
        return ClassPrior.from_mapping(numbers, live.class_names)
    return ClassPrior.from_weights(_numbers(numbers, InvalidPrior, rule))


def _inline(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidPrior(f"a prior that begins with [ or {{ is JSON; got {text[:80]!r}: {error}.") from error


def _result(class_names: Sequence[str], scores: FloatArray, top_k: int | None) -> dict[str, Any]:
    best = int(scores.argmax())
    result: dict[str, Any] = {"class": class_names[best], "score": scores[best]}
    if top_k is None:
        return result | {"scores": scores}
    order = np.argsort(-scores, kind="stable")[:top_k]
    return result | {"top": [{"class": class_names[index], "score": scores[index]} for index in order]}


def _explain(found: Scored) -> list[dict[str, Any]]:
    """Probabilities at each step; the log prior shift is null (minus infinity) for a class that cannot occur."""
    implied, prior = found.debiased.implied_prior, found.prior
    shift = np.zeros(implied.num_classes) if prior is None else prior.log_probs - implied.log_probs
    steps = zip(found.raw.scores(), softmax(found.debiased.values), found.scores, strict=True)
    return [
        {"raw": before, "debiased": between, "adjusted": after, "log_prior_shift": shift}
        for before, between, after in steps
    ]
