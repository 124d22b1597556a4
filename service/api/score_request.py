"""A scores request: its options, what its body is, and its answer."""

import asyncio
from functools import lru_cache, partial
from typing import Annotated, Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from models.calibration.errors import InvalidImage
from models.calibration.prior import KAPPA_RANGE
from models.images import UInt8Array
from service.api.bodies import FORM, files_of
from service.api.call import LIGHT_BYTES, LIGHT_NUMBERS, Answer, Call
from service.api.invalid import invalid
from service.api.known_options import check_known
from service.errors import InvalidRequest, UnsupportedBody
from service.runtime import scoring
from service.runtime.arrays import NPY_MAGIC, logits_of_json, logits_of_npy, read_json
from service.runtime.batches import Files
from service.runtime.laws import LONGEST_KEPT
from service.runtime.live import LiveModel
from service.runtime.scoring import Options

OCTETS = "application/octet-stream"
LIGHT_LOGITS = 4 << 10  # bytes of logits that are answered on the event loop
UNTYPED = ("", "application/x-www-form-urlencoded")  # the second is what curl says when it is told nothing
# Told to clients and checked where the law is made, so that every way of asking gets one answer.
NOT_OF_THE_ANSWER = {"version", "calibration", "timeout"}
KAPPA_SCHEMA: JsonDict = {"minimum": KAPPA_RANGE[0], "maximum": KAPPA_RANGE[1]}


class ScoreOptions(BaseModel):
    """How the answer should look; a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")

    prior: Annotated[
        str | None,
        Field(
            description="Class law of the place where the images come from: `uniform`, `training`, the name of a "
            "stored prior, `none` (softmax of the debiased logits), or numbers: a JSON list in class order or a JSON "
            "object by class name. Without it, the model's active prior.",
            examples=["uniform"],
        ),
    ] = None
    kappa: Annotated[
        float | None,
        Field(
            description="Instead of `prior`: the law on the line between uniform (0) and the model's training law (1), "
            "proportional to the training counts to the power kappa. Below 0 it favours rare classes.",
            examples=[0.5],
            json_schema_extra=KAPPA_SCHEMA,
        ),
    ] = None
    version: Annotated[
        str | None,
        Field(description="Another version than the live one, by number or alias.", examples=["production"]),
    ] = None
    calibration: Annotated[
        str | None, Field(description="Another calibration than the live one, with its version.", examples=["c1"])
    ] = None
    top_k: Annotated[int | None, Field(ge=1, description="Only the k best classes, best first.", examples=[2])] = None
    explain: Annotated[
        bool, Field(description="Add the raw, debiased and adjusted probabilities.", examples=[True])
    ] = False
    timeout: Annotated[
        float | None,
        Field(gt=0, description="Seconds after which the answer is of no use; the service has a bound.", examples=[2]),
    ] = None


NUMBERS: JsonDict = {"type": "number"}
ROW: JsonDict = {"type": "array", "minItems": 1, "items": NUMBERS}
PRIOR_SCHEMA: JsonDict = {
    "anyOf": [{"type": "string"}, ROW, {"type": "object", "additionalProperties": NUMBERS}, {"type": "null"}]
}
LOGITS_RULE = "One row, or a list of rows: a number a class, in the model's order."


class LogitsRequest(BaseModel):
    """Logits as JSON; the numbers themselves are checked as one array later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    logits: Annotated[
        Any,
        Field(
            description=LOGITS_RULE, json_schema_extra={"anyOf": [ROW, {"type": "array", "minItems": 1, "items": ROW}]}
        ),
    ]
    prior: Annotated[
        Any, Field(description="As in the query, numbers as a list or an object.", json_schema_extra=PRIOR_SCHEMA)
    ] = None
    kappa: Annotated[float | None, Field(json_schema_extra=KAPPA_SCHEMA)] = None
    top_k: Annotated[int | None, Field(ge=1)] = None
    explain: bool = False


async def scores(call: Call, model: str) -> Answer:
    """Debiased scores of images or logits. Raises: whatever is wrong with the request."""
    query, options = _options(call.query)
    data = await call.body()
    if not data:
        raise InvalidRequest("the body is empty. Send a file: with curl, --data-binary @FILE.")
    encoding = call.text(b"content-encoding")
    if encoding and encoding.lower() != "identity":
        raise UnsupportedBody(f"scores requests are not compressed; got {encoding[:80]!r}.")
    if query.timeout is not None:
        call.wants_within(query.timeout)
    live = await call.live(model, version=query.version, calibration=query.calibration)
    kind = call.text(b"content-type").partition(";")[0].strip().lower()
    pixels: UInt8Array | Files | None = _raw_pixels(live, kind, data)
    if pixels is None:
        pixels = await _files(call, live, kind, data)
    if pixels is None:
        light = len(data) <= LIGHT_LOGITS and not query.explain
        return Answer(await call.do(partial(_of_logits, live, kind, data, query, options), light=light))
    try:
        return Answer(await _of_pixels(call, live, pixels, options))
    except InvalidImage as error:
        if kind.startswith("image/") or kind == FORM or live.input_size is None:
            raise
        height, width = live.input_size.height, live.input_size.width
        size = f"{height} x {width} x RGB = {height * width * 3}"
        raise InvalidImage(
            f"{error} Raw pixels, as application/octet-stream, are exactly {size} bytes; got {len(data)}."
        ) from error


def _options(query: bytes) -> tuple[ScoreOptions, Options]:
    """What stands in the query, and what of it is about the answer. Raises: InvalidRequest."""
    return _read_options(query) if len(query) <= LONGEST_KEPT else _read_options.__wrapped__(query)


@lru_cache(maxsize=256)
def _read_options(query: bytes) -> tuple[ScoreOptions, Options]:
    """Clients send the same few again and again."""
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    check_known([name for name, _ in given], list(ScoreOptions.model_fields))
    try:
        read = ScoreOptions.model_validate(dict(given))
    except ValidationError as error:
        raise invalid(error.errors(), within="query.") from error
    return read, Options(prior=read.prior, kappa=read.kappa, top_k=read.top_k, explain=read.explain)


def _raw_pixels(live: LiveModel, kind: str, data: bytes) -> UInt8Array | None:
    """One image as the model takes it, which is told by its length."""
    size = live.input_size
    if kind != OCTETS or size is None or len(data) != size.height * size.width * 3:
        return None
    return np.frombuffer(data, dtype=np.uint8).reshape(1, size.height, size.width, 3)


async def _files(call: Call, live: LiveModel, kind: str, data: bytes) -> Files | None:
    """The image files of a body; None for logits. Raises: LogitsOnly, UnsupportedBody, InvalidRequest."""
    unstated = kind == OCTETS or kind in UNTYPED
    if kind in ("application/json", "application/x-npy") or (unstated and data.startswith(NPY_MAGIC)):
        return None
    if not (unstated or kind == FORM or kind.startswith("image/")):
        raise UnsupportedBody(
            "scores are given for image/*, application/octet-stream (raw pixels), multipart/form-data (image files), "
            f"application/json (logits) and application/x-npy; got {kind}. Set the Content-Type header."
        )
    names, files = await _form(call, data) if kind == FORM else ((), (data,))
    if live.input_size is None:
        raise scoring.no_network(live)
    return Files(files, call.server.settings.max_pixels, names)


async def _form(call: Call, data: bytes) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    parsed = files_of(call.headers, data)
    return await parsed if len(data) <= LIGHT_BYTES else await call.do(partial(asyncio.run, parsed), light=False)


async def _of_pixels(call: Call, live: LiveModel, pixels: UInt8Array | Files, options: Options) -> bytes:
    scoring.check_options(live, options)
    law = await call.law(live, options.prior, options.kappa)
    if options.explain:
        logits = await call.run(live, pixels, None)
        return await call.do(lambda: _written(scoring.score(live, logits, options)), light=False)
    scored = await call.run(live, pixels, law.on_float32)
    work = partial(scoring.answer, live, law, scored, options.top_k)
    return await call.do(lambda: _written(work()), light=scored.size <= LIGHT_NUMBERS)


def _of_logits(live: LiveModel, kind: str, data: bytes, query: ScoreOptions, options: Options) -> bytes:
    if kind != "application/json":
        return _written(scoring.score(live, logits_of_npy(data), options))
    document = _document(data)
    if len(document) > 1:
        options = _merged(query, _logits_request(document))
    return _written(scoring.score(live, logits_of_json(document["logits"]), options))


def _written(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def _document(data: bytes) -> dict[str, Any]:
    document = read_json(data)
    if not isinstance(document, dict) or "logits" not in document:
        raise InvalidRequest('a JSON body is an object with the logits: {"logits": [[...]]}.')
    return document


def _logits_request(document: dict[str, Any]) -> LogitsRequest:
    rule = f"a JSON body holds {', '.join(LogitsRequest.model_fields)}"
    if len(document) > len(LogitsRequest.model_fields):  # or millions of unknown members are millions of errors
        raise InvalidRequest(f"{rule}; got {len(document)} members.")
    try:
        return LogitsRequest.model_validate(document)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, each['loc']))[:80]}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(f"{rule}; {found}.") from error


def _merged(query: ScoreOptions, request: LogitsRequest) -> Options:
    twice = sorted((query.model_fields_set & request.model_fields_set) - {"logits"})
    if twice:
        raise InvalidRequest(f"{twice[0]} stands in the query and in the body. Give it once.")
    given = {name: getattr(query, name) for name in query.model_fields_set - NOT_OF_THE_ANSWER}
    given |= {name: getattr(request, name) for name in request.model_fields_set - {"logits"}}
    return Options(**given)
