"""What an owner changes in a live model: upload class frequencies, activate something stored, undo."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.calibration.frequencies import Format, Frequencies, Missing, Role, Zeros, read_frequencies
from models.calibration.manifest import Manifest, calibration_to_json, ledger_to_json
from models.calibration.recalibrate import Deployment, compare, with_target, with_training_counts
from models.calibration.types import ClassPrior
from service.catalog import Catalog, Plan, State
from service.errors import InvalidRequest, NameTaken, NothingToUndo, UnknownPrior
from service.runtime.live import BUILT_IN, NONE, TRAINING, LiveModel
from service.store.artifacts import digest_of
from service.store.database import now
from service.store.tables import CalibrationRow, ChangeRow, PriorRow

PRIOR_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Check = Callable[[ChangeRow], None] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A class-frequency file as it came, and what is to be done with it."""

    data: bytes
    role: Role
    zeros: Zeros = "error"
    missing: Missing = "error"
    format: Format | None = None
    cap: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.cap is not None and self.role == "training":
            raise InvalidRequest("a cap bounds what a target prior does; leave `cap` out with role=training.")
        if self.name is None:
            return
        if self.role == "training":
            raise InvalidRequest("only a target prior has a name; leave `name` out with role=training.")
        if not PRIOR_NAME.fullmatch(self.name) or self.name in BUILT_IN:
            raise InvalidRequest(
                "a prior's name is up to 64 letters, digits, dots, dashes and underscores, and none of "
                f"{', '.join(BUILT_IN)}; got {self.name!r}."
            )

    @property
    def prior_name(self) -> str:
        """The given name, or one that follows from the content and from how it is to be read."""
        options = (
            "" if self.zeros == "error" else f"-{self.zeros}",
            "" if self.missing == "error" else f"-missing-{self.missing}",
            "" if self.format is None else f"-{self.format}",
            "" if self.cap is None else f"-cap-{self.cap:g}",
        )
        return self.name or f"target-{digest_of(self.data)[:12]}" + "".join(options)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prospect:
    """What an upload does to the state that `head` left: how the file was read, the comparison, and the change."""

    head: ChangeRow
    frequencies: Frequencies
    report: dict[str, Any]
    plan: Plan


def preview(catalog: Catalog, model: str, what: Upload, check: Check) -> Prospect:
    """Say what `upload` would do, and do nothing. Raises: as `upload`."""
    head = catalog.database.newest_change(model)
    if check is not None:
        check(head)
    return _prospect(catalog, head, what)


def upload(catalog: Catalog, model: str, what: Upload, check: Check) -> tuple[Prospect, ChangeRow]:
    """Apply a class-frequency file to the newest state of a model.

    Raises: UnknownModel, ChangedSince by `check`, FrequencyFileError, NameTaken, and whatever the refit raises.
    """
    prospects: list[Prospect] = []  # the last one is that which was committed

    def plan(head: ChangeRow) -> Plan:
        prospects.append(_prospect(catalog, head, what))
        catalog.artifacts.put(what.data)
        return prospects[-1].plan

    _, change = catalog.change(model, plan, check=check)
    return prospects[-1], change


def activate_calibration(catalog: Catalog, model: str, number: int, check: Check) -> tuple[LiveModel, ChangeRow]:
    """Make a stored calibration live, with the version that it belongs to. Raises: UnknownCalibration."""

    def plan(head: ChangeRow) -> Plan:
        calibration = catalog.database.calibration(model, number)
        version = catalog.database.version(model, calibration.version)
        prior = catalog.fitting_prior(head.prior, model, version.manifest["class_names"])
        state = State(version=version, calibration=calibration, prior=prior)
        return Plan(action=f"activated calibration {calibration.id}", state=state, undoes_to=head.revision)

    return catalog.change(model, plan, check=check)


def activate_version(catalog: Catalog, model: str, number: int, check: Check) -> tuple[LiveModel, ChangeRow]:
    """Make a version live again, with the calibration that came in its bundle. Raises: UnknownVersion."""
    version = catalog.database.version(model, number)
    own = next(row for row in catalog.database.calibrations(model) if row.version == version.number)
    return activate_calibration(catalog, model, own.number, check)


def activate_prior(catalog: Catalog, model: str, name: str, check: Check) -> tuple[LiveModel, ChangeRow]:
    """Make a stored or built-in prior the active one. Raises: UnknownPrior."""

    def plan(head: ChangeRow) -> Plan:
        state = catalog.state(head)
        if name == NONE:
            raise InvalidRequest("`none` leaves the prior alone for one request; it cannot be a model's active prior.")
        if catalog.fitting_prior(name, model, state.version.manifest["class_names"]) != name:
            raise UnknownPrior(f"prior {name!r} speaks of other classes than the live version of {model!r}.")
        return Plan(action=f"activated prior {name}", state=replace(state, prior=name), undoes_to=head.revision)

    return catalog.change(model, plan, check=check)


def undo(catalog: Catalog, model: str, check: Check) -> tuple[LiveModel, ChangeRow]:
    """Restore the state before the newest change, as a new change; again, and the history is walked further back.

    Raises: NothingToUndo in the first state.
    """

    def plan(head: ChangeRow) -> Plan:
        if head.undoes_to is None:
            raise NothingToUndo(f"model {model!r} is as it was registered; there is nothing to undo.")
        restored = catalog.database.change(model, head.undoes_to)
        action = f"undo, back to revision {restored.revision}"
        return Plan(action=action, state=catalog.state(restored), undoes_to=restored.undoes_to)

    return catalog.change(model, plan, check=check)


def _prospect(catalog: Catalog, head: ChangeRow, what: Upload) -> Prospect:
    state = catalog.state(head)
    manifest = Manifest.from_json(state.version.manifest)
    before = catalog.build(state, head.revision).deployment
    frequencies = read_frequencies(
        what.data, manifest.class_names, role=what.role, zeros=what.zeros, missing=what.missing, format=what.format
    )
    labelled = catalog.calibration_set(state.version)
    row: PriorRow | CalibrationRow
    if what.role == "target":
        after = with_target(before, frequencies, cap=what.cap)
        row = _prior_row(head.model, what, after.prior, manifest.class_names)
    else:
        after = with_training_counts(before, frequencies, labelled, manifest.row_norms)
        if head.prior == TRAINING:
            after = replace(after, prior=after.ledger.training_prior)
        row = _calibration_row(catalog, state, what, after)
    report = compare(
        before, after, class_names=manifest.class_names, calibration_set=labelled, row_norms=manifest.row_norms
    )
    if isinstance(row, CalibrationRow):
        row.report = report
        action, new_state = f"uploaded training counts, calibration {row.id}", replace(state, calibration=row)
    else:
        action, new_state = f"uploaded target prior {row.name}", replace(state, prior=row.name)
    rows = () if isinstance(row, PriorRow) and _is_stored(catalog, row) else (row,)
    plan = Plan(action=action, state=new_state, undoes_to=head.revision, rows=rows)
    return Prospect(head=head, frequencies=frequencies, report=report, plan=plan)


def _prior_row(model: str, what: Upload, prior: ClassPrior, class_names: Sequence[str]) -> PriorRow:
    return PriorRow(
        model=model,
        name=what.prior_name,
        probs=dict(zip(class_names, prior.probs.tolist(), strict=True)),
        file_digest=digest_of(what.data),
        created_at=now(),
    )


def _calibration_row(catalog: Catalog, state: State, what: Upload, after: Deployment) -> CalibrationRow:
    model = state.version.model
    return CalibrationRow(
        model=model,
        number=len(catalog.database.calibrations(model)) + 1,
        version=state.version.number,
        calibration=calibration_to_json(after.calibration),
        ledger=ledger_to_json(after.ledger),
        report=None,
        file_digest=digest_of(what.data),
        created_at=now(),
    )


def _is_stored(catalog: Catalog, row: PriorRow) -> bool:
    """Whether the same prior is stored already. Raises: NameTaken when the name stands for another one."""
    known = next((each for each in catalog.database.priors(row.model) if each.name == row.name), None)
    if known is not None and known.probs != row.probs:
        raise NameTaken(
            f"model {row.model!r} has another prior with the name {row.name!r}, and a stored prior never changes. "
            "Give this one another name with name=."
        )
    return known is not None
