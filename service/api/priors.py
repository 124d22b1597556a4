"""Named class laws of the places where a model runs: store, look at, activate, delete."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Response
from pydantic import BaseModel, ConfigDict, Field

from models.calibration.errors import InvalidPrior, UnknownClass
from models.calibration.prior import KAPPA_RANGE, prior_between
from models.calibration.types import ClassPrior
from service import answers, changes
from service.api.dependencies import ActorDep, CatalogDep, CheckDep, FollowerDep, Json
from service.api.parameters import ModelName, PriorName
from service.api.responding import CHANGE_PROBLEMS, apply, tagged
from service.api.schemas import ChangedAnswer, PriorAnswer, PriorsAnswer
from service.api.small_body import SmallBody
from service.catalog import BUILT_IN, TRAINING, UNIFORM, Plan, State
from service.errors import (
    BodyTooLarge,
    InUse,
    InvalidRequest,
    StorageUnavailable,
    UnknownModel,
    UnknownPrior,
    problem_response,
)
from service.recalibration import deployment_of
from service.store.tables import ChangeRow

router = APIRouter(
    prefix="/v1/models/{model}/priors",
    tags=["priors"],
    responses=problem_response(StorageUnavailable),
    route_class=SmallBody,
)


ClassName = Annotated[str, Field(min_length=1)]  # a bound has pydantic refuse what is no Unicode


class PriorBody(BaseModel):
    """A prior by its numbers, or by its place between uniform (0) and the training law (1)."""

    model_config = ConfigDict(extra="forbid")

    weights: Annotated[
        dict[ClassName, float] | list[float] | None,
        Field(description="A number for each class, by name or in class order; they are normalised."),
    ] = None
    kappa: Annotated[
        float | None,
        Field(
            ge=KAPPA_RANGE[0],
            le=KAPPA_RANGE[1],
            description="Proportional to the training counts, as they are known now, to this power.",
        ),
    ] = None


PRIOR_EXAMPLE = {"weights": {"ant": 5, "bee": 10, "cat": 20, "dog": 65}}


@router.get(
    "",
    summary="List priors",
    response_description="All priors, and which is active.",
    response_model=PriorsAnswer,
    responses=problem_response(UnknownModel),
)
def list_priors(model: ModelName, catalog: CatalogDep) -> Response:
    """The built-in priors and the stored ones, and which is used when a request names none."""
    head = catalog.database.newest_change(model)
    state = catalog.state(head)
    stored = [answers.prior(row, live=row.name == head.prior) for row in catalog.database.priors(model)]
    built_in = [_built_in(name, state) for name in (UNIFORM, TRAINING)]
    return Json({"active": head.prior, "priors": [*built_in, *stored]})


@router.get(
    "/{prior}",
    summary="One prior",
    response_description="The prior with its numbers.",
    response_model=PriorAnswer,
    responses=problem_response(UnknownModel, UnknownPrior),
)
def get_prior(model: ModelName, prior: PriorName, catalog: CatalogDep) -> Response:
    """Its numbers by class name, as they are to the last bit."""
    head = catalog.database.newest_change(model)
    if prior in (UNIFORM, TRAINING):
        return Json(_built_in(prior, catalog.state(head)))
    return Json(answers.prior(catalog.database.prior(model, prior), live=prior == head.prior))


@router.put(
    "/{prior}",
    summary="Store a prior",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, BodyTooLarge, InvalidPrior, UnknownClass),
)
def put_prior(
    model: ModelName,
    prior: PriorName,
    body: Annotated[PriorBody, Body(examples=[PRIOR_EXAMPLE])],
    catalog: CatalogDep,
    follower: FollowerDep,
    check: CheckDep,
    actor: ActorDep,
) -> Response:
    """Give a name to a class law, or another law to a known name: a new edition, live at once where it is active."""
    if (body.weights is None) == (body.kappa is None):
        raise InvalidRequest("a prior is told by `weights` or by `kappa`, and by one of them alone.")
    weights = body.weights
    if weights is not None:
        plan = changes.set_prior(catalog, model, prior, weights)
    else:
        changes.check_name(prior, "prior", BUILT_IN)

        def plan(head: ChangeRow) -> Plan:
            ledger = deployment_of(catalog.state(head)).ledger
            law = prior_between(ledger.class_counts, body.kappa or 0.0)
            return changes.set_prior(catalog, model, prior, law.probs.tolist())(head)

    return apply(catalog, follower, model, plan, check, actor)


@router.delete(
    "/{prior}",
    summary="Delete a prior",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownPrior, InUse),
)
def delete_prior(
    model: ModelName, prior: PriorName, catalog: CatalogDep, follower: FollowerDep, check: CheckDep, actor: ActorDep
) -> Response:
    """Delete a stored prior that is not active. An undo to a state that used it brings it back."""
    return apply(catalog, follower, model, changes.delete_prior(catalog, model, prior), check, actor)


@router.post(
    "/{prior}/activate",
    summary="Activate a prior",
    response_model=ChangedAnswer,
    responses=tagged(*CHANGE_PROBLEMS, UnknownPrior),
)
def activate_prior(
    model: ModelName, prior: PriorName, catalog: CatalogDep, follower: FollowerDep, check: CheckDep, actor: ActorDep
) -> Response:
    """Make `uniform`, `training` or a stored prior the one that is used when a request names none."""
    return apply(catalog, follower, model, changes.activate_prior(catalog, model, prior), check, actor)


def _built_in(name: str, state: State) -> dict[str, Any]:
    deployment = deployment_of(state)
    names = state.version.manifest["class_names"]
    law = deployment.ledger.training_prior if name == TRAINING else ClassPrior.uniform(len(names))
    return {
        "name": name,
        "edition": None,
        "probs": dict(zip(names, law.probs.tolist(), strict=True)),
        "file_digest": None,
        "created_at": None,
        "active": state.prior_name == name,
    }
