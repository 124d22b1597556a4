"""Servers that some tests need: found on this machine, or skipped in one line, or failed where they are required."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def missing(what: str, why: str) -> None:
    """Skip the test, or fail it where EQUIPOISE_REQUIRE, a list with commas, names what is missing."""
    required = [name.strip() for name in os.environ.get("EQUIPOISE_REQUIRE", "").split(",")]
    (pytest.fail if what in required else pytest.skip)(f"needs {what}: {why}")


def postgres_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: on the path, or where Debian puts the newest version."""
    on_path = shutil.which("pg_ctl")
    if on_path:
        return Path(on_path).parent
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


@contextmanager
def throw_away_postgres(binaries: Path) -> Iterator[str]:
    """A cluster of its own that listens on a socket in its own folder, and is gone afterwards.

    Yields: an SQLAlchemy URL without the database's name; append to it what `str.format(database=...)` fills in.
    """
    folder = Path(tempfile.mkdtemp(prefix="equipoise-postgres-"))
    owner = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
    try:
        if owner:
            os.chown(folder, pwd.getpwnam(owner).pw_uid, pwd.getpwnam(owner).pw_gid)

        def run(*command: str) -> None:
            subprocess.run(command, user=owner, check=True, capture_output=True, cwd=folder, timeout=60)

        data = str(folder / "data")
        run(str(binaries / "initdb"), "-D", data, "-U", "equipoise", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        pg_ctl = str(binaries / "pg_ctl")
        run(pg_ctl, "-D", data, "-w", "-o", options, "-l", str(folder / "log"), "start")
        try:
            yield f"postgresql://equipoise@/{{database}}?host={folder}"
        finally:
            run(pg_ctl, "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder)
