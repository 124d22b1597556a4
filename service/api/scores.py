"""`POST /v1/models/{model}/scores`: images or logits in, debiased scores out."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior, ShapeMismatch
from models.calibration.types import FloatArray
from service.api.dependencies import FORM, Body, BodyDep, CatalogDep, Json, SettingsDep
from service.errors import (
    BodyTooLarge,
    InvalidRequest,
    LogitsOnly,
    ModelNotLoaded,
    UnknownModel,
    UnknownPrior,
    UnsupportedBody,
    problem_response,
)
from service.runtime import scoring
from service.runtime.live import LiveModel
from service.runtime.scoring import Options

router = APIRouter(tags=["scores"])

OCTETS = "application/octet-stream"
UNTYPED = ("", "application/x-www-form-urlencoded")  # the second is what curl says when it is told nothing


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
    top_k: Annotated[int | None, Field(ge=1, description="Only the k best classes, best first.")] = None
    explain: Annotated[bool, Field(description="Add the raw, debiased and adjusted probabilities.")] = False


class LogitsRequest(BaseModel):
    """Logits as JSON; the numbers themselves are checked as one array later."""

    model_config = ConfigDict(extra="forbid", strict=True)

    logits: Any
    prior: Any = None
    top_k: Annotated[int | None, Field(ge=1)] = None
    explain: bool = False


LOGITS_EXAMPLE = {"logits": [[2.1, -0.3, 0.4]], "prior": "uniform", "top_k": 2}
ANSWER_EXAMPLE = {
    "model": "digits",
    "version": "1",
    "calibration": {"id": "c1", "method": "marc"},
    "prior": {"name": "uniform"},
    "results": [{"class": "7", "score": 0.83, "top": [{"class": "7", "score": 0.83}, {"class": "1", "score": 0.09}]}],
}
BINARY = {"schema": {"type": "string", "format": "binary"}}
REQUEST_BODY = {
    "required": True,
    "description": "An image file, raw pixels, several image files, or logits.",
    "content": {
        "image/*": BINARY | {"description": "The bytes of one image file: PNG, JPEG, WebP, BMP, GIF or TIFF."},
        OCTETS: BINARY,
        FORM: {"schema": {"type": "object", "properties": {"image": {"type": "array", "items": BINARY["schema"]}}}},
        "application/json": {"schema": LogitsRequest.model_json_schema(), "example": LOGITS_EXAMPLE},
        "application/x-npy": BINARY,
    },
}


@router.post(
    "/v1/models/{model}/scores",
    summary="Score images or logits",
    response_class=Response,
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={
        200: {"description": "One result an image.", "content": {"application/json": {"example": ANSWER_EXAMPLE}}},
        **problem_response(
            UnknownModel,
            UnknownPrior,
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
        ),
    },
)
def score(
    model: str, query: Annotated[ScoreOptions, Query()], body: BodyDep, catalog: CatalogDep, settings: SettingsDep
) -> Response:
    """Debiased class scores, adjusted to a class prior.

    The body is one image file; raw RGB pixels of exactly height x width x 3 bytes as `application/octet-stream`; a form
    with one or more image files; logits as JSON; or an `.npy` file of logits `(C,)` or `(N, C)`. With JSON logits the
    options may stand in the body as well, each in one place only.
    """
    live = catalog.registry.get(model)
    options = Options(prior=query.prior, top_k=query.top_k, explain=query.explain)
    if body.kind == "application/json":
        request = _logits_request(body.data)
        options = _merged(query, request)
        logits = scoring.logits_of_json(request.logits)
    else:
        logits = _logits(live, body, settings.max_pixels)
    return Json(scoring.score(live, logits, options))


def _logits(live: LiveModel, body: Body, max_pixels: int) -> FloatArray:
    if body.files:
        return scoring.logits_of_images(live, body.files, max_pixels=max_pixels)
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
    try:
        return LogitsRequest.model_validate(document)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(f"a JSON body holds {', '.join(LogitsRequest.model_fields)}; {found}.") from error


def _merged(query: ScoreOptions, request: LogitsRequest) -> Options:
    twice = sorted((query.model_fields_set & request.model_fields_set) - {"logits"})
    if twice:
        raise InvalidRequest(f"{twice[0]} stands in the query and in the body. Give it once.")
    given = {name: getattr(query, name) for name in query.model_fields_set}
    given |= {name: getattr(request, name) for name in request.model_fields_set - {"logits"}}
    return Options(**given)
