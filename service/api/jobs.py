"""Following jobs: uploads that a worker does."""

import re
from typing import Annotated

from fastapi import APIRouter, Query, Response

from models.calibration.manifest import MODEL_NAME
from service import answers
from service.api.dependencies import JobsDep, Json
from service.api.parameters import JobName
from service.api.schemas import JobAnswer, JobsAnswer
from service.errors import (
    CrossSite,
    InvalidRequest,
    StorageUnavailable,
    UnknownJob,
    problem_response,
)

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problem_response(StorageUnavailable))


@router.get(
    "",
    summary="List jobs",
    response_description="The newest jobs first.",
    response_model=JobsAnswer,
    responses=problem_response(InvalidRequest),
)
def list_jobs(
    jobs: JobsDep,
    model: Annotated[
        str | None,
        Query(description="Only the jobs of this model.", pattern=f"^{MODEL_NAME.pattern}$", examples=["pets"]),
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="At most so many, the newest first.")] = 100,
) -> Response:
    """The jobs of the last 30 days, the newest first, without their results."""
    rows = jobs.newest(model=model, limit=limit)
    return Json({"jobs": [answers.job(row) | {"result": None} for row in rows]})


@router.get(
    "/{job}",
    summary="One job",
    response_description="The job as it is now.",
    response_model=JobAnswer,
    responses=problem_response(UnknownJob),
)
def get_job(job: JobName, jobs: JobsDep) -> Response:
    """How far it is; when it has ended, its `result`, or the `problem` for which it was refused."""
    return Json(answers.job(jobs.get(_number(job))))


@router.post(
    "/{job}/cancel",
    summary="Cancel a job",
    response_description="The job as it is now.",
    response_model=JobAnswer,
    responses=problem_response(CrossSite, UnknownJob),
)
def cancel_job(job: JobName, jobs: JobsDep) -> Response:
    """End a job that has not ended: nothing is changed by it. One that has ended stays as it is."""
    return Json(answers.job(jobs.cancel(_number(job))))


def _number(job: str) -> int:
    if not re.fullmatch(r"j[1-9][0-9]{0,8}", job):
        raise UnknownJob(f"jobs are called j1, j2 and so on; got {job!r}. GET /v1/jobs lists them.")
    return int(job[1:])
