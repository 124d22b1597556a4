"""What is known of every model: its states, and how one state follows from another.

A change is planned on the newest state, prepared, and only then committed: what cannot be prepared is never committed,
and what was acknowledged is committed. Other processes see the new revision number and follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from models.calibration.manifest import CALIBRATION_SET_FILE, Manifest, calibration_to_json, ledger_to_json
from models.calibration.types import ClassPrior, LogitSet
from service.bundle import Bundle, read_calibration_set
from service.errors import ChangedSince, StorageUnavailable, UnknownModel
from service.store.artifacts import ArtifactStore
from service.store.database import Database, Overtaken, now
from service.store.keeping import Keeper
from service.store.tables import CalibrationRow, ChangeRow, PriorRow, Row, VersionRow

# Priors that every model has, and the word for leaving the prior alone; no stored prior has one of these names.
UNIFORM, TRAINING, NONE = "uniform", "training", "none"
BUILT_IN = (UNIFORM, TRAINING, NONE)
ATTEMPTS = 20  # other processes may commit first this often before a change gives up

Check = Callable[[ChangeRow], None]
Step = Callable[[Session], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What is live of a model: a version, a calibration of it, and a prior: a built-in name or a row."""

    version: VersionRow
    calibration: CalibrationRow
    prior: str | PriorRow

    @property
    def prior_name(self) -> str:
        return self.prior if isinstance(self.prior, str) else self.prior.name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A change not yet made: its name, the state after it, and where an undo of it leads.

    Args: rows to add, and steps to take, in the transaction of the change; file_digest and report, for the history;
        version, the one that a registration adds.
    """

    action: str
    state: State
    undoes_to: int | None
    rows: Sequence[Row] = ()
    steps: Sequence[Step] = field(default=())
    file_digest: str | None = None
    report: dict[str, Any] | None = None
    version: VersionRow | None = None


class AlreadyRegistered(Exception):
    """The bundle is a known version, with this number; nothing is to be done."""


Planner = Callable[[ChangeRow], Plan]
Prepare = Callable[[Plan, ChangeRow], None]
Finish = Callable[[Session, Plan, ChangeRow], None]


class Catalog:
    """Reads and changes models in the database and the artifact store; nothing of it is in memory."""

    def __init__(self, database: Database, artifacts: ArtifactStore) -> None:
        self.database = database
        self.artifacts = artifacts
        self.keeper = Keeper(database, artifacts)

    def close(self) -> None:
        self.database.close()

    def change(
        self,
        model: str,
        plan: Planner,
        *,
        check: Check | None = None,
        prepare: Prepare | None = None,
        actor: str | None = None,
        finish: Finish | None = None,
    ) -> tuple[Plan, ChangeRow]:
        """Plan a change on the newest state, prepare it, and commit it; again, when another change came in between.

        Args: check, raises when the newest state is not the one that the caller means; prepare, raises when the state
            after the change could not be live; finish, what is committed together with it.
        Raises: UnknownModel, StorageUnavailable, and whatever the callbacks raise; then nothing changed.
        """

        def planned(head: ChangeRow | None) -> Plan:
            if head is None:
                raise UnknownModel(f"model {model!r} was deleted.")
            if check is not None:
                check(head)
            return plan(head)

        self.database.newest_change(model)
        return self._apply(model, planned, prepare, actor, finish)

    def register(
        self,
        bundle: Bundle,
        *,
        activate: bool = True,
        prepare: Prepare | None = None,
        actor: str | None = None,
        finish: Finish | None = None,
    ) -> tuple[Plan, ChangeRow]:
        """Make a bundle known: a new model goes live; a new version of a known one only where `activate` says so.

        Raises: AlreadyRegistered for a version that is known, StorageUnavailable, and what `prepare` raises.
        """
        name = bundle.manifest.name
        for digest, data in zip(bundle.manifest.files.values(), bundle.files.values(), strict=True):
            if not self._is_kept(name, bundle, digest):
                self.keeper.put(data)
        return self._apply(name, lambda head: self._registration(bundle, head, activate), prepare, actor, finish)

    def _is_kept(self, model: str, bundle: Bundle, digest: str) -> bool:
        """Whether a file of a known bundle is there and sound; if not, putting it again repairs it."""
        if self._head(model) is None or self._known(model, bundle) is None:
            return False
        return self.artifacts.holds(digest)

    def _known(self, model: str, bundle: Bundle) -> VersionRow | None:
        rows = self.database.versions(model)
        return next((row for row in rows if row.fingerprint == bundle.fingerprint), None)

    def _apply(
        self,
        model: str,
        plan: Callable[[ChangeRow | None], Plan],
        prepare: Prepare | None,
        actor: str | None,
        finish: Finish | None,
    ) -> tuple[Plan, ChangeRow]:
        for _ in range(ATTEMPTS):
            head = self._head(model)
            planned = plan(head)
            change = _change_row(model, planned, head, actor)
            if prepare is not None:
                prepare(planned, change)

            def steps(session: Session, planned: Plan = planned, change: ChangeRow = change) -> None:
                for step in planned.steps:
                    step(session)
                if finish is not None:
                    finish(session, planned, change)

            try:
                self.database.commit(change, planned.rows, finish=steps)
            except Overtaken:
                continue
            return planned, change
        raise StorageUnavailable(f"model {model!r} is being changed by others all the time. Try again in a moment.")

    def _head(self, model: str) -> ChangeRow | None:
        try:
            return self.database.newest_change(model)
        except UnknownModel:
            return None

    def state(self, change: ChangeRow) -> State:
        """Raises: UnknownVersion, UnknownCalibration where they were deleted since."""
        prior: str | PriorRow = change.prior
        if change.prior_edition is not None:
            prior = self.database.prior_edition(change.model, change.prior, change.prior_edition)
        return State(
            version=self.database.version(change.model, change.version),
            calibration=self.database.calibration(change.model, change.calibration),
            prior=prior,
        )

    def calibration_set(self, calibration: CalibrationRow) -> LogitSet | None:
        """The labelled logits that a refit of this calibration uses. Raises: StorageUnavailable."""
        digest = calibration.calibration_set
        return None if digest is None else read_calibration_set(self.artifacts.get(digest))

    def calibration_of_version(self, version: VersionRow) -> CalibrationRow:
        """The calibration that was last live with a version, of those that still are; at least the bundle's own.

        Raises: UnknownVersion for a deleted one.
        """
        self.database.version(version.model, version.number)
        kept = {row.number: row for row in self.database.calibrations(version.model) if row.version == version.number}
        used = [number for number in self.database.used_calibrations(version.model) if number in kept]
        return kept[used[-1]] if used else kept[min(kept)]

    def fitting_prior(self, prior: str | PriorRow, class_names: Sequence[str]) -> str | PriorRow:
        """The same prior where it speaks of these classes, else the uniform one."""
        return prior if isinstance(prior, str) or fits(prior, class_names) else UNIFORM

    def _registration(self, bundle: Bundle, head: ChangeRow | None, activate: bool) -> Plan:
        name = bundle.manifest.name
        versions = [] if head is None else self.database.versions(name, deleted=True)
        known = None if head is None else self._known(name, bundle)
        if known is not None:
            raise AlreadyRegistered(known.id)
        version = _version_row(bundle, len(versions) + 1)
        calibration = _own_calibration(bundle.manifest, version, self.database.last_calibration(name) + 1)
        rows = (version, calibration)
        if head is None:
            state = State(version=version, calibration=calibration, prior=UNIFORM)
            return Plan(action="registered", state=state, undoes_to=None, rows=rows, version=version)
        if not activate:
            action = f"registered version {version.id}"
            return Plan(action=action, state=self.state(head), undoes_to=head.undoes_to, rows=rows, version=version)
        prior = self.fitting_prior(self._prior(head), bundle.manifest.class_names)
        state = State(version=version, calibration=calibration, prior=prior)
        action = f"registered and activated version {version.id}"
        return Plan(action=action, state=state, undoes_to=head.revision, rows=rows, version=version)

    def _prior(self, change: ChangeRow) -> str | PriorRow:
        if change.prior_edition is None:
            return change.prior
        return self.database.prior_edition(change.model, change.prior, change.prior_edition)


def expect_revision(model: str, wanted: Sequence[int] | None) -> Check:
    """A check that the newest revision is one of those the caller knows; None checks nothing."""

    def check(head: ChangeRow) -> None:
        if wanted is not None and head.revision not in wanted:
            named = " or ".join(str(revision) for revision in wanted) or "none that the model ever had"
            raise ChangedSince(
                f"the request speaks of revision {named}; model {model!r} is at revision {head.revision} "
                f"({head.action}). Look at /v1/models/{model}/history, then send it again with the new revision.",
                revision=head.revision,
            )

    return check


def fits(row: PriorRow, class_names: Sequence[str]) -> bool:
    return row.probs is not None and set(row.probs) == set(class_names)


def prior_in_order(row: PriorRow, class_names: Sequence[str]) -> ClassPrior:
    """`(C,)` in class order, to the last bit as it was stored."""
    assert row.probs is not None  # a deleted edition is never asked for
    return ClassPrior(np.array([row.probs[name] for name in class_names]))


def _version_row(bundle: Bundle, number: int) -> VersionRow:
    return VersionRow(
        model=bundle.manifest.name,
        number=number,
        manifest=bundle.manifest.to_json(),
        fingerprint=bundle.fingerprint,
        created_at=now(),
    )


def _own_calibration(manifest: Manifest, version: VersionRow, number: int) -> CalibrationRow:
    return CalibrationRow(
        model=manifest.name,
        number=number,
        version=version.number,
        method=manifest.calibration.method,
        calibration=calibration_to_json(manifest.calibration),
        ledger=ledger_to_json(manifest.ledger),
        file_digest=None,
        created_at=now(),
        calibration_set=version.manifest["files"].get(CALIBRATION_SET_FILE),
    )


def _change_row(model: str, plan: Plan, head: ChangeRow | None, actor: str | None) -> ChangeRow:
    prior = plan.state.prior
    return ChangeRow(
        model=model,
        revision=1 if head is None else head.revision + 1,
        action=plan.action,
        version=plan.state.version.number,
        calibration=plan.state.calibration.number,
        prior=plan.state.prior_name,
        prior_edition=None if isinstance(prior, str) else prior.edition,
        undoes_to=plan.undoes_to,
        created_at=now(),
        actor=actor,
        file_digest=plan.file_digest,
        metrics=None if plan.report is None else plan.report.get("metrics"),
        report=plan.report,
    )
