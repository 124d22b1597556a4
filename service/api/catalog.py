"""Which models there are, and what each one is."""

import re
from typing import Any

from fastapi import APIRouter, Response

from service import recalibration
from service.api.dependencies import CatalogDep, CheckDep, Json
from service.api.recalibration import CHANGE_PROBLEMS, active, changed
from service.errors import UnknownModel, UnknownVersion, etag, problem_response

router = APIRouter(prefix="/v1/models", tags=["catalog"])


@router.get("", summary="List models")
def list_models(catalog: CatalogDep) -> Response:
    """Every registered model with what is live of it."""
    return Json({"models": [_brief(catalog, name) for name in catalog.database.models()]})


@router.get("/{model}", summary="One model", responses=problem_response(UnknownModel))
def get_model(model: str, catalog: CatalogDep) -> Response:
    """Classes, how it was trained and what that implies, its versions, and what is live. The ETag is the revision."""
    head = catalog.database.newest_change(model)
    state = catalog.state(head)
    manifest, ledger = state.version.manifest, state.calibration.ledger
    versions = catalog.database.versions(model)
    content = {
        "name": model,
        "class_names": manifest["class_names"],
        "class_counts": ledger["class_counts"],
        "input": manifest["input"],
        "trained_with": ledger["trained_with"],
        "implied_prior": {"source": ledger["source"], "probs": ledger["implied_prior"]},
        "versions": [{"version": row.id, "created_at": row.created_at} for row in versions],
        "active": active(state),
        "revision": head.revision,
    }
    return Json(content, headers={"ETag": etag(head.revision)})


@router.post(
    "/{model}/versions/{version}/activate",
    summary="Activate a version",
    responses=problem_response(*CHANGE_PROBLEMS, UnknownVersion),
)
def activate_version(model: str, version: str, catalog: CatalogDep, check: CheckDep) -> Response:
    """Make an earlier or later version live, with the calibration that came in its bundle."""
    catalog.database.newest_change(model)
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UnknownVersion(f"versions are numbered from 1; got {version!r}. GET /v1/models/{model} lists them.")
    return changed(*recalibration.activate_version(catalog, model, int(version), check))


def _brief(catalog: CatalogDep, name: str) -> dict[str, Any]:
    head = catalog.database.newest_change(name)
    return {"name": name, "revision": head.revision, "active": active(catalog.state(head))}
