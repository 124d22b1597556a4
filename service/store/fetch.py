"""Downloading a bundle by its URL, from places that the operator has allowed and from nowhere else.

What is compared with the allowed prefixes is taken apart first and put together again for the download, so that both
mean the same place.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit
from uuid import uuid4

import httpx
import obstore

from service.errors import BodyTooLarge, CannotStart, ServiceError, StorageUnavailable
from service.store.folder import CHUNK_BYTES, chunks_of
from service.store.remote import STORE_ERRORS, open_object_store

SETTING = "EQUIPOISE_BUNDLE_URL_PREFIXES"
SCHEMES = ("s3", "gs", "az", "https", "http", "file")
DEFAULT_PORTS = {"http": 80, "https": 443}
WAIT_SECONDS = httpx.Timeout(10.0, connect=5.0)  # for each read, not for the whole


class UrlNotAllowed(ServiceError):
    """A URL that does not lie under one of the prefixes that the operator has allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A URL taken apart: scheme and host in lower case, the port unless it is the default one, decoded segments."""

    scheme: str
    host: str
    segments: tuple[str, ...]

    @property
    def root(self) -> str:
        return f"{self.scheme}://{self.host}"

    @property
    def path(self) -> str:
        return "/".join(self.segments)

    def lies_under(self, prefix: "Address") -> bool:
        return self.root == prefix.root and self.segments[: len(prefix.segments)] == prefix.segments


def check_prefixes(allowed: Sequence[str]) -> None:
    """Raises: CannotStart for a prefix under which no URL could lie; it would have every URL refused."""
    try:
        for prefix in allowed:
            address_of(prefix.removesuffix("/"))
    except UrlNotAllowed as error:
        raise CannotStart(f"{SETTING} holds a prefix that is none: {error}") from error


def fetch(url: str, *, allowed: Sequence[str], limit: int, into: Path) -> Path:
    """Download one object of at most `limit` bytes to a new file in the folder `into`; the caller removes it.

    Args: allowed holds prefixes such as `https://host/models` or `s3://bucket`; they end at a segment of the path.
    Raises: UrlNotAllowed, BodyTooLarge, or StorageUnavailable when the object cannot be had; then nothing is left.
    """
    address, prefix = _allowed_address(url, allowed)
    try:
        with _opened(address, prefix) as (size, chunks), _new_file(into) as file:
            for chunk in _limited(chunks, size, limit, url):
                file.write(chunk)
    except (*STORE_ERRORS, httpx.HTTPError) as error:
        reason = str(error).strip().split("\n")[0]
        raise StorageUnavailable(f"{url} cannot be downloaded: {reason}. Nothing was changed.") from error
    return Path(file.name)


def address_of(url: str) -> Address:
    """Raises: UrlNotAllowed for a URL that could be understood in more than one way."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname or "", parts.port
        segments = tuple(unquote(segment, errors="strict") for segment in parts.path.split("/")[1:])
    except ValueError as error:
        raise UrlNotAllowed(f"a bundle's URL must be well formed; got {url!r}: {error}.") from error
    plain = re.fullmatch(r"[!-~]+", url) and not re.search(r"[?#\\]", url) and "@" not in parts.netloc
    if not plain or not all(_is_plain(segment) for segment in segments):
        raise UrlNotAllowed(
            "a bundle's URL has no user, query, fragment, backslash, empty segment or .., escaped or not, and escapes "
            f"all but plain ASCII; got {url!r}."
        )
    if scheme not in SCHEMES or not re.fullmatch(r"" if scheme == "file" else r"[a-z0-9._-]+|[0-9a-f:.]+", host):
        raise UrlNotAllowed(f"a bundle's URL is {', '.join(f'{each}://' for each in SCHEMES)}...; got {url!r}.")
    host = f"[{host}]" if ":" in host else host
    named_port = "" if port in (None, DEFAULT_PORTS.get(scheme)) else f":{port}"
    return Address(scheme=scheme, host=host + named_port, segments=segments)


def _is_plain(segment: str) -> bool:
    # a "%" left over was escaped twice, or is no escape at all: servers differ on what it means
    return segment not in ("", ".", "..") and re.search(r"[\x00-\x1f\x7f/\\%]", segment) is None


def _allowed_address(url: str, allowed: Sequence[str]) -> tuple[Address, Address]:
    address = address_of(url)
    for prefix in map(address_of, (each.removesuffix("/") for each in allowed)):
        if address.lies_under(prefix):
            return address, prefix
    known = ", ".join(allowed) or "none"
    raise UrlNotAllowed(
        f"a bundle is downloaded only from below an allowed prefix ({known}); got {url!r}. The operator sets "
        f"{SETTING}; or send the bundle itself."
    )


@contextmanager
def _new_file(folder: Path) -> Iterator[BufferedWriter]:
    """A file that stays only if all goes well."""
    path = folder / f"bundle-{uuid4().hex}.tar"
    try:
        with path.open("xb") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _limited(chunks: Iterable[bytes], announced: int, limit: int, url: str) -> Iterator[bytes]:
    too_large = BodyTooLarge(f"a bundle may have {limit} bytes; {url} has more. Raise the limit, or make it smaller.")
    if announced > limit:
        raise too_large
    received = 0
    for chunk in chunks:  # the announced size may be a lie
        received += len(chunk)
        if received > limit:
            raise too_large
        yield chunk


@contextmanager
def _opened(address: Address, prefix: Address) -> Iterator[tuple[int, Iterable[bytes]]]:
    """The announced size in bytes, 0 when unknown, and the chunks of an object."""
    if address.scheme == "file":
        with _regular_file(address, prefix).open("rb") as file:
            yield 0, chunks_of(file)
    elif address.scheme in DEFAULT_PORTS:
        # not through obstore, which follows redirects wherever they lead
        headers = {"Accept-Encoding": "identity"}
        url = f"{address.root}/{quote(address.path)}"
        with httpx.stream("GET", url, headers=headers, timeout=WAIT_SECONDS, follow_redirects=False) as response:
            if not response.is_success:
                raise StorageUnavailable(_answered(url, response))
            yield int(response.headers.get("Content-Length", 0)), response.iter_raw(CHUNK_BYTES)
    else:
        result = obstore.get(open_object_store(address.root), address.path)
        yield result.meta["size"], map(bytes, result.stream(CHUNK_BYTES))


def _answered(url: str, response: httpx.Response) -> str:
    if response.is_redirect:
        return (
            f"{url} sends elsewhere ({response.status_code}), which is not followed. Give the URL of the file itself."
        )
    return f"{url} cannot be downloaded: its server answered {response.status_code}. Nothing was changed."


def _regular_file(address: Address, prefix: Address) -> Path:
    """The file behind all links. Raises: OSError, UrlNotAllowed when a link leads out of the prefix."""
    try:
        root, path = (Path("/", each.path).resolve(strict=True) for each in (prefix, address))
    except RuntimeError as error:
        raise OSError("its links lead in a circle") from error
    if not path.is_relative_to(root):
        raise UrlNotAllowed(f"a link may not lead out of {root.as_uri()}; got {address.root}/{address.path}.")
    if not path.is_file():
        raise StorageUnavailable(f"{address.root}/{address.path} is not a plain file. Name the .tar of a bundle.")
    return path
