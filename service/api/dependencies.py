"""What endpoints share: the catalog, conditional requests, and who asks."""

import re
from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import Depends, Header, Request, Response

from service.api.parameters import ModelName
from service.catalog import Catalog, Check, expect_revision
from service.errors import InvalidRequest
from service.follow import Follower
from service.settings import Settings
from service.store.jobs import Jobs

KEY_NAME = "equipoise.key"  # in the ASGI scope: whose key came with the request, where keys are asked for


class Json(Response):
    """JSON by orjson, which writes NumPy arrays as they are."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


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
    request: Request,
    sender: Annotated[
        str | None,
        Header(alias="From", max_length=200, description="Who asks, for the history.", examples=["ada@example.org"]),
    ] = None,
) -> str | None:
    key: str | None = request.scope.get(KEY_NAME)
    if sender is None:
        return key
    with suppress(UnicodeError):  # header values arrive as Latin-1
        sender = sender.encode("latin-1").decode("utf-8")
    return sender if key is None else f"{sender} (key {key})"


ActorDep = Annotated[str | None, Depends(_actor)]
