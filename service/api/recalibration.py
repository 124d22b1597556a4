"""What owners do: upload class frequencies, look at and activate calibrations and priors, undo."""

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from models.calibration.errors import FitFailed, FrequencyFileError, NotEnoughData, UnknownTrainingRule
from models.calibration.frequencies import Format, Frequencies, Missing, Role, Zeros
from service import recalibration
from service.api.dependencies import FORM, Body, BodyDep, CatalogDep, CheckDep, Json
from service.catalog import State, expect_revision
from service.errors import (
    BodyTooLarge,
    ChangedSince,
    InvalidRequest,
    NameTaken,
    NothingToUndo,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    UnknownPrior,
    etag,
    problem_response,
)
from service.recalibration import Upload
from service.runtime.live import LiveModel
from service.store.tables import CalibrationRow, ChangeRow

router = APIRouter(prefix="/v1/models/{model}", tags=["recalibration"])

CHANGE_PROBLEMS = (UnknownModel, ChangedSince, InvalidRequest, StorageUnavailable)
CSV_EXAMPLE = "class,count\ncat,900\ndog,90\n"
REQUEST_BODY = {
    "required": True,
    "description": "Counts: CSV, TSV, JSON or one number a line. Examples, which are counted: `path label` lists, "
    "listings of image folders, COCO annotations. Which one is seen from the content.",
    "content": {
        "text/csv": {"schema": {"type": "string"}, "example": CSV_EXAMPLE},
        "application/json": {"schema": {"type": "object"}, "example": {"cat": 900, "dog": 90}},
        FORM: {"schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}}}},
    },
}


class UploadOptions(BaseModel):
    """What the file is; a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")

    role: Annotated[
        Role,
        Field(
            description="`target`: how often the classes occur where the model runs; becomes the active prior. "
            "`training`: examples a class that the classifier was trained on; the calibration is fitted again.",
        ),
    ]
    dry_run: Annotated[bool, Field(description="Only report what would change.")] = False
    zeros: Annotated[
        Zeros,
        Field(description="A zero in a target: `error`; `impossible`, the class cannot occur; `smooth`, not seen yet."),
    ] = "error"
    missing: Annotated[
        Missing, Field(description="A class that the file does not name: `error`; `zero`, it has none (see `zeros`).")
    ] = "error"
    format: Annotated[Format | None, Field(description="What the file is, where its content does not tell.")] = None
    cap: Annotated[
        float | None,
        Field(
            gt=1,
            allow_inf_nan=False,
            description="No class moves by more than this factor against the median one (role=target).",
            examples=[100],
        ),
    ] = None
    name: Annotated[str | None, Field(description="Name of the stored prior (role=target).")] = None


@router.post(
    "/class-frequencies",
    summary="Upload a class-frequency file",
    status_code=201,
    response_class=Response,
    openapi_extra={"requestBody": REQUEST_BODY},
    responses={
        200: {"description": "The report of a dry run; nothing was changed."},
        201: {"description": "The report; the model is recalibrated."},
        **problem_response(
            *CHANGE_PROBLEMS, FrequencyFileError, NameTaken, UnknownTrainingRule, NotEnoughData, FitFailed, BodyTooLarge
        ),
    },
)
def upload_class_frequencies(
    model: str, query: Annotated[UploadOptions, Query()], body: BodyDep, catalog: CatalogDep, check: CheckDep
) -> Response:
    """Recalibrate a live model from the frequencies of its classes.

    The answer says how the file was read, the effective prior, the shift of each class, the metrics before and after on
    the stored calibration set, and how to undo.
    """
    what = Upload(data=_one_file(body), **query.model_dump(exclude={"dry_run"}))
    if query.dry_run:
        prospect = recalibration.preview(catalog, model, what, check)
        revision, undo = prospect.head.revision, None
    else:
        prospect, change = recalibration.upload(catalog, model, what, check)
        revision, undo = change.revision, _undo_link(change)
    content = {
        "model": model,
        "role": query.role,
        "dry_run": query.dry_run,
        "revision": revision,
        "format_detected": prospect.frequencies.format_detected,
        "kind": prospect.frequencies.kind,
        "reading": _reading(prospect.frequencies),
        **prospect.report,
        "warnings": [*prospect.frequencies.warnings, *prospect.report["warnings"]],
        "active": active(prospect.plan.state),
        "undo": undo,
    }
    return Json(content, status_code=200 if query.dry_run else 201, headers={"ETag": etag(revision)})


@router.get("/calibrations", summary="List calibrations", responses=problem_response(UnknownModel))
def list_calibrations(model: str, catalog: CatalogDep) -> Response:
    """All calibrations of all versions, the oldest first."""
    head = catalog.database.newest_change(model)
    rows = catalog.database.calibrations(model)
    return Json({"calibrations": [_summary(row) | {"active": row.number == head.calibration} for row in rows]})


@router.get(
    "/calibrations/{calibration}",
    summary="One calibration with its parameters",
    responses=problem_response(UnknownModel, UnknownCalibration),
)
def get_calibration(model: str, calibration: str, catalog: CatalogDep) -> Response:
    """Scale, offset and implied prior, the ledger it was fitted under, and the report of the upload that led to it."""
    catalog.database.newest_change(model)
    row = catalog.database.calibration(model, _number(model, calibration))
    return Json(_summary(row) | {"calibration": row.calibration, "ledger": row.ledger, "report": row.report})


@router.post(
    "/calibrations/{calibration}/activate",
    summary="Activate a calibration",
    responses=problem_response(*CHANGE_PROBLEMS, UnknownCalibration),
)
def activate_calibration(model: str, calibration: str, catalog: CatalogDep, check: CheckDep) -> Response:
    """Make a calibration live, together with the version of the model that it belongs to. The prior stays."""
    catalog.database.newest_change(model)
    number = _number(model, calibration)
    return changed(*recalibration.activate_calibration(catalog, model, number, check))


@router.get("/priors", summary="List priors", responses=problem_response(UnknownModel))
def list_priors(model: str, catalog: CatalogDep) -> Response:
    """The stored target priors; `uniform` and `training` are always there besides."""
    head = catalog.database.newest_change(model)
    rows = catalog.database.priors(model)
    keys = ("name", "probs", "file_digest", "created_at")
    stored = [{key: getattr(row, key) for key in keys} | {"active": row.name == head.prior} for row in rows]
    return Json({"active": head.prior, "priors": stored})


@router.post(
    "/priors/{prior}/activate",
    summary="Activate a prior",
    responses=problem_response(*CHANGE_PROBLEMS, UnknownPrior),
)
def activate_prior(model: str, prior: str, catalog: CatalogDep, check: CheckDep) -> Response:
    """Make `uniform`, `training` or a stored prior the one that is used when a request names none."""
    return changed(*recalibration.activate_prior(catalog, model, prior, check))


@router.get("/history", summary="Every change of a model", responses=problem_response(UnknownModel))
def history(model: str, catalog: CatalogDep) -> Response:
    """The newest last; `undoes_to` is the revision whose state an undo of the change restores."""
    catalog.database.newest_change(model)
    rows = catalog.database.history(model)
    changes = [
        {
            "revision": row.revision,
            "action": row.action,
            "version": str(row.version),
            "calibration": f"c{row.calibration}",
            "prior": row.prior,
            "undoes_to": row.undoes_to,
            "created_at": row.created_at,
        }
        for row in rows
    ]
    return Json({"changes": changes})


@router.post("/undo", summary="Undo the newest change", responses=problem_response(*CHANGE_PROBLEMS, NothingToUndo))
def undo(
    model: str,
    catalog: CatalogDep,
    check: CheckDep,
    revision: Annotated[
        int | None, Query(ge=1, description="The change to undo; a newer one than this answers 409 instead.")
    ] = None,
) -> Response:
    """Restore the state before the newest change. Repeated, it walks further back; the history keeps every step."""

    def both(head: ChangeRow) -> None:
        check(head)
        expect_revision(model, None if revision is None else [revision])(head)

    return changed(*recalibration.undo(catalog, model, both))


def changed(live: LiveModel, change: ChangeRow) -> Response:
    """The answer to every change: what is live now, and how to go back."""
    content = {
        "model": live.name,
        "revision": change.revision,
        "action": change.action,
        "active": {
            "version": live.version,
            "calibration": {"id": live.calibration, "method": live.deployment.calibration.method},
            "prior": live.prior,
        },
        "undo": _undo_link(change),
    }
    return Json(content, headers={"ETag": etag(change.revision)})


def active(state: State) -> dict[str, Any]:
    calibration = {"id": state.calibration.id, "method": state.calibration.calibration["method"]}
    return {"version": state.version.id, "calibration": calibration, "prior": state.prior}


def _reading(frequencies: Frequencies) -> dict[str, Any]:
    """`format_detected` for programs."""
    return {
        "format": frequencies.format,
        "matched_by": frequencies.matched_by,
        "header": frequencies.header,
        "delimiter": frequencies.delimiter,
        "classes": frequencies.values.size,
        "total": frequencies.values.sum(),
    }


def _undo_link(change: ChangeRow) -> dict[str, str] | None:
    if change.undoes_to is None:
        return None
    return {"method": "POST", "href": f"/v1/models/{change.model}/undo?revision={change.revision}"}


def _summary(row: CalibrationRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "version": str(row.version),
        "method": row.calibration["method"],
        "class_counts": row.ledger["class_counts"],
        "file_digest": row.file_digest,
        "created_at": row.created_at,
    }


def _number(model: str, calibration: str) -> int:
    if not re.fullmatch(r"c[1-9][0-9]{0,8}", calibration):
        raise UnknownCalibration(
            f"calibrations are called c1, c2 and so on; got {calibration!r}. GET /v1/models/{model}/calibrations lists "
            "them."
        )
    return int(calibration[1:])


def _one_file(body: Body) -> bytes:
    if body.kind != FORM:
        return body.data
    if len(body.files) != 1:
        raise InvalidRequest(f"one class-frequency file at a time; got {len(body.files)}.")
    return body.files[0]
