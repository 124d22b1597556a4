"""API keys: what clients send, what the file keeps of it, and the check of every request.

A key is `eqk_ID_SECRET`. The file keeps the SHA-256 of the secret, which is shown once, when the key is made.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from service.errors import CannotStart, MissingKey, ServiceError, WrongScope

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
NOBODY = (secrets.token_bytes(32), "", False)  # no secret has this digest
KeyScope = Literal["score", "manage"]


class Key(BaseModel):
    """What the file keeps of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern="^[0-9a-f]{8}$")]
    name: Annotated[str, Field(pattern=r"^\PC{1,100}$")]  # no control characters: it stands in logs and in the history
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)]
    # Of 256 random bits, which nobody guesses: a slow hash protects weak passwords, and would cost every request much.
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created_at: AwareDatetime


KEYS = TypeAdapter(list[Key])


@dataclass(frozen=True, slots=True, eq=False)
class _State:
    """Keys by their ids, as `_by_id` gives them, and the headers that passed with one: hashing a secret for every
    request costs more than finding it. A dict compares only what has the same hash, which outsiders cannot work out."""

    known: Mapping[bytes, tuple[bytes, str, bool]]
    passed: dict[bytes, tuple[str, bool]] = field(default_factory=dict)


class Keys:
    """The keys of a file; `start` follows its changes.

    A file that can no longer be read leaves the keys that were there in force, and `degraded` says so.
    Raises: CannotStart when there is no file, or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = _signature(path)
        self._state = _State(_by_id(read_keys(path)))
        self._fault: str | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def degraded(self) -> list[str]:
        """Open to everybody, so without what the log says of the file."""
        return [] if self._fault is None else ["the file of keys cannot be read; the keys from before are in force"]

    def check(self, sent: bytes, scope: KeyScope) -> str:
        """The name of the key that came with a request, for logs and for the history.

        Args: sent, the header Authorization. Raises: MissingKey; WrongScope.
        """
        state = self._state  # once: what passed under one file must not count under the next
        found = state.passed.get(sent)
        if found is None:
            found = state.passed[sent] = _owner(state.known, sent)
        owner, manages = found
        if scope == "manage" and not manages:
            raise WrongScope(
                f"this needs a key with the scope manage; {owner!r} has the scope score. Use another key, or make one: "
                "equipoise keys create NAME --scope manage."
            )
        return owner

    def look(self) -> None:
        """Take over the file if it was changed."""
        seen = _signature(self._path)
        if seen == self._seen and self._fault is None:
            return
        try:
            known = _by_id(read_keys(self._path))
        except CannotStart as error:
            if (seen, str(error)) != (self._seen, self._fault):
                log.error("%s The keys from before are in force.", error)
            self._seen, self._fault = seen, str(error)
        else:
            self._state, self._seen, self._fault = _State(known), seen, None
            log.info("the file of keys was changed: %d keys are in force", len(known))

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self.look()


def new_key(name: str, scope: KeyScope) -> tuple[Key, str]:
    """What the file is to keep, and the key for the client. Raises: ServiceError for a name that no key may have."""
    number, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    digest = sha256(secret.encode()).hexdigest()
    now = datetime.now(UTC).replace(microsecond=0)
    try:
        key = Key(id=number, name=name, scopes=(scope,), sha256=digest, created_at=now)
    except ValidationError as error:
        raise ServiceError(f"a key has a name of 1 to 100 characters that can be printed; got {name!r}.") from error
    return key, f"eqk_{number}_{secret}"


def read_keys(path: Path) -> list[Key]:
    """The keys of a file, each with its own id. Raises: CannotStart."""
    try:
        keys = KEYS.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CannotStart(
            f"there is no file of keys {path}. Make it with its first key: "
            f"equipoise keys create NAME --scope score --file {shlex.quote(str(path))}."
        ) from error
    except OSError as error:
        raise CannotStart(
            f"the file of keys {path} cannot be read: {error.strerror}. Let it belong to the user of the service."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise CannotStart(
            f"the file of keys {path} is not a list of keys: {where}: {first['msg']}. Mend it, or put a copy back; "
            "`equipoise keys` writes it whole."
        ) from error
    twice = len(keys) - len({key.id for key in keys})
    if twice:
        raise CannotStart(f"the file of keys {path} has an id more than once. Remove all but one of its keys.")
    return keys


@contextmanager
def changing(path: Path) -> Iterator[list[Key]]:
    """The keys of a file, none where there is no file; written when the block ends well, with everything in it.

    One command at a time: another one waits. Raises: CannotStart for a file that cannot be read, ServiceError for one
    that cannot be written.
    """
    import fcntl  # Windows has none, and serving must start there

    target = path.resolve()  # a link to the file stays one
    try:
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            keys = read_keys(target) if target.exists() else []
            yield keys
            _replace(target, KEYS.dump_json(keys, indent=2) + b"\n")
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise ServiceError(
            f"the file of keys {path} cannot be written: {error.strerror}. Its folder must exist, and belong to "
            "whoever changes the keys."
        ) from error


def _replace(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one; only its owner may read it."""
    unfinished = NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115 - mode 0600
    try:
        with unfinished as file:
            if path.exists():  # root may change the keys of a service that is not root
                os.chown(file.name, path.stat().st_uid, path.stat().st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    finally:
        Path(unfinished.name).unlink(missing_ok=True)


def _owner(known: Mapping[bytes, tuple[bytes, str, bool]], sent: bytes) -> tuple[str, bool]:
    """The name of a key, and whether it may manage. Raises: MissingKey."""
    kind, _, key = sent.partition(b" ")
    # An unknown id is compared too: the time tells nobody which ids there are.
    digest, owner, manages = known.get(key[4:12], NOBODY)
    same = compare_digest(sha256(key[13:]).digest(), digest)
    if not (same and key[:4] == b"eqk_" and key[12:13] == b"_" and kind.lower() == b"bearer"):
        raise _missing(sent)
    return owner, manages


def _by_id(keys: list[Key]) -> dict[bytes, tuple[bytes, str, bool]]:
    """For each id the digest, the name, and whether the key may manage: all that a check needs."""
    return {key.id.encode(): (bytes.fromhex(key.sha256), key.name, "manage" in key.scopes) for key in keys}


def _signature(path: Path) -> tuple[int, ...] | None:
    """Differs when the file was changed, replaced, or became readable; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def _missing(sent: bytes) -> MissingKey:
    way_out = "Send one as `Authorization: Bearer KEY`; `equipoise keys create` makes it."
    if not sent:
        return MissingKey(f"this needs a key, and none came. {way_out}")
    if sent[:7].lower() != b"bearer ":
        return MissingKey(f"this needs a key; Authorization came without the word Bearer. {way_out}")
    return MissingKey(f"the key that came is none of this service: revoked, not whole, or made elsewhere. {way_out}")
