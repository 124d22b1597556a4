"""`POST /v1/models/{model}/scores`: images or logits in, debiased scores out."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior, ShapeMismatch
from service.api.bodies import FORM
from service.api.call import answered
from service.api.parameters import ModelName
from service.api.responding import BINARY
from service.api.schemas import ScoresAnswer
from service.api.score_request import OCTETS, LogitsRequest, ScoreOptions, scores
from service.errors import (
    BodyStalled,
    BodyTooLarge,
    CrossSite,
    DeadlinePassed,
    InvalidRequest,
    LogitsOnly,
    ModelNotLoaded,
    QueueFull,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
    UnsupportedBody,
    problem_response,
)

router = APIRouter(tags=["scores"])

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
            BodyStalled,
            ImageTooLarge,
            UnsupportedBody,
            InvalidRequest,
            InvalidImage,
            InvalidLogits,
            InvalidPrior,
            ShapeMismatch,
            LogitsOnly,
            QueueFull,
            DeadlinePassed,
            ModelNotLoaded,
            StorageUnavailable,
        ),
    },
)
async def score(model: ModelName, query: Annotated[ScoreOptions, Query()], request: Request) -> Response:
    """Debiased class scores, adjusted to a class prior.

    The body is one image file; raw RGB pixels of exactly height x width x 3 bytes as `application/octet-stream`; a form
    with one or more image files; logits as JSON; or an `.npy` file of logits `(C,)` or `(N, C)`. With JSON logits the
    options may stand in the body as well, each in one place only.
    """
    return await answered(request, scores, model)
