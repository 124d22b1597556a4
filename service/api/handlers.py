"""Turns whatever a request raises into the answer that tells it."""

import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Scope

from models.calibration.errors import CalibrationError
from service.api.invalid import invalid
from service.errors import (
    BodyTooLarge,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    StorageUnavailable,
    UnknownRoute,
    told,
)

log = logging.getLogger(__name__)

UNANSWERED = StorageUnavailable("the database does not answer; nothing was changed. Try again in a moment.")
DEFECT = InternalError("the service failed on this request; nothing was changed. The log has the reason.")


def install(app: FastAPI) -> None:
    """Let the application answer every error in the form of the address."""
    app.add_exception_handler(CalibrationError, _calibration_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OperationalError, _database_error)
    app.add_exception_handler(PoolTimeout, _database_error)
    app.add_exception_handler(Exception, _defect)


def response_to(scope: Scope, error: Exception) -> Response:
    """The answer to what a route raised; a defect goes to the log with its traceback, and not to the client."""
    if isinstance(error, CalibrationError):
        return told(scope, error)
    if isinstance(error, OperationalError | PoolTimeout):
        return told(scope, UNANSWERED)
    log.error("a defect", exc_info=error)
    return told(scope, DEFECT)


def _calibration_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CalibrationError)
    return told(request.scope, error)


def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return told(request.scope, invalid(error.errors()))


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = f"{request.method} {request.url.path}"
    known: dict[int, CalibrationError] = {
        404: UnknownRoute(f"there is no route {what}. The routes are described at /docs."),
        405: MethodNotAllowed(f"this address does not take {what}. The routes are described at /docs."),
        413: BodyTooLarge(f"the body of {what} {error.detail}."),
    }
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
    return told(request.scope, known.get(error.status_code, InvalidRequest(str(error.detail))), headers=headers)


def _allowed(request: Request) -> str:
    """The methods of all routes at this address; Starlette names those of the first one only."""
    routes = [
        each for each in iter_route_contexts(request.app.routes) if each.matches(request.scope)[0] is not Match.NONE
    ]
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


def _database_error(request: Request, _: Exception) -> Response:
    return told(request.scope, UNANSWERED)


def _defect(request: Request, _: Exception) -> Response:
    """The server logs the traceback; the answer says nothing about it."""
    return told(request.scope, DEFECT)
