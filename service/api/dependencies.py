"""What endpoints share: the catalog, the body within its limit, the files of a form, and conditional requests."""

import re
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.catalog import Catalog, expect_revision
from service.errors import BodyTooLarge, InvalidRequest
from service.settings import Settings
from service.store.tables import ChangeRow

FORM = "multipart/form-data"


class Json(Response):
    """JSON by orjson, which writes NumPy arrays as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """A request body. `kind` is its media type in lower case, empty for none; `files` are those of a form."""

    kind: str
    data: bytes
    files: tuple[bytes, ...] = ()


def _catalog(request: Request) -> Catalog:
    catalog: Catalog = request.app.state.catalog
    return catalog


def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


CatalogDep = Annotated[Catalog, Depends(_catalog)]
SettingsDep = Annotated[Settings, Depends(_settings)]


async def _body(request: Request, settings: SettingsDep) -> Body:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    data = await _read(request, settings.max_body_bytes)
    if not data:
        raise InvalidRequest("the body is empty. Send a file: with curl, --data-binary @FILE.")
    if kind != FORM:
        return Body(kind=kind, data=data)
    return Body(kind=kind, data=data, files=await _files(request, data))


BodyDep = Annotated[Body, Depends(_body)]


async def _read(request: Request, limit: int) -> bytes:
    """The whole body; counted while it arrives, because a length may be missing or wrong."""
    rule = f"a body has at most {limit:,} bytes (EQUIPOISE_MAX_BODY_BYTES)"
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(f"{rule}; this one announces {int(announced):,}.")
    received = bytearray()
    try:
        async for chunk in request.stream():
            received += chunk
            if len(received) > limit:
                raise BodyTooLarge(f"{rule}; this one is longer.")
    except ClientDisconnect as error:
        raise InvalidRequest("the client went away before the body was complete.") from error
    return bytes(received)


async def _files(request: Request, data: bytes) -> tuple[bytes, ...]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        form = await MultiPartParser(request.headers, whole()).parse()
    except (MultiPartException, KeyError) as error:
        raise InvalidRequest(f"the form cannot be read: {error}. Send files as curl -F image=@FILE does.") from error
    try:
        values = [value for _, value in form.multi_items()]
        if not values or not all(isinstance(value, UploadFile) for value in values):
            raise InvalidRequest("a form holds files and nothing else; options belong into the query.")
        return tuple([await value.read() for value in values if isinstance(value, UploadFile)])
    finally:
        await form.close()


def _known_revisions(
    model: str,
    if_match: Annotated[
        str | None,
        Header(description="The ETag of the state that you mean; any other: 409.", examples=['"3"']),
    ] = None,
) -> Callable[[ChangeRow], None]:
    if if_match is None or if_match.strip() == "*":
        return expect_revision(model, None)
    return expect_revision(model, [int(tag) for tag in re.findall(r'"([0-9]{1,18})"', if_match)])


CheckDep = Annotated[Callable[[ChangeRow], None], Depends(_known_revisions)]
