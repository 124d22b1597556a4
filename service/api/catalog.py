"""Which models there are: register, look, delete."""

from pathlib import Path
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.calibration.errors import InvalidManifest
from service import answers
from service.api.dependencies import CatalogDep, FollowerDep, Json, RevisionsDep
from service.api.parameters import ModelName
from service.api.responding import ETAG, UPLOAD_PROBLEMS, accepted
from service.api.schemas import ModelAnswer, ModelsAnswer, RegisteredAnswer
from service.api.uploads import AskedDep, body_file, submitted
from service.catalog import expect_revision
from service.errors import (
    ChangedSince,
    CrossSite,
    InvalidBundle,
    InvalidRequest,
    PreconditionRequired,
    StorageUnavailable,
    UnknownModel,
    etag,
    problem_response,
)
from service.store.database import Overtaken
from service.store.fetch import UrlNotAllowed
from service.store.tables import ChangeRow

router = APIRouter(prefix="/v1/models", tags=["catalog"], responses=problem_response(StorageUnavailable))

MAX_JSON_BYTES = 1 << 16


class UrlBody(BaseModel):
    """Where a bundle lies."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, Field(max_length=2000, examples=["s3://bucket/bundles/pets.tar"])]


REGISTER_BODY = {
    "required": True,
    "description": "A bundle as an uncompressed .tar, or the URL of one under an allowed prefix.",
    "content": {
        "application/x-tar": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": UrlBody.model_json_schema(), "example": {"url": "s3://bucket/bundles/pets.tar"}},
    },
}


@router.get("", summary="List models", response_description="All models, by name.", response_model=ModelsAnswer)
def list_models(catalog: CatalogDep) -> Response:
    """Every registered model with what is live of it."""
    return Json({"models": [_brief(head, method) for head, method in catalog.database.newest_changes()]})


@router.post(
    "",
    summary="Register a bundle",
    status_code=201,
    response_model=RegisteredAnswer,
    openapi_extra={"requestBody": REGISTER_BODY},
    responses={
        **accepted(RegisteredAnswer),
        **problem_response(*UPLOAD_PROBLEMS, InvalidBundle, InvalidManifest, UrlNotAllowed),
    },
)
async def register(
    request: Request,
    asked: AskedDep,
    activate: Annotated[bool, Query(description="Whether a new version of a known model goes live at once.")] = True,
) -> Response:
    """Register a bundle: a new model, or a new version of the model that it names. A known bundle changes nothing.

    The network is tried before the version is registered, and loaded in every process before it gets requests.
    """
    async with body_file(request) as file:
        url = _url(file) if _is_json(request) else None
        options = {"activate": activate, "url": url}
        sent = None if url is not None else file
        return await submitted(request, "register", model="", options=options, asked=asked, file=sent)


@router.get(
    "/{model}",
    summary="One model",
    response_model=ModelAnswer,
    responses={200: {"description": "What it is and what is live.", "headers": ETAG}, **problem_response(UnknownModel)},
)
def get_model(model: ModelName, catalog: CatalogDep) -> Response:
    """Classes, how it was trained and what that implies, its versions, and what is live. The ETag is the revision."""
    head = catalog.database.newest_change(model)
    state = catalog.state(head)
    manifest, row = state.version.manifest, state.calibration
    aliases = catalog.database.aliases(model)
    versions = [
        answers.version(
            each,
            live=each.number == head.version,
            aliases=[name for name, number in aliases.items() if number == each.number],
        )
        for each in catalog.database.versions(model)
    ]
    content = {
        "name": model,
        "class_names": manifest["class_names"],
        "class_counts": row.ledger["class_counts"],
        "input": manifest["input"],
        "trained_with": row.ledger["trained_with"],
        "implied_prior": {"source": row.ledger["source"], "probs": row.ledger["implied_prior"]},
        "calibration_set": row.calibration_set is not None,
        "warnings": [str(each) for each in row.calibration["provenance"].get("warnings", [])],
        "versions": versions,
        "active": answers.active(state),
        "revision": head.revision,
    }
    return Json(content, headers={"ETag": etag(head.revision)})


@router.delete(
    "/{model}",
    summary="Delete a model",
    status_code=204,
    response_class=Response,
    response_description="It is gone.",
    responses=problem_response(
        CrossSite, UnknownModel, ChangedSince, InvalidRequest, PreconditionRequired, StorageUnavailable
    ),
)
def delete_model(model: ModelName, catalog: CatalogDep, follower: FollowerDep, revisions: RevisionsDep) -> Response:
    """Delete a model with its versions, calibrations, priors and history. This cannot be undone.

    `If-Match` must name the revision, so that nobody deletes a model whose state they have not seen.
    """
    head = catalog.database.newest_change(model)
    if not revisions:
        raise PreconditionRequired(
            f"deleting model {model!r} cannot be undone: send If-Match with its ETag, now {etag(head.revision)}."
        )
    expect_revision(model, revisions)(head)
    try:
        catalog.database.forget(model, revision=head.revision)
    except Overtaken as error:
        raise ChangedSince(
            f"model {model!r} was changed in this moment. Look at it again, then delete it.", revision=head.revision + 1
        ) from error
    follower.refresh(model)
    return Response(status_code=204)


def _brief(head: ChangeRow, method: str) -> dict[str, Any]:
    calibration = {"id": f"c{head.calibration}", "method": method}
    active = {"version": str(head.version), "calibration": calibration, "prior": head.prior}
    return {"name": head.model, "revision": head.revision, "active": active}


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == "application/json"


def _url(file: Path) -> str:
    with file.open("rb") as body:
        text = body.read(MAX_JSON_BYTES)
    try:
        return UrlBody.model_validate(orjson.loads(text)).url
    except (orjson.JSONDecodeError, ValidationError) as error:
        raise InvalidRequest('a JSON body holds the URL of a bundle: {"url": "s3://bucket/pets.tar"}.') from error
