"""Any ONNX classifier, or one that is sent logits, as a model of this service."""

from __future__ import annotations

import io
import tarfile
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from models.calibration.errors import (
    EmptyClass,
    FrequencyFileError,
    InvalidCalibrationSet,
    InvalidManifest,
    LeakedSplit,
    ShapeMismatch,
    UnknownTrainingRule,
)
from models.onnx_graph.errors import InvalidModel
from service.api.parameters import ModelName
from service.api.responding import UPLOAD_PROBLEMS, accepted
from service.api.schemas import RegisteredAnswer
from service.api.uploads import AskedDep, form_of, submitted, upload_folder
from service.changes import check_name
from service.errors import (
    InvalidBundle,
    InvalidRequest,
    StorageUnavailable,
    problem_response,
)
from service.work import IMPORT_FILES

router = APIRouter(prefix="/v1/models/{model}", tags=["catalog"], responses=problem_response(StorageUnavailable))


def _numbers(text: str) -> str:
    """Raises: ValueError unless these are three numbers."""
    if [isfinite(float(part)) for part in text.split(",")] != [True] * 3:
        raise ValueError("three numbers with commas between them")
    return text


_NUMBER = r" *-?[0-9]{0,6}\.?[0-9]{1,9} *"
Three = Annotated[
    str, AfterValidator(_numbers), Field(json_schema_extra={"pattern": f"^{_NUMBER},{_NUMBER},{_NUMBER}$"})
]


class ImportFields(BaseModel):
    """The texts of the form."""

    model_config = ConfigDict(extra="forbid")

    trained_with: Annotated[
        Literal["cross-entropy", "balanced-softmax", "balanced-sampling", "unknown"],
        Field(description="Counts alone do not tell; `unknown` needs `logits`, and measures what training put in."),
    ]
    layout: Annotated[Literal["nchw", "nhwc"] | None, Field(description="Where the graph does not tell.")] = None
    size: Annotated[
        str | None, Field(pattern="^[0-9]{1,5}x[0-9]{1,5}$", description="Height x width, where the graph is open.")
    ] = None
    mean: Annotated[Three, Field(description="Of each channel, for pixels in [0, 1].")] = "0.485,0.456,0.406"
    std: Annotated[Three, Field(description="Of each channel, for pixels in [0, 1].")] = "0.229,0.224,0.225"
    input: Annotated[str | None, Field(description="Name of the graph's input, where it has several.")] = None
    output: Annotated[str | None, Field(description="Name of the graph's output, where it has several.")] = None
    output_kind: Annotated[Literal["logits", "probabilities"], Field(description="What the graph gives.")] = "logits"

    def options(self) -> dict[str, Any]:
        """What `models.onnx_graph.imported` takes."""
        size = None if self.size is None else [int(part) for part in self.size.split("x")]
        return {
            "trained_with": self.trained_with,
            "layout": self.layout,
            "size": size,
            "mean": [float(part) for part in self.mean.split(",")],
            "std": [float(part) for part in self.std.split(",")],
            "input_name": self.input,
            "output_name": self.output,
            "output_kind": self.output_kind,
        }


_FILES = {
    "model": "The .onnx file; without it the model is sent logits.",
    "counts": "Class-frequency file: training images a class.",
    "classes": "Class names in the model's order, one a line.",
    "logits": "Labelled held-out logits to calibrate on (.npz or JSON); without them, the closed form.",
}
_FILE_SCHEMAS = {
    name: {"type": "string", "format": "binary", "description": description} for name, description in _FILES.items()
}
_SCHEMA = ImportFields.model_json_schema()
IMPORT_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": _FILE_SCHEMAS | _SCHEMA["properties"],
                "required": ["counts", "classes", *_SCHEMA["required"]],
                "additionalProperties": False,
            }
        }
    },
}


@router.post(
    "/import",
    summary="Import a classifier",
    status_code=201,
    response_model=RegisteredAnswer,
    openapi_extra={"requestBody": IMPORT_BODY},
    responses={
        **accepted(RegisteredAnswer),
        **problem_response(
            *UPLOAD_PROBLEMS,
            InvalidModel,
            InvalidBundle,
            InvalidManifest,
            FrequencyFileError,
            InvalidCalibrationSet,
            ShapeMismatch,
            EmptyClass,
            LeakedSplit,
            UnknownTrainingRule,
        ),
    },
)
async def import_model(
    request: Request,
    model: ModelName,
    asked: AskedDep,
    activate: Annotated[bool, Query(description="Whether a new version of a known model goes live at once.")] = True,
) -> Response:
    """Wrap an ONNX classifier into a bundle, check that it computes the same, and register it under this name.

    The form holds the files `counts` and `classes`, usually `model`, better with `logits`; and how it was trained.
    """
    check_name(model, "model", ())
    async with form_of(request) as form, upload_folder(request) as folder:
        options = _fields(form).options() | {"name": model, "activate": activate, "source": _source(form)}
        archive = folder / "import.tar"
        await run_in_threadpool(_pack, form, archive)
        return await submitted(request, "import", model=model, options=options, asked=asked, file=archive)


def _fields(form: FormData) -> ImportFields:
    names = [name for name, _ in form.multi_items()]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidRequest(f"every part of an import comes once; {', '.join(twice)} came more often.")
    texts = {name: value for name, value in form.multi_items() if isinstance(value, str) and name not in IMPORT_FILES}
    unknown = [name for name, value in form.multi_items() if isinstance(value, UploadFile) and name not in IMPORT_FILES]
    if unknown:
        raise InvalidRequest(f"the files of an import are {', '.join(IMPORT_FILES)}; got {', '.join(unknown)}.")
    missing = [name for name in ("counts", "classes") if name not in form]
    if missing:
        raise InvalidRequest(f"an import needs the files counts and classes; {' and '.join(missing)} did not come.")
    try:
        return ImportFields.model_validate(texts)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}" for each in error.errors())
        raise InvalidRequest(f"the texts of an import are {', '.join(ImportFields.model_fields)}; {found}.") from error


def _source(form: FormData) -> str | None:
    file = form.get("model")
    return file.filename if isinstance(file, UploadFile) else None


def _pack(form: FormData, path: Path) -> None:
    """The files of the form as one archive, the same bytes for the same files."""
    with tarfile.open(path, "w") as archive:
        for name in IMPORT_FILES:
            value = form.get(name)
            if value is None:
                continue
            file = value.file if isinstance(value, UploadFile) else io.BytesIO(value.encode())
            entry = tarfile.TarInfo(name)
            entry.size = file.seek(0, io.SEEK_END)
            file.seek(0)
            archive.addfile(entry, file)
