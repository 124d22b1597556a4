"""What endpoints share: the catalog, the body within its limit, the files of a form, and conditional requests."""

import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.api.parameters import ModelName
from service.catalog import Catalog, Check, expect_revision
from service.errors import BodyTooLarge, InvalidRequest
from service.follow import Follower
from service.settings import Settings
from service.store.jobs import Jobs

FORM = "multipart/form-data"


class Json(Response):
    """JSON by orjson, which writes NumPy arrays as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request body. `kind` is its media type in lower case, empty for none; `files` are those of a form, and `names`
    what the client calls them."""

    kind: str
    data: bytes
    files: tuple[bytes, ...] = ()
    names: tuple[str, ...] = ()


def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


def _follower(request: Request) -> Follower:
    follower: Follower = request.app.state.follower
    return follower


def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


CatalogDep = Annotated[Catalog, Depends(_catalog)]
FollowerDep = Annotated[Follower, Depends(_follower)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
SettingsDep = Annotated[Settings, Depends(_settings)]


async def _body(request: Request, settings: SettingsDep) -> Body:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    data = await read(request, settings.max_body_bytes)
    if not data:
        raise InvalidRequest("the body is empty. Send a file: with curl, --data-binary @FILE.")
    if kind != FORM:
        return Body(kind=kind, data=data)
    names, files = await _files(request, data)
    return Body(kind=kind, data=data, files=files, names=names)


BodyDep = Annotated[Body, Depends(_body)]


async def read(request: Request, limit: int) -> bytes:
    """The whole body; counted while it arrives, because a length may be missing or wrong."""
    rule = f"a body has at most {limit:,} bytes (EQUIPOISE_MAX_BODY_BYTES)"
    return b"".join([chunk async for chunk in chunks(request, limit, rule)])


async def chunks(request: Request, limit: int, rule: str) -> AsyncGenerator[bytes, None]:
    """The body as it arrives. Raises: BodyTooLarge, InvalidRequest when the client goes away."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(f"{rule}; this one announces {int(announced):,}.")
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:
                raise BodyTooLarge(f"{rule}; this one is longer.")
            yield chunk
    except ClientDisconnect as error:
        raise InvalidRequest("the client went away before the body was complete.") from error


async def _files(request: Request, data: bytes) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
    """The names of the files of a form, and the files."""

    async def whole() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(request.headers, whole()).parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}. Send files as curl -F image=@FILE does.") from error
    try:
        values = [value for _, value in form.multi_items()]
        files = [value for value in values if isinstance(value, UploadFile)]
        if not files or len(files) < len(values):
            raise InvalidRequest("a form holds files and nothing else; options belong into the query.")
        return tuple(file.filename or "no name" for file in files), tuple([await file.read() for file in files])
    finally:
        await form.close()


def _known_revisions(
    if_match: Annotated[
        str | None,
        Header(description="The ETag of the state that you mean; any other: 409.", examples=['"6"']),
    ] = None,
) -> list[int] | None:
    if if_match is None or if_match.strip() == "*":
        return None
    if not re.fullmatch(r'\s*(W/)?"[^"]*"\s*(,\s*(W/)?"[^"]*"\s*)*', if_match):
        raise InvalidRequest(f'If-Match holds an ETag with its quotes, such as "3"; got {if_match!r}.')
    return [int(tag) for tag in re.findall(r'"([0-9]{1,18})"', if_match)]


RevisionsDep = Annotated[list[int] | None, Depends(_known_revisions)]


def _check(model: ModelName, revisions: RevisionsDep) -> Check:
    return expect_revision(model, revisions)


CheckDep = Annotated[Check, Depends(_check)]


def _actor(
    sender: Annotated[
        str | None,
        Header(alias="From", max_length=200, description="Who asks, for the history.", examples=["ada@example.org"]),
    ] = None,
) -> str | None:
    try:  # header values arrive as Latin-1
        return None if sender is None else sender.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return sender


ActorDep = Annotated[str | None, Depends(_actor)]
