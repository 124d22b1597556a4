"""What owners do with calibrations: upload frequencies or labelled examples, look, compare, activate, export, undo."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from models.calibration.difference import difference
from models.calibration.errors import (
    FitFailed,
    FrequencyFileError,
    InvalidCalibrationSet,
    InvalidLogits,
    LeakedSplit,
    NotEnoughData,
    ShapeMismatch,
    UnknownTrainingRule,
)
from models.calibration.frequencies import Format, Missing, Role, Zeros
from models.calibration.manifest import calibration_from_json, ledger_from_json
from models.onnx_graph.answers import OutputKind
from models.onnx_graph.errors import InvalidModel
from service import answers, changes
from service.api.bodies import FORM
from service.api.dependencies import ActorDep, CatalogDep, CheckDep, FollowerDep, Json, RevisionsDep
from service.api.parameters import CalibrationName, ModelName, OtherCalibrationName, number_of
from service.api.responding import BINARY, CHANGE_PROBLEMS, UPLOAD_PROBLEMS, accepted, apply, tagged
from service.api.schemas import (
    CalibrationAnswer,
    CalibrationsAnswer,
    CalibrationSetAnswer,
    ChangedAnswer,
    DifferenceAnswer,
    FrequenciesAnswer,
)
from service.api.uploads import AskedDep, body_file, submitted
from service.errors import (
    InUse,
    LogitsOnly,
    StorageUnavailable,
    UnknownCalibration,
    UnknownModel,
    problem_response,
)
from service.export import recalibrated_bundle
from service.recalibration import check_upload

router = APIRouter(prefix="/v1/models/{model}", tags=["recalibration"], responses=problem_response(StorageUnavailable))

FORM_FILE = {
    "schema": {
        "type": "object",
        "properties": {"file": BINARY["schema"]},
        "required": ["file"],
        "additionalProperties": False,
    }
}
FREQUENCIES_BODY = {
    "required": True,
    "description": "Counts: CSV, TSV, JSON or one number a line. Examples, which are counted: `path label` lists, "
    "listings of image folders, COCO annotations. Which one is seen from the content.",
    "content": {
        "text/csv": {"schema": {"type": "string"}, "example": "class,count\nant,900\nbee,90\ncat,30\ndog,10\n"},
        "application/json": {
            "schema": {"type": ["object", "array"]},
            "example": {"ant": 900, "bee": 90, "cat": 30, "dog": 10},
        },
        FORM: FORM_FILE,
    },
}
SET_EXAMPLE = {
    "logits": [[2.0, 0.1, 0.0, 0.0], [0.3, 1.9, 0.0, 0.2], [0.1, 0.2, 2.2, 0.0], [0.0, 0.4, 0.1, 1.7]],
    "labels": ["ant", "bee", "cat", "dog"],
}
SET_BODY = {
    "required": True,
    "description": "Labelled logits, as `.npz` (logits (N, C), labels (N,)) or JSON; or labelled images, as a `.zip` "
    "or `.tar` of folders named by their class. Examples that the network was not trained on.",
    "content": {
        "application/zip": BINARY,
        "application/x-tar": BINARY,
        "application/x-npz": BINARY,
        "application/json": {"schema": {"type": "object", "required": ["logits", "labels"]}, "example": SET_EXAMPLE},
        FORM: FORM_FILE,
    },
}
DRY_RUN = "Only report what would change."


class UploadOptions(BaseModel):
    """What the file is; a misspelt option is an error and not ignored."""

    model_config = ConfigDict(extra="forbid")

    role: Annotated[
        Role,
        Field(
            description="`target`: how often the classes occur where the model runs; becomes the active prior. "
            "`training`: examples a class that the classifier was trained on; the calibration is fitted again.",
            examples=["target", "training"],
        ),
    ]
    dry_run: Annotated[bool, Field(description=DRY_RUN, examples=[True])] = False
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
    name: Annotated[
        str | None,
        Field(description="Name of the prior (role=target); a known one gets a new meaning.", examples=["summer"]),
    ] = None


class SetOptions(BaseModel):
    """How the labelled examples were drawn."""

    model_config = ConfigDict(extra="forbid")

    drawn: Annotated[
        str,
        Field(
            max_length=200,
            description="How they were drawn; shown with every figure that rests on them.",
            examples=["spring survey"],
        ),
    ] = "uploaded"
    output_kind: Annotated[
        OutputKind, Field(description="What labelled rows hold; of images it is known.", examples=["logits"])
    ] = "logits"
    dry_run: Annotated[bool, Field(description=DRY_RUN, examples=[True])] = False


@router.post(
    "/class-frequencies",
    summary="Upload a class-frequency file",
    status_code=201,
    response_model=FrequenciesAnswer,
    openapi_extra={"requestBody": FREQUENCIES_BODY},
    responses={
        **accepted(FrequenciesAnswer),
        **problem_response(
            *CHANGE_PROBLEMS, *UPLOAD_PROBLEMS, FrequencyFileError, UnknownTrainingRule, NotEnoughData, FitFailed
        ),
    },
)
async def upload_class_frequencies(
    request: Request,
    model: ModelName,
    query: Annotated[UploadOptions, Query()],
    revisions: RevisionsDep,
    asked: AskedDep,
) -> Response:
    """Recalibrate a live model from the frequencies of its classes.

    The answer says how the file was read, the effective prior, the shift of each class, the metrics before and after on
    the stored calibration set, and how to undo.
    """
    check_upload(role=query.role, cap=query.cap, name=query.name)
    options = query.model_dump() | {"revisions": revisions}
    async with body_file(request) as file:
        return await submitted(request, "class-frequencies", model=model, options=options, asked=asked, file=file)


@router.post(
    "/calibration-set",
    summary="Upload labelled examples",
    status_code=201,
    response_model=CalibrationSetAnswer,
    openapi_extra={"requestBody": SET_BODY},
    responses={
        **accepted(CalibrationSetAnswer),
        **problem_response(
            *CHANGE_PROBLEMS,
            *UPLOAD_PROBLEMS,
            InvalidCalibrationSet,
            InvalidModel,
            InvalidLogits,
            ShapeMismatch,
            LogitsOnly,
            LeakedSplit,
            NotEnoughData,
            FitFailed,
        ),
    },
)
async def upload_calibration_set(
    request: Request,
    model: ModelName,
    query: Annotated[SetOptions, Query()],
    revisions: RevisionsDep,
    asked: AskedDep,
) -> Response:
    """Put labelled logits or images in place of the calibration set of the live version, and fit on them.

    The simplest of closed form, BCTS and MARC that the examples support is taken; the figures before and after are
    out-of-fold on them.
    """
    options = query.model_dump() | {"revisions": revisions}
    async with body_file(request) as file:
        return await submitted(request, "calibration-set", model=model, options=options, asked=asked, file=file)


@router.get(
    "/calibrations",
    summary="List calibrations",
    response_description="All calibrations, the oldest first.",
    response_model=CalibrationsAnswer,
    responses=problem_response(UnknownModel),
)
def list_calibrations(model: ModelName, catalog: CatalogDep) -> Response:
    """All calibrations of all versions, the oldest first."""
    head = catalog.database.newest_change(model)
    rows = catalog.database.calibrations(model)
    return Json({"calibrations": [answers.calibration(row, live=row.number == head.calibration) for row in rows]})


@router.get(
    "/calibrations/{calibration}",
    summary="One calibration with its parameters",
    response_description="The calibration.",
    response_model=CalibrationAnswer,
    responses=problem_response(UnknownModel, UnknownCalibration),
)
def get_calibration(model: ModelName, calibration: CalibrationName, catalog: CatalogDep) -> Response:
    """Scale, offset and implied prior, the ledger it was fitted under, and the report of the upload that led to it."""
    database = catalog.database
    head = database.newest_change(model)
    row = database.calibration(model, number_of(model, calibration))
    made_by = next((each for each in database.history(model) if each.calibration == row.number), None)
    report = None if made_by is None or row.file_digest is None else database.report(model, made_by.revision)
    content = answers.calibration(row, live=row.number == head.calibration)
    return Json(content | {"calibration": row.calibration, "ledger": row.ledger, "report": report})


@router.get(
    "/calibrations/{calibration}/diff/{other}",
    summary="Compare two calibrations",
    response_description="What changes from one to the other.",
    response_model=DifferenceAnswer,
    responses=problem_response(UnknownModel, UnknownCalibration, ShapeMismatch),
)
def compare_calibrations(
    model: ModelName, calibration: CalibrationName, other: OtherCalibrationName, catalog: CatalogDep
) -> Response:
    """What changes from the first to the second, class by class, and how many decisions on the stored examples."""
    catalog.database.newest_change(model)
    rows = [catalog.database.calibration(model, number_of(model, each)) for each in (calibration, other)]
    names = [catalog.database.version(model, row.version).manifest["class_names"] for row in rows]
    if names[0] != names[1]:
        raise ShapeMismatch(f"{calibration} and {other} are of versions with other classes; they cannot be compared.")
    found = difference(
        calibration_from_json(rows[0].calibration),
        calibration_from_json(rows[1].calibration),
        ledger_a=ledger_from_json(rows[0].ledger),
        ledger_b=ledger_from_json(rows[1].ledger),
        class_names=names[0],
        calibration_set=catalog.calibration_set(rows[1]) if rows[0].version == rows[1].version else None,
    )
    return Json({"from": rows[0].id, "to": rows[1].id, **found})


@router.get(
    "/calibrations/{calibration}/bundle",
    summary="Export a bundle with a calibration",
    response_class=Response,
    responses={
        200: {"description": "An uncompressed .tar.", "content": {"application/x-tar": BINARY}},
        **problem_response(UnknownModel, UnknownCalibration, InvalidModel),
    },
)
def export_bundle(model: ModelName, calibration: CalibrationName, catalog: CatalogDep) -> Response:
    """The model with this calibration as a bundle: its ONNX graph gives debiased scores by itself in any runtime."""
    catalog.database.newest_change(model)
    row = catalog.database.calibration(model, number_of(model, calibration))
    name = f"{model}-v{row.version}-{row.id}.tar"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(recalibrated_bundle(catalog, row), media_type="application/x-tar", headers=headers)


@router.post(
    "/calibrations/{calibration}/activate",
    summary="Activate a calibration",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownCalibration),
)
def activate_calibration(
    model: ModelName,
    calibration: CalibrationName,
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Make a calibration live, together with the version of the model that it belongs to. The prior stays."""
    catalog.database.newest_change(model)
    plan = changes.activate_calibration(catalog, model, number_of(model, calibration))
    return apply(catalog, follower, model, plan, check, actor)


@router.delete(
    "/calibrations/{calibration}",
    summary="Delete a calibration",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownCalibration, InUse),
)
def delete_calibration(
    model: ModelName,
    calibration: CalibrationName,
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Delete a calibration that is not live and did not come in a bundle. The history keeps that it was there."""
    catalog.database.newest_change(model)
    plan = changes.delete_calibration(catalog, model, number_of(model, calibration))
    return apply(catalog, follower, model, plan, check, actor)
