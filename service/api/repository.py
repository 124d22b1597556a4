"""The model repository extension of the Open Inference Protocol: which networks are in the memory of this process."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from models.calibration.errors import CalibrationError
from service.api import bodies
from service.api.dependencies import FollowerDep, Json
from service.api.oip_errors import inference_response
from service.api.oip_schemas import IndexEntry, IndexRequest, LoadRequest, UnloadRequest
from service.api.parameters import ModelName
from service.errors import (
    BodyStalled,
    BodyTooLarge,
    CrossSite,
    InternalError,
    InvalidRequest,
    ModelNotLoaded,
    UnknownModel,
)
from service.follow import Follower
from service.runtime import inference

router = APIRouter(prefix="/v2/repository", tags=["inference"], responses=inference_response(InternalError))

REFUSED = (CrossSite, InvalidRequest, BodyTooLarge, BodyStalled)


async def _body(request: Request) -> bytes:
    """Clients may leave it out."""
    server = request.app.state.server
    body = await bodies.read(dict(request.scope["headers"]), request.receive, server.limits, server.room)
    server.room.give(len(body))
    return body or b"{}"


BodyDep = Annotated[bytes, Depends(_body)]


def _described(kind: str, example: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": {"$ref": f"#/components/schemas/{kind}"}, "example": example}
    return {"requestBody": {"required": False, "content": {"application/json": content}}}


@router.post(
    "/index",
    summary="Models in memory",
    response_model=list[IndexEntry],
    response_description="An entry a model.",
    openapi_extra=_described("IndexRequest", {"ready": True}),
    responses=inference_response(*REFUSED),
)
def repository_index(body: BodyDep, follower: FollowerDep) -> Response:
    """Every registered model with its live version: READY, or UNAVAILABLE with the reason.

    A network that is not in memory is UNAVAILABLE although the next request for it loads it.
    """
    only_ready = IndexRequest.read(body).ready
    entries = [_entry(follower, name) for name in follower.registry.names()]
    return Json([each for each in entries if each["state"] == "READY" or not only_ready])


@router.post(
    "/models/{model}/load",
    summary="Load a network",
    response_model=IndexEntry,
    response_description="It is in memory.",
    openapi_extra=_described("LoadRequest", {"parameters": {}}),
    responses=inference_response(*REFUSED, UnknownModel, ModelNotLoaded),
)
def load_model(model: ModelName, body: BodyDep, follower: FollowerDep) -> Response:
    """Bring the network of the live version into the memory of this process, or say why that fails.

    A model is loaded as it is registered: no configuration or files are taken. One that could not be loaded before is
    tried again.
    """
    LoadRequest.read(body)
    if model in follower.registry.names() and follower.registry.find(model) is None:
        follower.refresh(model)
    inference.load(follower.registry.get(model))
    return Json(_entry(follower, model))


@router.post(
    "/models/{model}/unload",
    summary="Unload a network",
    response_model=IndexEntry,
    response_description="It is not in memory.",
    openapi_extra=_described("UnloadRequest", {"parameters": {"unload_dependents": False}}),
    responses=inference_response(*REFUSED, UnknownModel, ModelNotLoaded),
)
def unload_model(model: ModelName, body: BodyDep, follower: FollowerDep) -> Response:
    """Take the network of the live version out of the memory of this process, until the next request for it.

    The model stays registered and goes on to answer: whoever asks next, a probe of its readiness too, loads the network
    again. DELETE /v1/models/{model} removes a model.
    """
    UnloadRequest.read(body)
    network = inference.network_of(follower.registry.get(model))
    if network is not None:
        network.unload()
    return Json(_entry(follower, model))


def _entry(follower: Follower, name: str) -> dict[str, Any]:
    try:
        live = follower.registry.get(name)
    except CalibrationError as error:
        return {"name": name, "version": "", "state": "UNAVAILABLE", "reason": str(error)}
    network = inference.network_of(live)
    ready = network is None or network.is_loaded()
    reason = "" if ready else "its network is not in memory; the next request loads it"
    return {"name": name, "version": live.version, "state": "READY" if ready else "UNAVAILABLE", "reason": reason}
