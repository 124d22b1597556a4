"""Whether the process lives, and whether it can answer for every model."""

from fastapi import APIRouter, Request, Response
from starlette.datastructures import State

from service.api.dependencies import Json
from service.api.oip_errors import inference_response
from service.api.schemas import LiveAnswer, ReadyAnswer
from service.errors import InternalError, NotReady

router = APIRouter(prefix="/v2/health", tags=["health"], responses=inference_response(InternalError))


@router.get("/live", summary="Liveness", response_description="The process lives.", response_model=LiveAnswer)
async def liveness() -> Response:
    """Answers as long as the process does."""
    return Json({"live": True})


@router.get(
    "/ready",
    summary="Readiness",
    response_description="Every registered model can answer.",
    response_model=ReadyAnswer,
    responses=inference_response(NotReady),
)
async def readiness(request: Request) -> Response:
    """Ready when every registered model can answer; otherwise says what is missing.

    `degraded` says what works only in part: without the database, scores are still given and changes are refused. Such
    a process stays ready, since taking it out of service would help nobody.
    """
    missing = request.app.state.follower.registry.missing()
    if missing:
        raise NotReady(missing)
    return Json({"ready": True, "degraded": degraded(request.app.state)})


def degraded(state: State) -> list[str]:
    """What works only in part: the database, a model, the file of keys."""
    found: list[str] = state.follower.degraded()
    return found if state.keys is None else found + state.keys.degraded()
