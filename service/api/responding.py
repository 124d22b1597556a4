"""What the routes that change a model share: making the change, and describing it for the OpenAPI page."""

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from models.calibration.errors import CalibrationError
from service import answers
from service.api.dependencies import Json
from service.api.schemas import JobAnswer
from service.catalog import Catalog, Check, Planner
from service.errors import (
    RETRY_AFTER,
    BodyTooLarge,
    ChangedSince,
    CrossSite,
    IdempotencyKeyReused,
    InternalError,
    InvalidRequest,
    JobEnded,
    JobFailed,
    StorageUnavailable,
    TooManyJobs,
    UnknownModel,
    etag,
    problem_response,
)
from service.follow import Follower

CHANGE_PROBLEMS = (CrossSite, UnknownModel, ChangedSince, InvalidRequest, StorageUnavailable)
UPLOAD_PROBLEMS = (
    CrossSite,
    InvalidRequest,
    StorageUnavailable,
    BodyTooLarge,
    IdempotencyKeyReused,
    TooManyJobs,
    JobEnded,
    JobFailed,
    InternalError,
)
BINARY = {"schema": {"type": "string", "format": "binary"}}
ETAG = {
    "ETag": {
        "description": "The revision, for If-Match.",
        "required": True,
        "schema": {"type": "string", "pattern": '^"[0-9]+"$'},
        "example": '"3"',
    }
}
LOCATION = {"description": "Where to follow the job.", "required": True, "schema": {"type": "string"}}
JOB = {"description": "The job that did it.", "required": True, "schema": {"type": "string"}}


def apply(
    catalog: Catalog, follower: Follower, model: str, plan: Planner, check: Check | None, actor: str | None
) -> Response:
    """Make a change, put it in place in this process, and say what is live. Raises: what the change refuses."""
    made, change = catalog.change(model, plan, check=check, prepare=follower.prepare, actor=actor)
    follower.refresh(model)
    return Json(answers.changed(made.state, change), headers={"ETag": etag(change.revision)})


def tagged(*problems: type[CalibrationError]) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that changes a model."""
    return {200: {"description": "What is live now.", "headers": ETAG}, **problem_response(*problems)}


def accepted(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The good answers of an upload: done, nothing changed, or on its way."""
    done = ETAG | {"Content-Location": JOB}
    follow = {"Location": LOCATION, "Retry-After": RETRY_AFTER}
    return {
        200: {"model": answer, "description": "Nothing was changed: a dry run, or known already.", "headers": done},
        201: {"model": answer, "description": "The change is made.", "headers": done},
        202: {"model": JobAnswer, "description": "It takes longer; follow the job.", "headers": follow},
    }
