"""Versions of a model and their names: look, activate, alias, delete."""

import re
from typing import Annotated

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ConfigDict, Field

from service import changes
from service.api.dependencies import ActorDep, CatalogDep, CheckDep, FollowerDep, Json
from service.api.parameters import AliasName, ModelName, VersionNumber
from service.api.responding import CHANGE_PROBLEMS, apply, tagged
from service.api.schemas import AliasesAnswer, ChangedAnswer
from service.api.small_body import SmallBody
from service.errors import (
    BodyTooLarge,
    InUse,
    StorageUnavailable,
    UnknownAlias,
    UnknownModel,
    UnknownVersion,
    problem_response,
)
from service.runtime.live import PRODUCTION

router = APIRouter(
    prefix="/v1/models/{model}",
    tags=["catalog"],
    responses=problem_response(StorageUnavailable),
    route_class=SmallBody,
)


class AliasBody(BaseModel):
    """The version that an alias stands for."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[str, Field(examples=["1"])]


@router.post(
    "/versions/{version}/activate",
    summary="Activate a version",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownVersion),
)
def activate_version(
    model: ModelName,
    version: VersionNumber,
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Make an earlier or later version live, with the calibration that was last live with it."""
    plan = changes.activate_version(catalog, model, _number(model, version))
    return apply(catalog, follower, model, plan, check, actor)


@router.delete(
    "/versions/{version}",
    summary="Delete a version",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownVersion, InUse),
)
def delete_version(
    model: ModelName,
    version: VersionNumber,
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Delete a version that is neither live nor has an alias, with its calibrations. Its files go within two days."""
    plan = changes.delete_version(catalog, model, _number(model, version))
    return apply(catalog, follower, model, plan, check, actor)


@router.get(
    "/aliases",
    summary="List aliases",
    response_description="All aliases, with their versions.",
    response_model=AliasesAnswer,
    responses=problem_response(UnknownModel),
)
def list_aliases(model: ModelName, catalog: CatalogDep) -> Response:
    """Names of versions. `production` is always there: what is live."""
    head = catalog.database.newest_change(model)
    named = {name: str(version) for name, version in catalog.database.aliases(model).items()}
    return Json({"aliases": {PRODUCTION: str(head.version), **named}})


@router.put(
    "/aliases/{alias}",
    summary="Give a version a name",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, BodyTooLarge, UnknownVersion),
)
def put_alias(
    model: ModelName,
    alias: AliasName,
    body: Annotated[AliasBody, Body(examples=[{"version": "1"}])],
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Requests may ask for `version=ALIAS` from now on. `production` activates the version."""
    plan = changes.set_alias(catalog, model, alias, _number(model, body.version))
    return apply(catalog, follower, model, plan, check, actor)


@router.delete(
    "/aliases/{alias}",
    summary="Take a name away",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownAlias, InUse),
)
def delete_alias(
    model: ModelName, alias: AliasName, catalog: CatalogDep, follower: FollowerDep, check: CheckDep, actor: ActorDep
) -> Response:
    """The version stays; requests that ask for the alias are refused from now on."""
    return apply(catalog, follower, model, changes.delete_alias(catalog, model, alias), check, actor)


def _number(model: str, version: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise UnknownVersion(f"versions are numbered from 1; got {version!r}. GET /v1/models/{model} lists them.")
    return int(version)
