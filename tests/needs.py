"""Servers that some tests need: found on this machine, or skipped in one line, or failed where they are required."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest


def missing(what: str, why: str) -> None:
    """Skip the test, or fail it where EQUIPOISE_REQUIRE, a list with commas, names what is missing."""
    required = [name.strip() for name in os.environ.get("EQUIPOISE_REQUIRE", "").split(",")]
    (pytest.fail if what in required else pytest.skip)(f"needs {what}: {why}")


def command(name: str) -> None:
    """Skip the test where a command that it types is not there, or fail it where it is required."""
    if shutil.which(name) is None:
        missing(name, f"no {name} on the path; Debian: apt install {name}")


def postgres_binaries() -> Path | None:
    """The folder of `initdb` and `pg_ctl`: on the path, or where Debian puts the newest version."""
    on_path = shutil.which("pg_ctl")
    if on_path:
        return Path(on_path).parent
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/pg_ctl")]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


class Postgres:
    """A cluster of its own that listens on a socket in its own folder; it can be stopped and started again."""

    def __init__(self, binaries: Path, folder: Path) -> None:
        self._owner = "postgres" if os.geteuid() == 0 else None  # the server refuses to run as root
        self._folder = folder
        self._data = str(folder / "data")
        self._binaries = binaries
        if self._owner:
            os.chown(folder, pwd.getpwnam(self._owner).pw_uid, pwd.getpwnam(self._owner).pw_gid)
        initdb = str(binaries / "initdb")
        self._run(initdb, "-D", self._data, "-U", "equipoise", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        self.start()

    def start(self) -> None:
        options = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        self._pg_ctl("-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        self._pg_ctl("-m", "immediate", "stop")

    def url(self, database: str) -> str:
        return f"postgresql://equipoise@/{database}?host={self._folder}"

    def create(self, database: str) -> str:
        """The SQLAlchemy URL of a new, empty database."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {database}")
        return self.url(database)

    def processes(self) -> list[int]:
        """The server's own process first, then what it has started."""
        first = int((self._folder / "data/postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        return [first, *map(int, children)]

    def _pg_ctl(self, *options: str) -> None:
        self._run(str(self._binaries / "pg_ctl"), "-D", self._data, "-w", *options)

    def _run(self, *command: str) -> None:
        subprocess.run(command, user=self._owner, check=True, capture_output=True, cwd=self._folder, timeout=60)


@contextmanager
def throw_away_postgres() -> Iterator[Postgres]:
    """A running server that is gone afterwards; where there is none to run, the test is skipped or fails."""
    binaries = postgres_binaries()
    if binaries is None:
        missing("postgres", "no pg_ctl on the path or under /usr/lib/postgresql; Debian: apt install postgresql")
        return
    folder = Path(tempfile.mkdtemp(prefix="equipoise-postgres-"))
    try:
        server = Postgres(binaries, folder)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
