"""The service's own errors, and the one table that turns every error into an answer.

The answer is an RFC 9457 problem document, and what the Open Inference Protocol says below /v2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from fastapi import Response
from starlette.types import Scope

from models.calibration.errors import (
    CalibrationError,
    FrequencyFileError,
    ImageTooLarge,
    InvalidCalibrationSet,
    LeakedSplit,
    NotEnoughData,
    UnknownTrainingRule,
)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 2
RETRIED = (429, 503)


class ServiceError(CalibrationError):
    """Something about a request or the service's state, not about the maths."""


class InvalidRequest(ServiceError):
    """A request whose parameters or body do not follow the rules.

    Args: errors, each thing that is wrong, where it is known where.
    """

    def __init__(self, message: str, *, errors: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.errors = errors


class UnknownRoute(ServiceError):
    """An address that the service does not have."""


class MethodNotAllowed(ServiceError):
    """An address that exists, asked with another method."""


class CrossSite(ServiceError):
    """A request that a web page of another site sent through a browser."""


class MissingKey(ServiceError):
    """A request without an API key that the service knows."""


class WrongScope(ServiceError):
    """An API key that may not do this."""


class UnknownModel(ServiceError):
    """A model name that the service does not have."""


class UnknownVersion(ServiceError):
    """A version that the model does not have."""


class UnknownCalibration(ServiceError):
    """A calibration that the model does not have."""


class UnknownRevision(ServiceError):
    """A revision that the model does not have, or one without what was asked for."""


class UnknownPrior(ServiceError):
    """A prior that the model does not have."""


class UnknownAlias(ServiceError):
    """An alias that the model does not have."""


class UnknownJob(ServiceError):
    """A job that does not exist, or ended so long ago that it was forgotten."""


class InUse(ServiceError):
    """Something that is live or has an alias, and cannot be deleted."""


class PreconditionRequired(ServiceError):
    """A change that is only made when the request names the state that it means."""


class IdempotencyKeyReused(ServiceError):
    """An Idempotency-Key that came with another request before."""


class TooManyJobs(ServiceError):
    """More jobs wait than the service takes."""


class JobEnded(ServiceError):
    """The job was cancelled before it changed anything."""


class JobFailed(ServiceError):
    """The workers died on the job, several times."""


class QueueFull(ServiceError):
    """More requests wait than the service can answer in time."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = max(1, retry_after)


class DeadlinePassed(ServiceError):
    """A request that could not be answered in the time that it had."""

    def __init__(self) -> None:
        super().__init__(
            "there was no answer in the time that the request had: its own timeout, or EQUIPOISE_DEADLINE_SECONDS. Try "
            "again later."
        )


class BodyStalled(ServiceError):
    """A body of which nothing more came for too long."""


class ClientGone(ServiceError):
    """The client left before its answer was there: nobody reads this."""


class UnsupportedBody(ServiceError):
    """A body of a kind that the route does not take."""


class BodyTooLarge(ServiceError):
    """A body over the limit."""


class LogitsOnly(ServiceError):
    """Images were sent to a model without a network."""


class NameTaken(ServiceError):
    """A name that already stands for something else."""


class NothingToUndo(ServiceError):
    """There is no former state to go back to."""


class ChangedSince(ServiceError):
    """The model was changed since the state that the request speaks of."""

    def __init__(self, message: str, *, revision: int) -> None:
        super().__init__(message)
        self.revision = revision


class ModelNotLoaded(ServiceError):
    """The model is registered but cannot answer now."""


class NotReady(ServiceError):
    """The service cannot answer for every model now."""

    def __init__(self, missing: Sequence[str]) -> None:
        super().__init__(f"not ready: {'; '.join(missing)}")


class StorageUnavailable(ServiceError):
    """The database or the artifact store does not answer, or gave back damaged data."""


class InvalidBundle(ServiceError):
    """Files that are not a complete and unharmed bundle."""


class CannotStart(ServiceError):
    """Settings under which the service cannot run."""


class InternalError(ServiceError):
    """A defect of the service."""


# A subclass inherits the code of its nearest listed parent.
STATUS: Mapping[type[CalibrationError], int] = {
    CalibrationError: 422,
    MissingKey: 401,
    CrossSite: 403,
    WrongScope: 403,
    UnknownRoute: 404,
    UnknownModel: 404,
    UnknownVersion: 404,
    UnknownCalibration: 404,
    UnknownPrior: 404,
    UnknownRevision: 404,
    UnknownAlias: 404,
    UnknownJob: 404,
    MethodNotAllowed: 405,
    NameTaken: 409,
    NothingToUndo: 409,
    ChangedSince: 409,
    InUse: 409,
    JobEnded: 409,
    LeakedSplit: 409,
    NotEnoughData: 409,
    UnknownTrainingRule: 409,
    BodyStalled: 408,
    BodyTooLarge: 413,
    ImageTooLarge: 413,
    UnsupportedBody: 415,
    PreconditionRequired: 428,
    QueueFull: 429,
    TooManyJobs: 429,
    ClientGone: 499,
    InternalError: 500,
    JobFailed: 500,
    DeadlinePassed: 503,
    ModelNotLoaded: 503,
    NotReady: 503,
    StorageUnavailable: 503,
}


def status_of(error: type[CalibrationError]) -> int:
    return next(STATUS[parent] for parent in error.__mro__ if parent in STATUS)


def etag(revision: int) -> str:
    return f'"{revision}"'


def problem_type(error: type[CalibrationError]) -> str:
    """A stable relative reference: `/problems/` and the class name in kebab case."""
    return "/problems/" + re.sub(r"(?<!^)(?=[A-Z])", "-", error.__name__).lower()


def told(
    scope: Scope,
    error: CalibrationError,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer that tells an error, in the form of the address that was asked."""
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(error.retry_after), **(headers or {})}
    if f"{scope['path']}/".startswith("/v2/"):
        return inference_error(error, headers=headers)
    return problem(error, errors=errors, headers=headers)


def inference_error(error: CalibrationError, *, headers: Mapping[str, str] | None = None) -> Response:
    status = inference_status(type(error))
    return Response(
        orjson.dumps({"error": str(error)}),
        status_code=status,
        headers={**_headers(status), **(headers or {})},
        media_type="application/json",
    )


def inference_status(error: type[CalibrationError]) -> int:
    """Servers of the Open Inference Protocol know 400 where /v1 says 422."""
    return 400 if status_of(error) == 422 else status_of(error)


def problem(
    error: CalibrationError, *, errors: Sequence[Mapping[str, Any]] = (), headers: Mapping[str, str] | None = None
) -> Response:
    """The answer that tells an error."""
    return answer_of(problem_document(error, errors=errors), headers=headers)


def answer_of(document: Mapping[str, Any], *, headers: Mapping[str, str] | None = None) -> Response:
    """A problem document as an answer; it says when to try again where that helps."""
    status = int(document["status"])
    more = _headers(status)
    if "revision" in document:
        more["ETag"] = etag(document["revision"])
    return Response(
        orjson.dumps(document), status_code=status, headers={**more, **(headers or {})}, media_type=PROBLEM_JSON
    )


def _headers(status: int) -> dict[str, str]:
    """What an answer with this status says besides: how to get in, or when to try again."""
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in RETRIED else {}


def problem_document(error: CalibrationError, *, errors: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """`title` belongs to the type and `detail` to this occurrence; `errors` is everything that is wrong."""
    errors = errors or _all_that_is_wrong(error)
    document: dict[str, Any] = {
        "type": problem_type(type(error)),
        "title": (type(error).__doc__ or "").split("\n")[0],
        "status": status_of(type(error)),
        "detail": _in_short(error) if isinstance(error, FrequencyFileError) else str(error),
    }
    if errors:
        document["errors"] = list(errors)
    if isinstance(error, ChangedSince):
        document["revision"] = error.revision
    return document


def _in_short(error: FrequencyFileError) -> str:
    """The first problem and the count: `errors` lists them all."""
    if len(error.problems) == 1:
        return str(error)
    count = len(error.problems)
    first = str(error.problems[0])
    return f"{count} problems in the class-frequency file, nothing applied; the first of them in `errors`: {first}"


def _all_that_is_wrong(error: CalibrationError) -> list[dict[str, Any]]:
    if isinstance(error, FrequencyFileError):
        return [{"line": each.line, "message": each.message} for each in error.problems]
    if isinstance(error, InvalidRequest):
        return [dict(each) for each in error.errors]
    if isinstance(error, InvalidCalibrationSet):
        return [{"message": each} for each in error.problems]
    return []


def problem_response(*errors: type[CalibrationError]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI page says of the problems that a route answers with."""
    by_status: dict[int | str, dict[str, Any]] = {}
    for error in dict.fromkeys(errors):
        status = status_of(error)
        entry = by_status.setdefault(status, {"description": "", "content": {PROBLEM_JSON: {"schema": PROBLEM_REF}}})
        if status in RETRIED:
            entry["headers"] = {"Retry-After": RETRY_AFTER}
        if error is ChangedSince:
            entry["headers"] = {"ETag": {"description": "The newest revision.", "schema": {"type": "string"}}}
        line = f"`{problem_type(error)}`: {(error.__doc__ or '').splitlines()[0]}"
        entry["description"] = f"{entry['description']}\n\n{line}".strip()
    return by_status


RETRY_AFTER: Mapping[str, Any] = {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}
PROBLEM_REF = {"$ref": "#/components/schemas/Problem"}
PROBLEM_SCHEMA: Mapping[str, Any] = {
    "title": "Problem",
    "description": "RFC 9457: `type` is stable, `detail` says the rule, what came, and the way out.",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {
            "type": "string",
            "description": "What programs decide by.",
            "pattern": "^/problems/[a-z0-9-]+$",
            "examples": ["/problems/unknown-model"],
        },
        "title": {"type": "string", "description": "The same for every problem of this type."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What went wrong this time, for people."},
        "errors": {
            "type": "array",
            "description": "Everything that is wrong, where it is more than one thing.",
            "items": {
                "type": "object",
                "required": ["message"],
                "properties": {
                    "message": {"type": "string"},
                    "line": {"type": ["integer", "null"], "description": "Of the file, from 1."},
                    "where": {"type": "string", "description": "Of the request.", "examples": ["query.top_k"]},
                    "got": {"type": "string"},
                },
            },
        },
        "revision": {"type": "integer", "description": "The newest, where the request spoke of an older one."},
    },
}
