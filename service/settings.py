"""Every setting of the service. Nothing else reads the environment."""

import os
from math import ceil
from pathlib import Path
from typing import Annotated

import orjson
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from models.images import MAX_PIXELS
from service.logs import LogFormat

CGROUP = Path("/sys/fs/cgroup")


def cpu_quota(cgroup: Path = CGROUP) -> int:
    """Whole processors that this process may use: a container's quota where there is one, never more than it is
    pinned to. `os.cpu_count()` would count the host's and oversubscribe every small container."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, *_quotas(cgroup)))


def _quotas(cgroup: Path) -> list[int]:
    """The quota of version 2 (`cpu.max`) or of version 1 (two files), rounded up; a huge number for none."""
    unlimited = [1 << 20]
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return [ceil(int(quota) / int(period))] if int(quota) > 0 else unlimited
    except (OSError, ValueError):  # no cgroup file system, or the word "max"
        return unlimited


def environment_of(settings: "Settings") -> dict[str, str]:
    """The environment for a process of its own with the same settings, whose fits use one thread each."""
    ours = {
        f"EQUIPOISE_{name.upper()}": value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
        for name, value in settings.model_dump(exclude_none=True, mode="json").items()
    }
    inherited = dict(os.environ)  # noqa: TID251
    return inherited | ours | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Settings(BaseSettings):
    """Read from environment variables with the prefix `EQUIPOISE_`, or given by name."""

    model_config = SettingsConfigDict(env_prefix="EQUIPOISE_", frozen=True, extra="forbid")

    state_dir: Annotated[Path, Field(description="Folder of the database and the artifacts.")] = Path("var")
    database_url: Annotated[
        str | None, Field(description="SQLAlchemy URL; without it, an SQLite file in the state folder.")
    ] = None
    artifacts_url: Annotated[
        str | None, Field(description="URL of the artifact store; without it, a folder in the state folder.")
    ] = None
    host: Annotated[str, Field(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="Port to listen on; 0 takes a free one.")] = 8000
    keys_file: Annotated[
        Path | None, Field(description="File of API keys; without it the service listens on loopback only.")
    ] = None
    allow_anonymous: Annotated[
        bool, Field(description="Listen beyond the loopback address although requests carry no key.")
    ] = False
    max_body_bytes: Annotated[int, Field(ge=1, description="Largest body of a scores request in bytes.")] = 32 << 20
    max_upload_bytes: Annotated[
        int, Field(ge=1, description="Largest upload in bytes: bundles, networks, frequency files, labelled examples.")
    ] = 4 << 30
    max_pixels: Annotated[int, Field(ge=1, description="Largest image in pixels.")] = MAX_PIXELS
    model_threads: Annotated[
        int | None,
        Field(ge=1, description="Runs of a network at the same time; without it, the CPU quota, or 1 with a GPU."),
    ] = None
    most_waiting: Annotated[
        int, Field(ge=1, description="Batches of requests that wait for a thread, beyond which requests get 429.")
    ] = 256
    deadline_seconds: Annotated[
        float,
        Field(gt=0, description="How long a scores request may take; it is dropped then. Clients may ask for less."),
    ] = 10.0
    body_memory_bytes: Annotated[
        int, Field(ge=1, description="Bodies of scores requests in memory at the same time, beyond which they get 429.")
    ] = 1 << 30
    stall_seconds: Annotated[
        float, Field(gt=0, description="How long a client may send nothing before the end of a body.")
    ] = 30.0
    stop_seconds: Annotated[
        int, Field(ge=0, description="How long a service that is told to stop finishes what it accepted.")
    ] = 30

    model_memory_bytes: Annotated[
        int, Field(ge=1, description="Networks in memory, by the size of their graphs; the least used go first.")
    ] = 4 << 30
    cache_bytes: Annotated[int, Field(ge=1, description="Copies of remote artifacts in the state folder.")] = 16 << 30
    bundle_url_prefixes: Annotated[
        tuple[str, ...],
        Field(description='URLs under which bundles may be registered by URL, as JSON: ["s3://bucket/bundles"].'),
    ] = ()
    workers: Annotated[
        int, Field(ge=0, description="Worker processes for refits; 0 where `equipoise worker` runs by itself.")
    ] = 1
    job_wait_seconds: Annotated[
        float, Field(ge=0, description="How long an upload waits for its job before it answers 202.")
    ] = 10.0

    log_format: Annotated[
        LogFormat, Field(description="`json`, `text`, or `auto`: text on a terminal and JSON elsewhere.")
    ] = "auto"

    @property
    def resolved_database_url(self) -> str:
        in_state_dir = URL.create("sqlite", database=str(self.state_dir.absolute() / "equipoise.db"))
        return self.database_url or in_state_dir.render_as_string()

    @property
    def resolved_artifacts_url(self) -> str:
        return self.artifacts_url or (self.state_dir.absolute() / "artifacts").as_uri()
