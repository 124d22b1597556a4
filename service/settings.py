"""Every setting of the service. Nothing else reads the environment."""

import os
from math import ceil
from pathlib import Path
from typing import Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy import URL

from models.images import MAX_PIXELS

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
    allow_anonymous: Annotated[
        bool, Field(description="Listen beyond the loopback address although requests carry no key.")
    ] = False
    max_body_bytes: Annotated[int, Field(ge=1, description="Largest request body in bytes.")] = 32 << 20
    max_pixels: Annotated[int, Field(ge=1, description="Largest image in pixels.")] = MAX_PIXELS
    model_threads: Annotated[
        int, Field(ge=1, description="Runs of a network at the same time; without it, the CPU quota.")
    ] = Field(default_factory=cpu_quota)

    @property
    def resolved_database_url(self) -> str:
        in_state_dir = URL.create("sqlite", database=str(self.state_dir.absolute() / "equipoise.db"))
        return self.database_url or in_state_dir.render_as_string()

    @property
    def resolved_artifacts_url(self) -> str:
        return self.artifacts_url or (self.state_dir.absolute() / "artifacts").as_uri()
