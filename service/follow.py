"""Keeping the live models of this process in step with the database, which other processes change too."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import replace
from time import monotonic

from models.calibration.errors import CalibrationError
from models.calibration.manifest import MODEL_FILE, Manifest, calibration_from_json, ledger_from_json
from models.calibration.recalibrate import Deployment
from models.calibration.types import ClassPrior
from service.catalog import Catalog, Plan, State, fits, prior_in_order
from service.errors import StorageUnavailable, UnknownModel, UnknownVersion
from service.runtime.live import PRODUCTION, LiveModel, Registry
from service.runtime.networks import Networks, StoredNetwork
from service.store.tables import CalibrationRow, ChangeRow, PriorRow

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
SILENT_SECONDS = 2.0  # without an answer to the poll: a server that hangs, not one that refuses
RETRY_SECONDS = 5.0  # after a model could not be loaded
KEPT_VARIANTS = 64


class Follower:
    """Builds live models from rows and puts them in place; `start` follows what other processes commit.

    While the database is gone the live models stay, and `degraded` says why nothing new is heard.
    """

    def __init__(
        self,
        catalog: Catalog,
        networks: Networks,
        *,
        retry_seconds: float = RETRY_SECONDS,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self.registry = Registry()
        self._catalog = catalog
        self._networks = networks
        self._retry_seconds = retry_seconds
        self._silent_seconds = silent_seconds
        self._variants: OrderedDict[tuple[str, str, int | None, int | None], LiveModel] = OrderedDict()
        self._lock = threading.Lock()  # one refresh at a time; requests never wait for it
        self._failed: dict[str, tuple[str, int, float]] = {}  # which state failed, and when to try it again
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def degraded(self) -> list[str]:
        """What works only in part: no word from the database, or models that are not in their newest state."""
        gone = self._catalog.database.down
        found = [] if gone is None else [f"{gone}; models answer as they were, changes are refused"]
        return found + self.registry.behind()

    def load(self) -> None:
        """Bring every registered model to life; one that cannot be loaded is reported by readiness."""
        for name in self._catalog.database.models():
            self.refresh(name)

    def follow(self) -> None:
        """Take over, once, what others have committed; requests are let through to the database if it answers.

        Raises: StorageUnavailable.
        """
        database = self._catalog.database
        database.asked(expect_within=self._silent_seconds)
        try:
            heads = database.heads()
        except StorageUnavailable:
            database.not_heard()
            raise
        database.heard()
        for name in self.registry.names():
            if name not in heads:
                self.refresh(name)  # looks again: it may have been registered a moment ago
        for name, head in heads.items():
            if self._is_behind(name, head):
                self.refresh(name)

    def _is_behind(self, name: str, head: tuple[str, int]) -> bool:
        """Whether a model is not live in its newest state, and it is time to try that."""
        failed = self._failed.get(name)
        if failed is not None:
            return failed[:2] != head or monotonic() >= failed[2]
        live = self.registry.find(name)
        return live is None or (live.made_at, live.revision) != head

    def refresh(self, name: str) -> None:
        """Put the newest state of a model in place; what cannot be loaded is remembered, and tried again later."""
        with self._lock:
            database = self._catalog.database
            made_at, revision = "", 0
            try:
                made_at, head = database.created_at(name), database.newest_change(name)
                revision = head.revision
                state = self._catalog.state(head)
                live = self._with_priors(self.build(state, revision, made_at), state, self.registry.find(name))
                self._warm(live)
            except UnknownModel:
                self._failed.pop(name, None)
                self.registry.remove(name)
            except Exception as error:  # a defect must not stop the following of all other models
                known = isinstance(error, CalibrationError)
                if not known:
                    log.exception("model %s cannot be followed", name)
                self._failed[name] = (made_at, revision, monotonic() + self._retry_seconds)
                self.registry.fail(name, str(error) if known else "the service failed on it; the log has the reason")
            else:
                self._failed.pop(name, None)
                self.registry.put(live)

    def prepare(self, plan: Plan, change: ChangeRow) -> None:
        """Build the state after a change, and load its network and that of a new version, before it is committed.

        Raises: InvalidBundle, StorageUnavailable.
        """
        live = self.build(plan.state, change.revision, change.created_at)
        added = [] if plan.version is None else [self._runner(Manifest.from_json(plan.version.manifest))]
        for runner in (live.runner, *added):
            if isinstance(runner, StoredNetwork):
                runner.load()

    def build(self, state: State, revision: int, made_at: str) -> LiveModel:
        """The live model of a state, without the stored priors. Raises: InvalidManifest, StorageUnavailable."""
        manifest = Manifest.from_json(state.version.manifest)
        names = manifest.class_names
        live = LiveModel(
            name=manifest.name,
            made_at=made_at,
            revision=revision,
            version=state.version.id,
            calibration=state.calibration.id,
            prior=state.prior_name,
            class_names=names,
            input_size=manifest.input_size,
            deployment=self._deployment(state.calibration, manifest),
            stored_priors={},
            editions={},
            aliases=self._catalog.database.aliases(manifest.name),
            runner=self._runner(manifest),
        )
        prior = live.prior_named(state.prior) if isinstance(state.prior, str) else prior_in_order(state.prior, names)
        assert prior is not None  # `none` is a word of requests, never an active prior
        return replace(live, deployment=replace(live.deployment, prior=prior))

    def _with_priors(self, live: LiveModel, state: State, known: LiveModel | None) -> LiveModel:
        """The same with the stored priors; those of `known` are shared, because there may be many and an edition never
        changes."""
        same = known is not None and (known.made_at, known.class_names) == (live.made_at, live.class_names)
        editions = self._catalog.database.editions(live.name)
        if isinstance(state.prior, PriorRow):
            editions[state.prior.name] = state.prior.edition  # another process may have stored a newer one just now
        laws: dict[str, ClassPrior | None] = {}
        for name, edition in editions.items():
            if known is not None and same and known.editions.get(name) == edition:
                laws[name] = known.stored_priors.get(name)
            else:
                row = self._catalog.database.prior_edition(live.name, name, edition)
                laws[name] = prior_in_order(row, live.class_names) if fits(row, live.class_names) else None
        priors = {name: law for name, law in laws.items() if law is not None}
        return replace(live, stored_priors=priors, editions=editions)

    def variant(self, live: LiveModel, *, version: str | None, calibration: int | None) -> LiveModel:
        """The same model in another version or calibration, under the prior that is active.

        Raises: UnknownVersion, UnknownCalibration, StorageUnavailable unless it was asked for before in this state.
        """
        number = None if version is None else self._number_of(live, version)
        if f"c{calibration}" == live.calibration or (calibration is None and number in (None, int(live.version))):
            return live
        key = (live.name, f"{live.made_at} {live.revision}", number, calibration)
        found = self._variants.get(key)
        if found is None:
            if calibration is None:
                assert number is not None  # one of the two is asked for
                row = self._catalog.database.version(live.name, number)
                calibration = self._catalog.calibration_of_version(row).number
            found = self._variants[key] = self._built_variant(live, calibration)
            while len(self._variants) > KEPT_VARIANTS:
                self._variants.popitem(last=False)
        return found

    def _number_of(self, live: LiveModel, version: str) -> int:
        """Of a version by its number or alias. Raises: UnknownVersion."""
        if version == PRODUCTION:
            return int(live.version)
        number = live.aliases.get(version) or (int(version) if version.isdecimal() and len(version) < 9 else None)
        if number is None:
            known = ", ".join([PRODUCTION, *live.aliases])
            raise UnknownVersion(
                f"model {live.name!r} has no version {version[:80]!r}; a version is a number or an alias: {known}."
            )
        return number

    def _built_variant(self, live: LiveModel, number: int) -> LiveModel:
        database = self._catalog.database
        calibration = database.calibration(live.name, number)
        version = database.version(live.name, calibration.version)
        head = database.change(live.name, live.revision)
        prior = self._catalog.state(head).prior if head is not None else live.prior
        prior = self._catalog.fitting_prior(prior, version.manifest["class_names"])
        state = State(version=version, calibration=calibration, prior=prior)
        return self._with_priors(self.build(state, live.revision, live.made_at), state, live)

    def _deployment(self, row: CalibrationRow, manifest: Manifest) -> Deployment:
        return Deployment(
            ledger=ledger_from_json(row.ledger),
            calibration=calibration_from_json(row.calibration),
            prior=ClassPrior.uniform(manifest.num_classes),
        )

    def _runner(self, manifest: Manifest) -> StoredNetwork | None:
        size = manifest.input_size
        if size is None:
            return None
        digest, classes = manifest.files[MODEL_FILE], manifest.num_classes
        return StoredNetwork(self._networks, digest, model=manifest.name, num_classes=classes, size=size)

    def _warm(self, live: LiveModel) -> None:
        """Load the network before it gets requests, unless that would put out one that is in use."""
        if not isinstance(live.runner, StoredNetwork):
            return
        known = self.registry.find(live.name)
        in_use = known is not None and isinstance(known.runner, StoredNetwork) and known.runner.is_loaded()
        if in_use or self._networks.has_room():
            live.runner.load()

    def _run(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            try:
                self.follow()
            except StorageUnavailable:
                continue
            except Exception:  # a defect, and `degraded` says that nothing is heard
                log.exception("following the database failed")
