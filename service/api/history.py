"""What was done to a model, and undoing it."""

import os
import re
from collections.abc import Iterator
from io import BufferedReader
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import StreamingResponse

from service import answers, changes
from service.api.dependencies import ActorDep, CatalogDep, CheckDep, FollowerDep, Json
from service.api.parameters import ModelName, RevisionNumber
from service.api.responding import BINARY, CHANGE_PROBLEMS, apply, tagged
from service.api.schemas import ChangeAnswer, ChangedAnswer, HistoryAnswer
from service.catalog import expect_revision
from service.errors import NothingToUndo, StorageUnavailable, UnknownModel, UnknownRevision, problem_response
from service.store.folder import chunks_of
from service.store.tables import ChangeRow

router = APIRouter(prefix="/v1/models/{model}", tags=["recalibration"], responses=problem_response(StorageUnavailable))


@router.get(
    "/history",
    summary="Every change of a model",
    response_description="All changes, the oldest first.",
    response_model=HistoryAnswer,
    responses=problem_response(UnknownModel),
)
def list_changes(model: ModelName, catalog: CatalogDep) -> Response:
    """The newest last; `undoes_to` is the revision whose state an undo of the change restores."""
    catalog.database.newest_change(model)
    return Json({"changes": [answers.history(row) for row in catalog.database.history(model)]})


@router.get(
    "/history/{revision}",
    summary="One change with its report",
    response_description="The change.",
    response_model=ChangeAnswer,
    responses=problem_response(UnknownModel, UnknownRevision),
)
def get_change(model: ModelName, revision: RevisionNumber, catalog: CatalogDep) -> Response:
    """Who, when, from which file, and the whole comparison before and after."""
    row = _change(catalog, model, revision)
    return Json(answers.history(row) | {"report": catalog.database.report(model, row.revision)})


@router.get(
    "/history/{revision}/file",
    summary="The file of a change",
    response_class=Response,
    responses={
        200: {"description": "The upload as it came.", "content": {"application/octet-stream": BINARY}},
        **problem_response(UnknownModel, UnknownRevision),
    },
)
def get_change_file(model: ModelName, revision: RevisionNumber, catalog: CatalogDep) -> Response:
    """The uploaded file that led to a change, byte for byte."""
    row = _change(catalog, model, revision)
    if row.file_digest is None:
        raise UnknownRevision(f"revision {row.revision} of model {model!r} ({row.action}) came without a file.")
    headers = {"ETag": f'"{row.file_digest}"', "Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
    path = catalog.artifacts.path(row.file_digest)
    file = path.open("rb")  # at once: a cached copy may be removed
    length = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
    return StreamingResponse(_pieces(file), media_type="application/octet-stream", headers=headers | length)


@router.post(
    "/undo",
    summary="Undo the newest change",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, NothingToUndo),
)
def undo(
    model: ModelName,
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
    revision: Annotated[
        int | None,
        Query(
            ge=1,
            le=2**31 - 1,
            description="The change to undo; a newer one than this answers 409 instead.",
            examples=[6],
        ),
    ] = None,
) -> Response:
    """Restore what was live before the newest change of it. Repeated, it walks back; the history keeps every step."""

    def both(head: ChangeRow) -> None:
        check(head)
        expect_revision(model, None if revision is None else [revision])(head)

    return apply(catalog, follower, model, changes.undo(catalog, model), both, actor)


def _pieces(file: BufferedReader) -> Iterator[bytes]:
    with file:
        yield from chunks_of(file)


def _change(catalog: CatalogDep, model: str, revision: str) -> ChangeRow:
    catalog.database.newest_change(model)
    found = catalog.database.change(model, int(revision)) if re.fullmatch(r"[1-9][0-9]{0,8}", revision) else None
    if found is None:
        raise UnknownRevision(f"model {model!r} has no revision {revision}. GET /v1/models/{model}/history lists them.")
    return found
