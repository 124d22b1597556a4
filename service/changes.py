"""What an owner changes in a moment: activate, undo, aliases, priors by their numbers, deletions.

Undo is about what is live: version, calibration and prior. Changes that leave it as it is (an alias, a prior that is
not active, a deletion) are steps of the history too, and an undo passes over them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from models.calibration.errors import InvalidPrior
from models.calibration.types import ClassPrior
from service.catalog import BUILT_IN, NONE, Catalog, Plan, Planner, State, Step, fits
from service.errors import (
    InUse,
    InvalidRequest,
    NothingToUndo,
    UnknownAlias,
    UnknownCalibration,
    UnknownPrior,
    UnknownVersion,
)
from service.runtime.live import PRODUCTION
from service.store.database import now
from service.store.tables import AliasRow, CalibrationRow, ChangeRow, PriorRow, Row, VersionRow

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"


def activate_calibration(catalog: Catalog, model: str, number: int) -> Planner:
    """Make a stored calibration live, with the version that it belongs to. Raises: UnknownCalibration."""

    def plan(head: ChangeRow) -> Plan:
        calibration = catalog.database.calibration(model, number)
        version = catalog.database.version(model, calibration.version)
        prior = catalog.fitting_prior(catalog.state(head).prior, version.manifest["class_names"])
        state = State(version=version, calibration=calibration, prior=prior)
        return Plan(action=f"activated calibration {calibration.id}", state=state, undoes_to=head.revision)

    return plan


def activate_version(catalog: Catalog, model: str, number: int) -> Planner:
    """Make a version live, with the calibration that was last live with it. Raises: UnknownVersion."""

    def plan(head: ChangeRow) -> Plan:
        calibration = catalog.calibration_of_version(catalog.database.version(model, number))
        planned = activate_calibration(catalog, model, calibration.number)(head)
        return replace(planned, action=f"activated version {number}, calibration {calibration.id}")

    return plan


def activate_prior(catalog: Catalog, model: str, name: str) -> Planner:
    """Make a stored or built-in prior the active one. Raises: UnknownPrior."""

    def plan(head: ChangeRow) -> Plan:
        state = catalog.state(head)
        if name == NONE:
            raise InvalidRequest("`none` leaves the prior alone for one request; it cannot be a model's active prior.")
        prior = name if name in BUILT_IN else catalog.database.prior(model, name)
        if not isinstance(prior, str) and not fits(prior, state.version.manifest["class_names"]):
            raise UnknownPrior(f"prior {name!r} speaks of other classes than the live version of {model!r}.")
        return Plan(action=f"activated prior {name}", state=replace(state, prior=prior), undoes_to=head.revision)

    return plan


def undo(catalog: Catalog, model: str) -> Planner:
    """Restore the state before the newest change of what is live; again, and the history is walked further back.

    Raises: NothingToUndo in the first state that is left.
    """

    def plan(head: ChangeRow) -> Plan:
        restored, state = _former(catalog, head)
        rows: tuple[Row, ...] = ()
        if isinstance(state.prior, PriorRow):
            prior = _restored(catalog, state.prior)
            rows = () if prior is state.prior else (prior,)
            state = replace(state, prior=prior)
        action = f"undo, back to revision {restored.revision}"
        return Plan(action=action, state=state, undoes_to=restored.undoes_to, rows=rows)

    return plan


def _former(catalog: Catalog, head: ChangeRow) -> tuple[ChangeRow, State]:
    """The newest state before the live one that can still be had: those of deleted versions are passed over.

    Raises: NothingToUndo.
    """
    change: ChangeRow = head
    while change.undoes_to is not None:
        former = catalog.database.change(head.model, change.undoes_to)
        assert former is not None  # changes are never deleted one by one
        with suppress(UnknownVersion, UnknownCalibration):
            return former, catalog.state(former)
        change = former
    raise NothingToUndo(
        f"model {head.model!r} has no former state left: it is as it was registered, or what came before was deleted. "
        "Activate a version or a calibration instead."
    )


def set_prior(catalog: Catalog, model: str, name: str, numbers: dict[str, float] | Sequence[float]) -> Planner:
    """Store a prior under a name, or give the name a new meaning, which is live at once where the prior is active.

    Args: numbers, by class name or in class order; they are normalised.
    Raises: InvalidRequest, InvalidPrior, UnknownClass.
    """
    check_name(name, "prior", BUILT_IN)

    def plan(head: ChangeRow) -> Plan:
        state = catalog.state(head)
        class_names = tuple(state.version.manifest["class_names"])
        if isinstance(numbers, dict):
            prior = ClassPrior.from_mapping(numbers, class_names)
        else:
            prior = ClassPrior.from_weights(numbers)
            if prior.num_classes != len(class_names):
                raise InvalidPrior(f"a prior has {len(class_names)} numbers, one a class; got {prior.num_classes}.")
        row = prior_row(catalog, model, name, prior, class_names)
        return replace(with_prior(head, state, row), action=f"stored prior {name}, edition {row.edition}")

    return plan


def with_prior(head: ChangeRow, state: State, row: PriorRow) -> Plan:
    """The plan that stores a prior; live only where one of its name is active."""
    if state.prior_name != row.name:
        return Plan(action="", state=state, undoes_to=head.undoes_to, rows=(row,))
    return Plan(action="", state=replace(state, prior=row), undoes_to=head.revision, rows=(row,))


def prior_row(
    catalog: Catalog,
    model: str,
    name: str,
    prior: ClassPrior,
    class_names: Sequence[str],
    *,
    file_digest: str | None = None,
) -> PriorRow:
    """The next edition of a named prior."""
    return PriorRow(
        model=model,
        name=name,
        edition=catalog.database.newest_edition(model, name) + 1,
        probs=dict(zip(class_names, prior.probs.tolist(), strict=True)),
        file_digest=file_digest,
        created_at=now(),
    )


def delete_prior(catalog: Catalog, model: str, name: str) -> Planner:
    """Raises: UnknownPrior, InUse."""

    def plan(head: ChangeRow) -> Plan:
        if name in BUILT_IN:
            raise InUse(f"prior {name!r} is built in; every model has it.")
        row = catalog.database.prior(model, name)
        if head.prior == name:
            raise InUse(f"prior {name!r} is the active one of model {model!r}. Activate another first, then delete it.")
        gone = PriorRow(model=model, name=name, edition=row.edition + 1, probs=None, file_digest=None, created_at=now())
        return _beside(catalog, head, f"deleted prior {name}", rows=(gone,))

    return plan


def set_alias(catalog: Catalog, model: str, name: str, number: int) -> Planner:
    """Give a version a name; `production` is the name of what is live, so that giving it activates.

    Raises: UnknownVersion, InvalidRequest.
    """
    if name == PRODUCTION:
        return activate_version(catalog, model, number)
    check_name(name, "alias", (PRODUCTION,))
    if name.isdecimal():
        raise InvalidRequest(f"an alias is not a number, since versions are; got {name!r}.")

    def plan(head: ChangeRow) -> Plan:
        catalog.database.version(model, number)
        row = AliasRow(model=model, name=name, version=number)
        return _beside(catalog, head, f"alias {name} of version {number}", rows=(row,))

    return plan


def delete_alias(catalog: Catalog, model: str, name: str) -> Planner:
    """Raises: UnknownAlias, InUse for `production`."""

    def plan(head: ChangeRow) -> Plan:
        if name == PRODUCTION:
            raise InUse("`production` is the name of what is live. Give it to another version instead.")
        if name not in catalog.database.aliases(model):
            raise UnknownAlias(f"model {model!r} has no alias {name!r}. GET /v1/models/{model}/aliases lists them.")

        def step(session: Session) -> None:
            session.execute(delete(AliasRow).where(AliasRow.model == model, AliasRow.name == name))

        return _beside(catalog, head, f"deleted alias {name}", steps=(step,))

    return plan


def delete_version(catalog: Catalog, model: str, number: int) -> Planner:
    """Delete a version and its calibrations. Raises: UnknownVersion, InUse."""

    def plan(head: ChangeRow) -> Plan:
        catalog.database.version(model, number)
        aliases = [name for name, version in catalog.database.aliases(model).items() if version == number]
        if head.version == number:
            raise InUse(f"version {number} of model {model!r} is live. Activate another first, then delete it.")
        if aliases:
            raise InUse(f"version {number} has the alias {', '.join(aliases)}. Give it to another version first.")

        def step(session: Session) -> None:
            gone = now()
            session.execute(
                update(VersionRow).where(VersionRow.model == model, VersionRow.number == number).values(deleted_at=gone)
            )
            of_it = (CalibrationRow.model == model, CalibrationRow.version == number)
            session.execute(update(CalibrationRow).where(*of_it).values(deleted_at=gone))

        return _beside(catalog, head, f"deleted version {number}", steps=(step,))

    return plan


def delete_calibration(catalog: Catalog, model: str, number: int) -> Planner:
    """Raises: UnknownCalibration, InUse."""

    def plan(head: ChangeRow) -> Plan:
        calibration = catalog.database.calibration(model, number)
        if head.calibration == number:
            raise InUse(f"calibration {calibration.id} is live. Activate another first, then delete it.")
        if calibration.file_digest is None:
            raise InUse(
                f"calibration {calibration.id} came in the bundle of version {calibration.version} and goes with it: "
                f"DELETE /v1/models/{model}/versions/{calibration.version}."
            )

        def step(session: Session) -> None:
            this = (CalibrationRow.model == model, CalibrationRow.number == number)
            session.execute(update(CalibrationRow).where(*this).values(deleted_at=now()))

        return _beside(catalog, head, f"deleted calibration {calibration.id}", steps=(step,))

    return plan


def check_name(name: str, what: str, reserved: Sequence[str]) -> None:
    """Raises: InvalidRequest."""
    if not NAME.fullmatch(name) or name in reserved:
        but = f", and none of {', '.join(reserved)}" if reserved else ""
        raise InvalidRequest(f"the name of a {what} is {NAME_RULE}{but}; got {name!r}.")


def _beside(
    catalog: Catalog, head: ChangeRow, action: str, *, rows: Sequence[Row] = (), steps: Sequence[Step] = ()
) -> Plan:
    """A change that leaves what is live as it is: an undo passes over it."""
    return Plan(action=action, state=catalog.state(head), undoes_to=head.undoes_to, rows=rows, steps=steps)


def _restored(catalog: Catalog, row: PriorRow) -> PriorRow:
    """The edition itself where its name still means it, else a new edition that means the same."""
    newest = catalog.database.newest_edition(row.model, row.name)
    if newest == row.edition:
        return row
    return PriorRow(
        model=row.model,
        name=row.name,
        edition=newest + 1,
        probs=row.probs,
        file_digest=row.file_digest,
        created_at=now(),
    )
