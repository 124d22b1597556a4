"""`/v2`, `/v2/models/{model}` and its `/infer`: the Open Inference Protocol with the binary tensor extension."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior, ShapeMismatch
from models.calibration.manifest import MODEL_NAME
from service.api import infer_request
from service.api.call import answered, asked_for
from service.api.dependencies import CatalogDep, FollowerDep, Json
from service.api.infer_request import HEADER_LENGTH
from service.api.oip_errors import inference_response
from service.api.oip_schemas import (
    InferAnswer,
    MetadataAnswer,
    ModelReadyAnswer,
    ServerAnswer,
)
from service.api.parameters import ModelName
from service.api.responding import BINARY
from service.api.score_request import OCTETS
from service.catalog import Catalog
from service.errors import (
    BodyStalled,
    BodyTooLarge,
    CrossSite,
    DeadlinePassed,
    InternalError,
    InvalidRequest,
    ModelNotLoaded,
    QueueFull,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
    UnsupportedBody,
)
from service.runtime import inference
from service.runtime.live import LiveModel

router = APIRouter(prefix="/v2", tags=["inference"], responses=inference_response(InternalError))

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]

AnyVersion = Annotated[
    str,
    Path(
        description="Number or alias of the version.",
        examples=["2"],
        json_schema_extra={"pattern": f"^{MODEL_NAME.pattern}$"},
    ),
]


HeaderLength = Annotated[
    int | None,
    Header(alias=HEADER_LENGTH, ge=0, description="Bytes of the JSON, where tensors follow it as bytes."),
]
Encoding = Annotated[
    str,
    Header(
        alias="Content-Encoding",
        description="Of the whole body.",
        json_schema_extra={"enum": ["identity", "gzip", "deflate"]},
    ),
]

INFER_EXAMPLES = {
    "scores of logits": {
        "value": {
            "inputs": [{"name": "logits", "shape": [1, 4], "datatype": "FP32", "data": [2.1, -0.3, 0.4, 0.0]}],
            "outputs": [{"name": "scores"}],
        }
    },
    "the two best classes under another prior": {
        "value": {
            "id": "7",
            "parameters": {"prior": "[5, 10, 20, 65]"},
            "inputs": [{"name": "logits", "shape": [1, 4], "datatype": "FP64", "data": [[2.1, -0.3, 0.4, 0.0]]}],
            "outputs": [{"name": "scores", "parameters": {"classification": 2}}],
        }
    },
}
INFER_BODY = {
    "required": True,
    "description": "JSON, or JSON with the bytes of tensors after it.",
    "content": {
        "application/json": {
            "schema": {"$ref": "#/components/schemas/InferRequest"},
            "examples": INFER_EXAMPLES,
        },
        OCTETS: BINARY,
    },
}
INFERRED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The outputs that were asked for, as JSON or with their bytes after it.",
        "content": {OCTETS: BINARY},
        "headers": {
            HEADER_LENGTH: {"description": "Bytes of the JSON, where bytes follow.", "schema": {"type": "integer"}}
        },
    },
    **inference_response(
        CrossSite,
        UnknownModel,
        UnknownVersion,
        UnknownCalibration,
        UnknownPrior,
        InvalidRequest,
        InvalidImage,
        InvalidLogits,
        InvalidPrior,
        ShapeMismatch,
        BodyTooLarge,
        BodyStalled,
        ImageTooLarge,
        UnsupportedBody,
        QueueFull,
        DeadlinePassed,
        ModelNotLoaded,
        StorageUnavailable,
    ),
}
ONE_MODEL = inference_response(UnknownModel, ModelNotLoaded, StorageUnavailable)
ONE_VERSION = inference_response(UnknownModel, UnknownVersion, ModelNotLoaded, StorageUnavailable)


@router.get("", summary="The server", response_model=ServerAnswer, response_description="Its name and extensions.")
def server_metadata(request: Request) -> Response:
    """Who answers, and which extensions of the Open Inference Protocol it knows."""
    return Json({"name": "equipoise", "version": request.app.version, "extensions": EXTENSIONS})


@router.get(
    "/models/{model}",
    summary="Tensors of a model",
    response_model=MetadataAnswer,
    response_description="What it takes and gives.",
    responses=ONE_MODEL,
)
def model_metadata(model: ModelName, follower: FollowerDep, catalog: CatalogDep) -> Response:
    """What the live version takes and gives. A request sends exactly one of the inputs."""
    return _metadata(asked_for(follower, model, version=None, calibration=None), catalog)


@router.get(
    "/models/{model}/versions/{version}",
    summary="Tensors of a version",
    response_model=MetadataAnswer,
    response_description="What it takes and gives.",
    responses=ONE_VERSION,
)
def version_metadata(model: ModelName, version: AnyVersion, follower: FollowerDep, catalog: CatalogDep) -> Response:
    """What a version takes and gives. A request sends exactly one of the inputs."""
    return _metadata(asked_for(follower, model, version=version, calibration=None), catalog)


def _metadata(live: LiveModel, catalog: Catalog) -> Response:
    content = {
        "name": live.name,
        "versions": [row.id for row in catalog.database.versions(live.name)],
        "platform": "equipoise" if live.runner is None else "onnxruntime_onnx",
        "inputs": [port.shown() for port in inference.inputs(live)],
        "outputs": [port.shown() for port in inference.outputs(live)],
    }
    return Json(content)


@router.get(
    "/models/{model}/ready",
    summary="Readiness of a model",
    response_model=ModelReadyAnswer,
    response_description="It can answer.",
    responses=ONE_MODEL,
)
def model_ready(model: ModelName, follower: FollowerDep) -> Response:
    """Whether the live version can answer now. Asking brings its network into memory, as a request would."""
    return _ready(asked_for(follower, model, version=None, calibration=None))


@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Readiness of a version",
    response_model=ModelReadyAnswer,
    response_description="It can answer.",
    responses=ONE_VERSION,
)
def version_ready(model: ModelName, version: AnyVersion, follower: FollowerDep) -> Response:
    """Whether a version can answer now. Asking brings its network into memory, as a request would."""
    return _ready(asked_for(follower, model, version=version, calibration=None))


def _ready(live: LiveModel) -> Response:
    inference.load(live)
    return Json({"name": live.name, "ready": True})


@router.post(
    "/models/{model}/infer",
    summary="Infer",
    response_model=InferAnswer,
    openapi_extra={"requestBody": INFER_BODY},
    responses=INFERRED,
)
async def infer(
    model: ModelName, request: Request, header_length: HeaderLength = None, encoding: Encoding = "identity"
) -> Response:
    """Debiased scores of images or logits, with the same numbers as a scores request of /v1, in float32.

    One input: `images`, pixels; `image`, encoded files; or `logits`. Outputs: `scores`, `logits` (raw, each row without
    its mean) and `debiased`, with the implied prior taken out; all where none is asked for.
    """
    return await answered(request, infer_request.infer, model, None)


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version",
    response_model=InferAnswer,
    openapi_extra={"requestBody": INFER_BODY},
    responses=INFERRED,
)
async def version_infer(
    model: ModelName,
    version: AnyVersion,
    request: Request,
    header_length: HeaderLength = None,
    encoding: Encoding = "identity",
) -> Response:
    """As for a model, with another version than the live one, under the prior that is active."""
    return await answered(request, infer_request.infer, model, version)
