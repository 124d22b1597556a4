"""`/v2`, `/v2/models/{model}` and its `/infer`: the Open Inference Protocol with the binary tensor extension."""

from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Header, Path, Request, Response

from models.calibration.errors import ImageTooLarge, InvalidImage, InvalidLogits, InvalidPrior, ShapeMismatch
from models.calibration.manifest import MODEL_NAME
from service.api.dependencies import CatalogDep, FollowerDep, Json, SettingsDep, read
from service.api.oip_errors import inference_response
from service.api.oip_schemas import (
    InferAnswer,
    InferRequest,
    InputTensor,
    MetadataAnswer,
    ModelReadyAnswer,
    RequestParameters,
    ServerAnswer,
)
from service.api.parameters import ModelName
from service.api.responding import BINARY
from service.api.scores import OCTETS, asked_for
from service.catalog import Catalog
from service.errors import (
    BodyTooLarge,
    CrossSite,
    InternalError,
    InvalidRequest,
    ModelNotLoaded,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    UnknownVersion,
    UnsupportedBody,
)
from service.follow import Follower
from service.runtime import inference, scoring, tensors
from service.runtime.inference import Asked
from service.runtime.live import LiveModel
from service.runtime.scoring import Options, Scored
from service.runtime.tensors import Tensor
from service.settings import Settings

router = APIRouter(prefix="/v2", tags=["inference"], responses=inference_response(InternalError))

EXTENSIONS = ["binary_tensor_data", "classification", "model_repository"]
HEADER_LENGTH = "Inference-Header-Content-Length"

AnyVersion = Annotated[
    str,
    Path(
        description="Number or alias of the version.",
        examples=["2"],
        json_schema_extra={"pattern": f"^{MODEL_NAME.pattern}$"},
    ),
]


async def _sent(
    request: Request,
    settings: SettingsDep,
    header_length: Annotated[
        int | None,
        Header(alias=HEADER_LENGTH, ge=0, description="Bytes of the JSON, where tensors follow it as bytes."),
    ] = None,
    encoding: Annotated[
        str,
        Header(
            alias="Content-Encoding",
            description="Of the whole body.",
            json_schema_extra={"enum": ["identity", "gzip", "deflate"]},
        ),
    ] = "identity",
) -> tuple[bytes, int | None, str]:
    return await read(request, settings.max_body_bytes), header_length, encoding.lower()


SentDep = Annotated[tuple[bytes, int | None, str], Depends(_sent)]

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
        ImageTooLarge,
        UnsupportedBody,
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
def infer(model: ModelName, sent: SentDep, follower: FollowerDep, settings: SettingsDep) -> Response:
    """Debiased scores of images or logits, with the same numbers as a scores request of /v1, in float32.

    One input: `images`, pixels; `image`, encoded files; or `logits`. Outputs: `scores`, `logits` (raw, each row without
    its mean) and `debiased`, with the implied prior taken out; all where none is asked for.
    """
    return _infer(follower, settings, model, None, sent)


@router.post(
    "/models/{model}/versions/{version}/infer",
    summary="Infer with a version",
    response_model=InferAnswer,
    openapi_extra={"requestBody": INFER_BODY},
    responses=INFERRED,
)
def version_infer(
    model: ModelName, version: AnyVersion, sent: SentDep, follower: FollowerDep, settings: SettingsDep
) -> Response:
    """As for a model, with another version than the live one, under the prior that is active."""
    return _infer(follower, settings, model, version, sent)


def _infer(
    follower: Follower, settings: Settings, model: str, version: str | None, sent: tuple[bytes, int | None, str]
) -> Response:
    body, header_length, encoding = sent
    header, rest = tensors.split(tensors.inflated(body, encoding, settings.max_body_bytes), header_length)
    request = InferRequest.read(header)
    outputs, asked = _asked(request), request.parameters or RequestParameters()
    if version is not None and asked.version is not None:
        raise InvalidRequest("version stands in the address and in the parameters. Give it once.")
    live = asked_for(follower, model, version=version or asked.version, calibration=asked.calibration)
    logits = inference.logits_of(live, _tensor(request.inputs[0], rest), max_pixels=settings.max_pixels)
    scored = scoring.scored(live, logits, Options(prior=asked.prior, kappa=asked.kappa))
    return _answer(live, scored, outputs, request.id)


def _tensor(sent: InputTensor, rest: bytes | None) -> Tensor:
    """The one input, with its data from the place where the request says that it is."""
    size = None if sent.parameters is None else sent.parameters.binary_data_size
    if size is not None and sent.data is not None:
        raise InvalidRequest(f"input {sent.name[:80]!r} has its data in the JSON or after it; got both.")
    if size is None and rest:
        raise InvalidRequest(f"{len(rest)} bytes follow the JSON; set binary_data_size in the input's parameters.")
    if size is not None and rest is None:
        raise InvalidRequest(f"binary_data_size needs the header {HEADER_LENGTH}: the bytes begin after the JSON.")
    if size is not None and rest is not None and size != len(rest):
        raise InvalidRequest(f"binary_data_size is the number of bytes after the JSON, {len(rest)}; got {size}.")
    data = sent.data if size is None else rest
    return Tensor(name=sent.name, datatype=sent.datatype, shape=tuple(sent.shape), data=data)


def _answer(live: LiveModel, scored: Scored, outputs: list[Asked], request_id: str | None) -> Response:
    described, binary = inference.encoded(live, scored, outputs)
    named = dict(scored.named)
    used = {"calibration": live.calibration, "method": live.deployment.calibration.method, "prior": named.pop("name")}
    content = {"model_name": live.name, "model_version": live.version, "parameters": used | named, "outputs": described}
    if request_id is not None:
        content["id"] = request_id
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any("parameters" in each for each in described):
        return Response(header, media_type="application/json")
    return Response(header + binary, media_type=OCTETS, headers={HEADER_LENGTH: str(len(header))})


def _asked(request: InferRequest) -> list[Asked]:
    """The outputs of the answer, in the order of the request. Raises: InvalidRequest for one asked for twice."""
    by_default = bool(request.parameters and request.parameters.binary_data_output)
    if not request.outputs:
        return [Asked(name=name, binary=by_default) for name in inference.OUTPUTS]
    names = [each.name for each in request.outputs]
    if len(set(names)) < len(names):
        raise InvalidRequest(f"an output is asked for once; got {', '.join(names)}.")
    asked = []
    for each in request.outputs:
        binary = each.parameters.binary_data if each.parameters else None
        count = each.parameters.classification if each.parameters else None
        asked.append(Asked(name=each.name, binary=by_default if binary is None else binary, classification=count))
    return asked
