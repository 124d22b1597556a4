"""Uploads: streamed to a file, kept as an artifact, handed to a worker as a job; the answer waits a moment for it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service import answers
from service.api.bodies import FORM, Limits, chunks
from service.api.dependencies import ActorDep, Json
from service.errors import InvalidRequest, JobEnded, StorageUnavailable, answer_of, etag, problem
from service.store.database import now
from service.store.jobs import ENDED
from service.store.keeping import UPLOAD_FOLDER
from service.store.tables import JobRow

log = logging.getLogger(__name__)

FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.01, 0.25
LONGEST_WAIT_SECONDS = 300.0
MAX_PARTS = 20  # files of a form, and texts; an import has the most
MAX_FIELD_BYTES = 1 << 20  # of a form's texts, which are held in memory
MAKING = ("register", "import")  # kinds of jobs whose model need not exist
KEY = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a client says about an upload besides its options: how long to wait, once only, and who it is."""

    wait_seconds: float | None
    idempotency_key: str | None
    actor: str | None


def _asked(
    actor: ActorDep,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=SECONDS` for the job, or `respond-async` not at all (RFC 7240).",
            examples=["wait=60", "respond-async"],
        ),
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="The same key with the same request again gives the answer of the first, and changes nothing.",
            examples=["5f2c1a"],
        ),
    ] = None,
) -> Asked:
    if idempotency_key is not None and not KEY.fullmatch(idempotency_key):
        raise InvalidRequest("an Idempotency-Key is 1 to 200 printable ASCII characters without spaces.")
    return Asked(wait_seconds=_wait(prefer or ""), idempotency_key=idempotency_key, actor=actor)


AskedDep = Annotated[Asked, Depends(_asked)]


def _wait(prefer: str) -> float | None:
    """RFC 7240: preferences that are not understood are passed over."""
    if re.search(r"(^|[,;\s])respond-async($|[,;\s])", prefer):
        return 0.0
    found = re.search(r"(^|[,;\s])wait=([0-9]{1,6})($|[,;\s])", prefer)
    return None if found is None else min(float(found[2]), LONGEST_WAIT_SECONDS)


@asynccontextmanager
async def body_file(request: Request) -> AsyncGenerator[Path, None]:
    """The body as a file that goes with the block: the one file of a form, or the body itself.

    Raises: BodyTooLarge, InvalidRequest for an empty body or another number of files.
    """
    if _kind(request) == FORM:
        async with form_of(request) as form:
            files = [value for _, value in form.multi_items()]
            if len(files) != 1 or not isinstance(files[0], UploadFile):
                raise InvalidRequest(
                    "one file at a time, and nothing else in the form; options belong into the query. Got "
                    f"{len(files)} parts."
                )
            async with upload_folder(request) as folder:
                await run_in_threadpool(_copy, files[0], folder / "body")
                yield folder / "body"
        return
    async with upload_folder(request) as folder:
        path = folder / "body"
        with path.open("wb") as file:
            async for chunk in _chunks(request):
                await run_in_threadpool(file.write, chunk)
        if not path.stat().st_size:
            raise InvalidRequest("the body is empty. Send a file: with curl, --data-binary @FILE.")
        yield path


@asynccontextmanager
async def form_of(request: Request) -> AsyncGenerator[FormData, None]:
    """The form of a request; its files are on disk where they are large. Raises: BodyTooLarge, InvalidRequest."""
    if _kind(request) != FORM:
        raise InvalidRequest(f"this takes a form ({FORM}), as curl -F name=@FILE sends it; got {_kind(request)!r}.")
    bounds = {"max_files": MAX_PARTS, "max_fields": MAX_PARTS, "max_part_size": MAX_FIELD_BYTES}
    try:
        with _on_disk():
            form = await MultiPartParser(request.headers, _chunks(request), **bounds).parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}. Send files as curl -F file=@FILE does.") from error
    try:
        yield form
    finally:
        await form.close()


@asynccontextmanager
async def upload_folder(request: Request) -> AsyncGenerator[Path, None]:
    """An empty folder that goes with the block."""
    folder = request.app.state.settings.state_dir
    with _on_disk(), tempfile.TemporaryDirectory(prefix=UPLOAD_FOLDER, dir=folder) as made:
        yield Path(made)


@contextmanager
def _on_disk() -> Iterator[None]:
    """Raises: StorageUnavailable when the disk takes nothing."""
    try:
        yield
    except OSError as error:
        log.warning("an upload cannot be stored: %s", error)  # it names folders
        raise StorageUnavailable(
            "the disk cannot take the upload; nothing was changed. The log has the reason."
        ) from error


def _copy(file: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        while chunk := file.file.read(1 << 20):
            target.write(chunk)


def _chunks(request: Request) -> AsyncGenerator[bytes, None]:
    settings = request.app.state.settings
    most = settings.max_upload_bytes
    rule = f"an upload has at most {most:,} bytes (EQUIPOISE_MAX_UPLOAD_BYTES)"
    limits = Limits(most_bytes=most, stall_seconds=settings.stall_seconds, rule=rule)
    return chunks(dict(request.scope["headers"]), request.receive, limits)


def _kind(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def submitted(
    request: Request,
    kind: str,
    *,
    model: str,
    options: dict[str, Any],
    asked: Asked,
    file: Path | None,
) -> Response:
    """Store the job, wait a moment for it, and answer: what it made, why it was refused, or where to follow it.

    Raises: UnknownModel, IdempotencyKeyReused, TooManyJobs, StorageUnavailable.
    """
    state = request.app.state
    if kind not in MAKING:
        await run_in_threadpool(state.catalog.database.newest_change, model)
    digest = None if file is None else await run_in_threadpool(state.catalog.keeper.put_file, file)
    job = JobRow(
        kind=kind,
        target=model,
        options=options,
        input_digest=digest,
        request_digest=hashlib.sha256(orjson.dumps([kind, model, options, digest])).hexdigest(),
        idempotency_key=asked.idempotency_key,
        actor=asked.actor,
        created_at=now(),
    )
    job = await run_in_threadpool(state.jobs.submit, job)
    for worker in state.workers:
        worker.wake()
    wait = state.settings.job_wait_seconds if asked.wait_seconds is None else asked.wait_seconds
    job = await _ended(request, job, wait)
    return await run_in_threadpool(_answer, request, job)


async def _ended(request: Request, job: JobRow, wait_seconds: float) -> JobRow:
    """The job as it is when it has ended or the time is over."""
    until, pause = monotonic() + wait_seconds, FIRST_LOOK_SECONDS
    while job.status not in ENDED and monotonic() < until:
        await asyncio.sleep(pause)
        pause = min(1.5 * pause, LAST_LOOK_SECONDS)
        job = await run_in_threadpool(request.app.state.jobs.get, job.number)
    return job


def _answer(request: Request, job: JobRow) -> Response:
    where = f"/v1/jobs/{job.id}"
    if job.status == "failed":
        assert job.problem is not None  # what a failed job ends with
        return answer_of(job.problem)
    if job.status == "cancelled":
        return problem(JobEnded(f"job {job.id} was cancelled; nothing was changed."))
    if job.status != "done" or job.result is None:
        return Json(answers.job(job), status_code=202, headers={"Location": where, "Retry-After": "1"})
    if job.revision is not None:
        request.app.state.follower.refresh(job.result["model"])  # the next request to this process sees the change
    status = 201 if job.revision is not None else 200
    headers = {"ETag": etag(job.result["revision"]), "Content-Location": where}
    return Json(job.result, status_code=status, headers=headers)
