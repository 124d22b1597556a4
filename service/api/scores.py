"""`POST /v1/models/{model}/scores`: images or logits in, debiased scores out."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.config import JsonDict

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior, ShapeMismatch
from models.calibration.prior import KAPPA_RANGE
from models.calibration.types import FloatArray
from service.api.dependencies import FORM, Body, BodyDep, FollowerDep, Json, SettingsDep
from service.api.parameters import ModelName
from service.api.recalibration import number_of
from service.api.responding import BINARY
from service.api.schemas import ScoresAnswer
from service.errors import (
    BodyTooLarge,
    CrossSite,
    InvalidRequest,
    LogitsOnly,
    ModelNotLoaded,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
    UnsupportedBody,
    problem_response,
)
from service.follow import Follower
from service.runtime import scoring
from service.runtime.live import LiveModel
from service.runtime.scoring import Options

router = APIRouter(tags=["scores"])

OCTETS = "application/octet-stream"
UNTYPED = ("", "application/x-www-form-urlencoded")  # the second is what curl says when it is told nothing
# Told to clients and checked where the law is made, so that every way of asking gets one answer.
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


LOGITS_EXAMPLES = {
    "one row": {"value": {"logits": [2.1, -0.3, 0.4, 0.0]}},
    "rows and options": {
        "value": {"logits": [[2.1, -0.3, 0.4, 0.0], [0.2, 0.1, 0.0, 1.8]], "prior": [5, 10, 20, 65], "top_k": 2}
    },
}
ANSWER_EXAMPLE = {
    "model": "pets",
    "version": "1",
    "calibration": {"id": "c1", "method": "marc"},
    "prior": {"name": "uniform"},
    "results": [
        {"class": "dog", "score": 0.83, "top": [{"class": "dog", "score": 0.83}, {"class": "cat", "score": 0.09}]}
    ],
}
REQUEST_BODY = {
    "required": True,
    "description": "An image file, raw pixels, several image files, or logits.",
    "content": {
        "image/*": BINARY | {"description": "The bytes of one image file: PNG, JPEG, WebP, BMP, GIF or TIFF."},
        OCTETS: BINARY,
        FORM: {"schema": {"type": "object", "properties": {"image": {"type": "array", "items": BINARY["schema"]}}}},
        "application/json": {"schema": LogitsRequest.model_json_schema(), "examples": LOGITS_EXAMPLES},
        "application/x-npy": BINARY,
    },
}


@router.post(
    "/v1/models/{model}/scores",
    summary="Score images or logits",
    response_model=ScoresAnswer,
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={
        200: {
            "description": "One result an image or row of logits.",
            "content": {"application/json": {"example": ANSWER_EXAMPLE}},
        },
        **problem_response(
            CrossSite,
            UnknownModel,
            UnknownPrior,
            UnknownVersion,
            UnknownCalibration,
            BodyTooLarge,
            ImageTooLarge,
            UnsupportedBody,
            InvalidRequest,
            InvalidImage,
            InvalidLogits,
            InvalidPrior,
            ShapeMismatch,
            LogitsOnly,
            ModelNotLoaded,
            StorageUnavailable,
        ),
    },
)
def score(
    model: ModelName,
    query: Annotated[ScoreOptions, Query()],
    body: BodyDep,
    follower: FollowerDep,
    settings: SettingsDep,
) -> Response:
    """Debiased class scores, adjusted to a class prior.

    The body is one image file; raw RGB pixels of exactly height x width x 3 bytes as `application/octet-stream`; a form
    with one or more image files; logits as JSON; or an `.npy` file of logits `(C,)` or `(N, C)`. With JSON logits the
    options may stand in the body as well, each in one place only.
    """
    live = asked_for(follower, model, version=query.version, calibration=query.calibration)
    options = Options(prior=query.prior, kappa=query.kappa, top_k=query.top_k, explain=query.explain)
    if body.kind == "application/json":
        request = _logits_request(body.data)
        options = _merged(query, request)
        logits = scoring.logits_of_json(request.logits)
    else:
        logits = _logits(live, body, settings.max_pixels)
    return Json(scoring.score(live, logits, options))


def asked_for(follower: Follower, model: str, *, version: str | None, calibration: str | None) -> LiveModel:
    """The live state, or the version or calibration that the request names."""
    live = follower.registry.get(model)
    if version is None and calibration is None:
        return live
    if version is not None and calibration is not None:
        raise InvalidRequest("a calibration belongs to a version: give `version` or `calibration`, not both.")
    number = None if calibration is None else number_of(model, calibration)
    return follower.variant(live, version=version, calibration=number)


def _logits(live: LiveModel, body: Body, max_pixels: int) -> FloatArray:
    if body.files:
        return scoring.logits_of_images(live, body.files, names=body.names, max_pixels=max_pixels)
    if body.kind.startswith("image/"):
        return scoring.logits_of_images(live, [body.data], max_pixels=max_pixels)
    if body.kind == "application/x-npy":
        return scoring.logits_of_npy(body.data)
    if body.kind == OCTETS or body.kind in UNTYPED:
        return scoring.logits_of_octets(live, body.data, pixels=body.kind == OCTETS, max_pixels=max_pixels)
    raise UnsupportedBody(
        "scores are given for image/*, application/octet-stream (raw pixels), multipart/form-data (image files), "
        f"application/json (logits) and application/x-npy; got {body.kind}. Set the Content-Type header."
    )


def _logits_request(data: bytes) -> LogitsRequest:
    document = scoring.read_json(data)
    if not isinstance(document, dict) or "logits" not in document:
        raise InvalidRequest('a JSON body is an object with the logits: {"logits": [[...]]}.')
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
    given = {name: getattr(query, name) for name in query.model_fields_set - {"version", "calibration"}}
    given |= {name: getattr(request, name) for name in request.model_fields_set - {"logits"}}
    return Options(**given)
