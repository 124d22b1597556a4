"""Whether the process lives, and whether it can answer for every model."""

from fastapi import APIRouter, Response

from service.api.dependencies import FollowerDep, Json
from service.api.oip_errors import inference_response
from service.api.schemas import LiveAnswer, ReadyAnswer
from service.errors import InternalError, NotReady

router = APIRouter(prefix="/v2/health", tags=["health"], responses=inference_response(InternalError))


@router.get("/live", summary="Liveness", response_description="The process lives.", response_model=LiveAnswer)
def liveness() -> Response:
    """Answers as long as the process does."""
    return Json({"live": True})


@router.get(
    "/ready",
    summary="Readiness",
    response_description="Every registered model can answer.",
    response_model=ReadyAnswer,
    responses=inference_response(NotReady),
)
def readiness(follower: FollowerDep) -> Response:
    """Ready when every registered model can answer; otherwise says what is missing.

    `degraded` says what works only in part: without the database, scores are still given and changes are refused. Such
    a process stays ready, since taking it out of service would help nobody.
    """
    missing = follower.registry.missing()
    if missing:
        raise NotReady(missing)
    return Json({"ready": True, "degraded": follower.degraded()})
