"""Whether the process lives, and whether it can answer for every model."""

from fastapi import APIRouter, Response

from service.api.dependencies import CatalogDep, Json
from service.errors import NotReady, problem_response

router = APIRouter(prefix="/v2/health", tags=["health"])


@router.get("/live", summary="Liveness")
def live() -> Response:
    """Answers as long as the process does."""
    return Json({"live": True})


@router.get("/ready", summary="Readiness", responses=problem_response(NotReady))
def ready(catalog: CatalogDep) -> Response:
    """Ready when every registered model is loaded and has answered a dry run; otherwise says what is missing."""
    missing = catalog.registry.missing()
    if missing:
        raise NotReady(missing)
    return Json({"ready": True})
