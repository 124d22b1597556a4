"""The application: state is built here and not when a server starts, so that it can be tried without one."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from service import errors
from service.api import catalog, health, recalibration, scores
from service.api.cross_site import RefuseCrossSite
from service.bundle import read_bundle
from service.catalog import Catalog
from service.errors import CannotStart, InternalError, InvalidRequest, StorageUnavailable, problem_response
from service.settings import Settings
from service.store.artifacts import ArtifactStore
from service.store.database import Database

DESCRIPTION = """
Debiased class scores for classifiers trained on long-tailed data, adjusted to the class prior of the place where they
run. Errors are RFC 9457 problem documents; every change of a model is a revision that can be undone, and its ETag
guards against changes by somebody else.
"""
TAGS = [
    {"name": "scores", "description": "Images or logits in, debiased scores out."},
    {"name": "recalibration", "description": "Class-frequency files, calibrations, priors, undo."},
    {"name": "catalog", "description": "Models and their versions."},
    {"name": "health", "description": "Liveness and readiness."},
]


def create_app(settings: Settings, bundles: Sequence[Path] = ()) -> FastAPI:
    """The service with all registered models loaded, and the given bundles registered.

    Raises: CannotStart when the state cannot be opened, InvalidBundle for a bundle that is not sound.
    """
    state = open_catalog(settings)
    try:
        for path in bundles:
            state.register(read_bundle(path))
        state.load()
    except BaseException:
        state.close()
        raise

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        yield
        state.close()

    app = FastAPI(
        title="Equipoise",
        version="1",
        description=DESCRIPTION,
        openapi_tags=TAGS,
        lifespan=lifespan,
        responses=problem_response(InvalidRequest, StorageUnavailable, InternalError),
    )
    app.state.settings = settings
    app.state.catalog = state
    errors.install(app)
    app.add_middleware(RefuseCrossSite)
    for module in (scores, recalibration, catalog, health):
        app.include_router(module.router)
    return app


def open_catalog(settings: Settings) -> Catalog:
    """Raises: CannotStart when the state folder, the database or the artifact store cannot be opened."""
    try:
        settings.state_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotStart(
            f"the state folder {settings.state_dir} cannot be made: {error.strerror}. Set EQUIPOISE_STATE_DIR to a "
            "folder that can be written."
        ) from error
    artifacts = ArtifactStore(settings.resolved_artifacts_url)
    return Catalog(Database(settings.resolved_database_url), artifacts, model_threads=settings.model_threads)
