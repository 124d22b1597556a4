"""The application: state is built here and not when a server starts, so that it can be tried without one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Depends
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from service.api import (
    catalog,
    handlers,
    health,
    history,
    imports,
    jobs,
    metrics,
    oip,
    priors,
    recalibration,
    repository,
    scores,
    versions,
)
from service.api.call import Server
from service.api.document import Documented, operation_id
from service.api.front import Front
from service.api.known_options import refuse_unknown_options
from service.bundle import read_bundle
from service.catalog import AlreadyRegistered, Catalog
from service.errors import CannotStart, InternalError, InvalidRequest, problem_response
from service.follow import Follower
from service.keys import Keys
from service.metrics import Metrics
from service.runtime.networks import Networks
from service.runtime.onnx import ON_GPU
from service.runtime.pool import Pool
from service.settings import Settings, cpu_quota
from service.store.artifacts import ArtifactStore
from service.store.database import Database
from service.store.fetch import check_prefixes
from service.store.jobs import Jobs
from service.store.keeping import clear_left_overs
from service.worker_process import WorkerProcess

DESCRIPTION = """
Debiased class scores for classifiers trained on long-tailed data, adjusted to the class prior of the place where they
run. Errors are RFC 9457 problem documents, and below /v2 what the Open Inference Protocol says. Every change of a model
is a revision that can be undone, and its ETag guards against changes by somebody else. Uploads are jobs: an answer that
takes longer than a moment is 202 with the job to follow.
"""
TAGS = [
    {"name": "scores", "description": "Images or logits in, debiased scores out."},
    {"name": "recalibration", "description": "Class-frequency files, labelled examples, calibrations, history, undo."},
    {"name": "priors", "description": "Named class laws of the places where a model runs."},
    {"name": "catalog", "description": "Models, their versions and aliases."},
    {"name": "jobs", "description": "Uploads that take longer than a moment."},
    {"name": "inference", "description": "The Open Inference Protocol (v2), as clients of Triton and KServe speak it."},
    {"name": "health", "description": "Liveness, readiness, metrics."},
]


def create_app(settings: Settings, bundles: Sequence[Path] = ()) -> Equipoise:
    """The service with all registered models loaded, and the given bundles registered.

    Following other processes and working on jobs begin with the server, not here.
    Raises: CannotStart when the state cannot be opened, InvalidBundle for a bundle that is not sound.
    """
    state = open_catalog(settings)
    networks = Networks(state.artifacts.get, limit_bytes=settings.model_memory_bytes)
    follower = Follower(state, networks)
    try:
        for path in bundles:
            with suppress(AlreadyRegistered):
                state.register(read_bundle(path), prepare=follower.prepare)
        follower.load()
    except BaseException:
        state.close()
        raise
    return Equipoise(settings, state, follower)


class Equipoise(Documented):
    """The application with its state: FastAPI, behind the front that every request passes first."""

    def __init__(self, settings: Settings, catalog: Catalog, follower: Follower) -> None:
        super().__init__(
            title="Equipoise",
            version="1",
            description=DESCRIPTION,
            openapi_tags=TAGS,
            lifespan=_lifespan,
            redirect_slashes=False,  # to an address that changes something, a redirect without a word is no help
            routes=_routes().routes,
        )
        handlers.install(self)
        keys = None if settings.keys_file is None else Keys(settings.keys_file)
        series = Metrics(follower.registry, queued=lambda: pool.waiting, degraded=lambda: health.degraded(self.state))
        threads = settings.model_threads or (1 if ON_GPU else cpu_quota())
        pool = Pool(threads, most_waiting=settings.most_waiting, observer=series)
        state = self.state
        state.settings, state.catalog, state.follower = settings, catalog, follower
        state.keys, state.metrics, state.pool = keys, series, pool
        state.jobs = Jobs(catalog.database)
        state.workers = [WorkerProcess(settings) for _ in range(settings.workers)]
        state.server = Server.of(follower, pool, settings)
        only_local = keys is None and not settings.allow_anonymous
        self._front = Front(super().__call__, state.server, series, keys, only_local=only_local)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._front(scope, receive, send)

    def close(self) -> None:
        """Let go of the database and the threads."""
        self.state.server.close()
        self.state.catalog.close()


@cache
def _routes() -> APIRouter:
    """Every route, the same for all applications of a process: FastAPI takes a tenth of a second to work them out."""
    routes = APIRouter(responses=problem_response(InternalError), generate_unique_id_function=operation_id)
    strict = [Depends(refuse_unknown_options)]
    refusal = problem_response(InvalidRequest)
    for module in (scores, recalibration, history, priors, catalog, versions, imports, jobs):
        routes.include_router(module.router, dependencies=strict, responses=refusal)
    for module in (oip, repository, health, metrics):
        routes.include_router(module.router)
    return routes


@asynccontextmanager
async def _lifespan(app: Equipoise) -> AsyncGenerator[None, None]:
    state = app.state
    try:
        state.follower.start()
        if state.keys is not None:
            state.keys.start()
        for worker in state.workers:
            worker.start()
        yield
    finally:
        for worker in state.workers:
            await run_in_threadpool(worker.stop)
        state.follower.stop()
        if state.keys is not None:
            state.keys.stop()
        app.close()


def open_catalog(settings: Settings) -> Catalog:
    """Raises: CannotStart when the state folder, the database or the artifact store cannot be opened, or a prefix of
    URLs is none."""
    check_prefixes(settings.bundle_url_prefixes)
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(
            f"the state folder {settings.state_dir} cannot be made: {error.strerror}. Set EQUIPOISE_STATE_DIR to a "
            "folder that can be written."
        ) from error
    clear_left_overs(settings.state_dir)
    cache = settings.state_dir.absolute() / "cache"
    artifacts = ArtifactStore(settings.resolved_artifacts_url, cache, settings.cache_bytes)
    return Catalog(Database(settings.resolved_database_url), artifacts)
