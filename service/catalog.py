"""The models of this service: registering bundles, building live models from rows, changing them step by step.

A change is planned on the newest state, its live model is built, and only then it is committed and put in place: what
cannot be loaded is never committed, and what was acknowledged is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np

from models.calibration.errors import CalibrationError
from models.calibration.manifest import (
    CALIBRATION_SET_FILE,
    MODEL_FILE,
    Manifest,
    calibration_from_json,
    calibration_to_json,
    ledger_from_json,
    ledger_to_json,
)
from models.calibration.recalibrate import Deployment
from models.calibration.types import ClassPrior, LogitSet
from service.bundle import Bundle, read_calibration_set
from service.errors import ChangedSince, StorageUnavailable, UnknownModel
from service.runtime.live import BUILT_IN, UNIFORM, LiveModel, Registry
from service.runtime.onnx import LogitRunner, OnnxRunner
from service.store.artifacts import ArtifactStore
from service.store.database import Database, Overtaken, now
from service.store.tables import CalibrationRow, ChangeRow, ModelRow, PriorRow, Row, VersionRow

ATTEMPTS = 20  # other processes may commit first this often before a change gives up


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class State:
    """What a change makes live: a version, a calibration of it, and the name of a prior."""

    version: VersionRow
    calibration: CalibrationRow
    prior: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """A change not yet made: its name, the state after it, the rows to add, and where an undo of it leads."""

    action: str
    state: State
    undoes_to: int | None
    rows: Sequence[Row] = ()


class AlreadyRegistered(Exception):
    """The bundle is a known version; nothing is to be done."""


class Catalog:
    """Changes of one model run one after another within this process; the database decides between processes."""

    def __init__(self, database: Database, artifacts: ArtifactStore, *, model_threads: int) -> None:
        self.database = database
        self.artifacts = artifacts
        self.registry = Registry()
        self._model_threads = model_threads
        self._locks: dict[str, threading.Lock] = {}

    def close(self) -> None:
        self.database.close()

    def register(self, bundle: Bundle) -> None:
        """Make a bundle known: a new model, or a new version of a known one, goes live; a known bundle changes nothing.

        Raises: InvalidBundle when its graph does not run, StorageUnavailable.
        """
        name = bundle.manifest.name
        for data in bundle.files.values():
            self.artifacts.put(data)  # a known bundle too: that repairs a damaged artifact
        with suppress(AlreadyRegistered):
            self._apply(name, lambda head: self._registration(bundle, head))

    def load(self) -> None:
        """Bring every registered model to life; one that cannot be loaded is reported by readiness."""
        for name in self.database.models():
            try:
                head = self.database.newest_change(name)
                self.registry.put(self.build(self.state(head), head.revision))
            except CalibrationError as error:
                self.registry.fail(name, str(error))

    def change(
        self, model: str, plan: Callable[[ChangeRow], Plan], *, check: Callable[[ChangeRow], None] | None = None
    ) -> tuple[LiveModel, ChangeRow]:
        """Plan a change on the newest state, build it, commit it, and put it in place.

        Args: check, raises when the newest state is not the one that the caller means.
        Raises: UnknownModel, StorageUnavailable, and whatever `check`, `plan` and loading raise; then nothing changed.
        """
        self.database.newest_change(model)

        def checked(head: ChangeRow | None) -> Plan:
            assert head is not None
            if check is not None:
                check(head)
            return plan(head)

        return self._apply(model, checked)

    def _apply(self, model: str, plan: Callable[[ChangeRow | None], Plan]) -> tuple[LiveModel, ChangeRow]:
        with self._locks.setdefault(model, threading.Lock()):
            for _ in range(ATTEMPTS):
                head = self._head(model)
                planned = plan(head)
                change = _change_row(model, planned, head)
                live = self.build(planned.state, change.revision, planned.rows)
                try:
                    self.database.commit(change, planned.rows)
                except Overtaken:
                    continue
                self.registry.put(live)
                return live, change
        raise StorageUnavailable(f"model {model!r} is being changed by others all the time. Try again in a moment.")

    def _head(self, model: str) -> ChangeRow | None:
        try:
            return self.database.newest_change(model)
        except UnknownModel:
            return None

    def state(self, change: ChangeRow) -> State:
        return State(
            version=self.database.version(change.model, change.version),
            calibration=self.database.calibration(change.model, change.calibration),
            prior=change.prior,
        )

    def build(self, state: State, revision: int, new_rows: Sequence[Row] = ()) -> LiveModel:
        """The live model of a state; the network is loaded again only when the version changed.

        Raises: InvalidBundle, StorageUnavailable.
        """
        manifest = Manifest.from_json(state.version.manifest)
        added = [row for row in new_rows if isinstance(row, PriorRow)]
        priors = {
            row.name: prior_in_order(row, manifest.class_names)
            for row in (*self.database.priors(manifest.name), *added)
            if fits(row, manifest.class_names)
        }
        ledger = ledger_from_json(state.calibration.ledger)
        deployment = Deployment(
            ledger=ledger,
            calibration=calibration_from_json(state.calibration.calibration),
            prior=ClassPrior.uniform(manifest.num_classes),
        )
        live = LiveModel(
            name=manifest.name,
            revision=revision,
            version=state.version.id,
            calibration=state.calibration.id,
            prior=state.prior,
            class_names=manifest.class_names,
            input_size=manifest.input_size,
            deployment=deployment,
            stored_priors=priors,
            runner=self._runner(manifest, state.version.fingerprint),
            fingerprint=state.version.fingerprint,
        )
        active = live.prior_named(state.prior)
        assert active is not None  # `none` is a word of requests, never an active prior
        return replace(live, deployment=replace(deployment, prior=active))

    def calibration_set(self, version: VersionRow) -> LogitSet | None:
        """The labelled logits that came with a version. Raises: StorageUnavailable."""
        digest = version.manifest["files"].get(CALIBRATION_SET_FILE)
        return None if digest is None else read_calibration_set(self.artifacts.get(digest))

    def fitting_prior(self, prior: str, model: str, class_names: Sequence[str]) -> str:
        """The same prior where it speaks of these classes, else the uniform one."""
        if prior in BUILT_IN or fits(self.database.prior(model, prior), class_names):
            return prior
        return UNIFORM

    def _runner(self, manifest: Manifest, fingerprint: str) -> LogitRunner | None:
        if manifest.input_size is None:
            return None
        loaded = self.registry.find(manifest.name)
        if loaded is not None and loaded.fingerprint == fingerprint:
            return loaded.runner
        return OnnxRunner(
            self.artifacts.get(manifest.files[MODEL_FILE]),
            num_classes=manifest.num_classes,
            input_size=manifest.input_size,
            threads=self._model_threads,
        )

    def _registration(self, bundle: Bundle, head: ChangeRow | None) -> Plan:
        name = bundle.manifest.name
        versions = self.database.versions(name)
        if any(row.fingerprint == bundle.fingerprint for row in versions):
            raise AlreadyRegistered
        version = _version_row(bundle, len(versions) + 1)
        calibration = _own_calibration(bundle.manifest, version.number, len(self.database.calibrations(name)) + 1)
        if head is None:
            model = ModelRow(name=name, created_at=now())
            state = State(version=version, calibration=calibration, prior=UNIFORM)
            return Plan(action="registered", state=state, undoes_to=None, rows=(model, version, calibration))
        prior = self.fitting_prior(head.prior, name, bundle.manifest.class_names)
        state = State(version=version, calibration=calibration, prior=prior)
        return Plan(action="new version", state=state, undoes_to=head.revision, rows=(version, calibration))


def expect_revision(model: str, wanted: Sequence[int] | None) -> Callable[[ChangeRow], None]:
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
    return set(row.probs) == set(class_names)


def prior_in_order(row: PriorRow, class_names: Sequence[str]) -> ClassPrior:
    """`(C,)` in class order, to the last bit as it was stored."""
    return ClassPrior(np.array([row.probs[name] for name in class_names]))


def _version_row(bundle: Bundle, number: int) -> VersionRow:
    return VersionRow(
        model=bundle.manifest.name,
        number=number,
        manifest=bundle.manifest.to_json(),
        fingerprint=bundle.fingerprint,
        created_at=now(),
    )


def _own_calibration(manifest: Manifest, version: int, number: int) -> CalibrationRow:
    return CalibrationRow(
        model=manifest.name,
        number=number,
        version=version,
        calibration=calibration_to_json(manifest.calibration),
        ledger=ledger_to_json(manifest.ledger),
        report=None,
        file_digest=None,
        created_at=now(),
    )


def _change_row(model: str, plan: Plan, head: ChangeRow | None) -> ChangeRow:
    return ChangeRow(
        model=model,
        revision=1 if head is None else head.revision + 1,
        action=plan.action,
        version=plan.state.version.number,
        calibration=plan.state.calibration.number,
        prior=plan.state.prior,
        undoes_to=plan.undoes_to,
        created_at=now(),
    )
