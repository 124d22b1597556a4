"""Several processes on one database, as objects of one test: what one commits is live in the others."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psycopg
import pytest
from sqlalchemy import Update, make_url, update

from service import changes
from service.bundle import read_bundle
from service.catalog import Catalog
from service.errors import ModelNotLoaded, StorageUnavailable, UnknownCalibration, UnknownModel, UnknownVersion
from service.follow import Follower
from service.runtime.live import LiveModel
from service.runtime.networks import Networks
from service.store.artifacts import ArtifactStore
from service.store.database import Database
from service.store.tables import CalibrationRow, ChangeRow, ModelRow, VersionRow
from tests.service.bundles import CLASSES, HEIGHT, WIDTH, Made
from tests.service.processes import eventually

IMAGES = np.zeros((1, HEIGHT, WIDTH, 3), dtype=np.uint8)
LAW = dict(zip(CLASSES, (0.05, 0.1, 0.2, 0.65), strict=True))


class Process:
    """What a process of the service holds of the models, without HTTP."""

    def __init__(self, database: Database, artifacts: Path, *, limit_bytes: int = 1 << 30) -> None:
        self.artifacts = artifacts / "sha256"
        self.database = database
        self.catalog = Catalog(database, ArtifactStore(artifacts.as_uri()))
        self.networks = Networks(self.catalog.artifacts.get, limit_bytes=limit_bytes)
        self.follower = Follower(self.catalog, self.networks, retry_seconds=0.05)

    def register(self, *bundles: Made) -> None:
        for made in bundles:
            self.catalog.register(read_bundle(made.path), prepare=self.follower.prepare)

    def activate_prior(self, name: str, model: str = "pets") -> None:
        self.catalog.change(model, changes.activate_prior(self.catalog, model, name))

    def set_prior(self, name: str, law: dict[str, float] | list[float]) -> None:
        self.catalog.change("pets", changes.set_prior(self.catalog, "pets", name, law))

    def live(self, model: str = "pets") -> LiveModel:
        return self.follower.registry.get(model)

    def file(self, made: Made) -> Path:
        digest = made.manifest.files["model.onnx"]
        return self.artifacts / digest[:2] / digest


Start = Callable[..., Process]


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Start]:
    started: list[Process] = []

    def begin(**options: int) -> Process:
        started.append(Process(Database(url), tmp_path / "artifacts", **options))
        started[-1].follower.load()
        return started[-1]

    yield begin
    for process in started:
        process.follower.stop()
        process.catalog.close()


@contextmanager
def gone(url: str, *processes: Process) -> Iterator[None]:
    """The database does not answer."""
    if url.startswith("sqlite"):
        file = Path(url.removeprefix("sqlite:///"))
        for process in processes:
            process.database.engine.dispose()  # an open file would go on working
        file.rename(file.with_suffix(".aside"))
        file.mkdir()
        yield
        file.rmdir()
        file.with_suffix(".aside").rename(file)
        return
    name, server = make_url(url).database, make_url(url).set(database="postgres")
    with psycopg.connect(server.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")


def test_a_change_in_one_process_is_live_in_the_other(start: Start, pets: Made) -> None:
    one, other = start(), start()
    with pytest.raises(UnknownModel):
        other.live()
    one.register(pets)
    other.follower.follow()
    assert (other.live().revision, other.live().prior) == (1, "uniform")
    one.set_prior("shop", LAW)
    one.activate_prior("shop")
    other.follower.follow()
    assert (other.live().revision, other.live().prior) == (3, "shop")
    np.testing.assert_allclose(other.live().deployment.prior.probs, list(LAW.values()))


def test_a_process_follows_by_itself_once_it_is_started(start: Start, pets: Made) -> None:
    one, other = start(), start()
    other.follower.start()
    one.register(pets)
    eventually(other.follower.registry.names, seconds=30)
    assert other.live().revision == 1
    assert other.follower.degraded() == []


def test_a_request_keeps_the_model_that_it_began_with(start: Start, pets: Made) -> None:
    one, other = start(), start()
    one.register(pets)
    other.follower.follow()
    begun = other.live()
    one.activate_prior("training")
    other.follower.follow()
    assert (begun.revision, begun.prior) == (1, "uniform")
    np.testing.assert_allclose(begun.deployment.prior.probs, 0.25)


def test_what_did_not_change_is_not_built_again(start: Start, pets: Made) -> None:
    process = start()
    process.register(pets)
    process.follower.follow()
    before = process.live()
    process.follower.follow()
    assert process.live() is before


def test_a_deleted_model_vanishes_and_one_made_anew_under_its_name_is_noticed(
    start: Start, pets: Made, make_bundle: Callable[..., Made]
) -> None:
    one, other = start(), start()
    one.register(pets)
    other.follower.follow()
    one.database.forget("pets", revision=1)
    other.follower.follow()
    with pytest.raises(UnknownModel):
        other.live()
    one.register(pets)
    other.follower.follow()
    one.database.forget("pets", revision=1)
    one.register(make_bundle("another", classes=("car", "van"), counts=(9, 1)))
    other.follower.follow()  # the same name and the same revision
    assert other.live().class_names == ("car", "van")


def test_a_model_made_anew_by_a_machine_whose_clock_is_behind_is_noticed_too(start: Start, pets: Made) -> None:
    process = start()
    process.register(pets)
    process.follower.follow()
    with process.database.writing() as session:
        session.execute(update(ModelRow).values(created_at="2001-01-01"))
    process.follower.follow()
    assert process.live().made_at == "2001-01-01"


def test_a_version_that_cannot_be_loaded_leaves_the_former_one_live_and_recovers_by_itself(
    start: Start, make_bundle: Callable[..., Made]
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    one, other = start(), start()
    one.register(old)
    other.follower.follow()
    one.register(new)
    other.file(new).rename(other.file(new).with_suffix(".aside"))
    other.follower.follow()
    assert other.live().version == "1"
    assert other.live().runner is not None
    assert other.live().runner.run(IMAGES).shape == (1, 4)
    (behind,) = other.follower.degraded()
    assert behind.startswith("model pets: artifact")
    assert other.follower.registry.missing() == []  # it answers
    other.file(new).with_suffix(".aside").rename(other.file(new))
    time.sleep(0.06)
    other.follower.follow()
    assert (other.live().version, other.follower.degraded()) == ("2", [])
    recovered = other.live()
    other.follower.follow()
    assert other.live() is recovered  # it is not tried again and again


def test_a_version_that_cannot_be_loaded_is_not_waited_for_once_it_is_undone(
    start: Start, make_bundle: Callable[..., Made]
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    one, other = start(), start()
    one.register(old)
    other.follower.follow()
    one.register(new)
    other.file(new).unlink()
    other.follower.follow()
    one.catalog.change("pets", changes.undo(one.catalog, "pets"))
    other.follower.follow()
    assert (other.live().version, other.live().revision, other.follower.degraded()) == ("1", 3, [])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (update(VersionRow).where(VersionRow.model == "pets").values(manifest={"files": 3}), "format version"),
        (
            update(ChangeRow).where(ChangeRow.model == "pets").values(prior_edition=9),
            "no edition 9 of a prior 'uniform'",
        ),
        (update(CalibrationRow).where(CalibrationRow.model == "pets").values(ledger={}), "the log has the reason"),
    ],
)
def test_a_model_that_could_never_be_loaded_says_why_and_the_others_are_followed(
    start: Start, pets: Made, make_bundle: Callable[..., Made], damage: Update, reason: str
) -> None:
    one, other = start(), start()
    one.register(make_bundle("ants", name="ants"), pets, make_bundle("zebras", name="zebras"))
    with one.database.writing() as session:
        session.execute(damage)
    other.follower.follow()
    with pytest.raises(ModelNotLoaded, match=f"'pets' is registered but cannot be loaded: .*{reason}"):
        other.live()
    assert [each.split(":")[0] for each in other.follower.registry.missing()] == ["model pets"]
    assert (other.live("ants").revision, other.live("zebras").revision) == (1, 1)


def test_without_the_database_models_answer_as_they_were_and_all_recovers(url: str, start: Start, pets: Made) -> None:
    one, other = start(), start()
    one.register(pets)
    other.follower.follow()
    one.follower.follow()
    before = other.live()
    with gone(url, one, other):
        with pytest.raises(StorageUnavailable):
            other.follower.follow()
        other.follower.refresh("pets")  # as a request does that has just made a change
        assert other.live() is before
        assert "the database does not answer; models answer as they were" in other.follower.degraded()[0]
        with pytest.raises(StorageUnavailable):
            other.activate_prior("training")
    other.follower.follow()
    assert other.follower.degraded() == []
    one.activate_prior("training")
    other.follower.follow()
    assert other.live().prior == "training"


def test_a_model_registered_here_while_others_are_looked_at_does_not_vanish(
    url: str, tmp_path: Path, pets: Made
) -> None:
    class Late(Database):
        """Something is registered just after the newest revisions were read."""

        def heads(self) -> dict[str, tuple[str, int]]:
            found = super().heads()
            if "pets" not in process.follower.registry.names():
                process.register(pets)
                process.follower.refresh("pets")
            return found

    process = Process(Late(url), tmp_path / "artifacts")
    process.follower.follow()
    assert process.live().revision == 1
    process.catalog.close()


def test_while_a_large_network_is_loaded_the_database_is_not_taken_for_gone(
    start: Start, make_bundle: Callable[..., Made]
) -> None:
    one, other = start(), start()
    down = []

    def read(digest: str) -> bytes:
        time.sleep(0.1)  # longer than the database may be silent
        down.append(other.database.down)
        return other.catalog.artifacts.get(digest)

    networks = Networks(read, limit_bytes=1 << 30)
    other.follower = Follower(other.catalog, networks, silent_seconds=0.05)
    one.register(make_bundle("ants", name="ants"), make_bundle("bees", name="bees", seed=2))
    other.follower.follow()
    assert (down, other.follower.registry.missing()) == ([None, None], [])


def test_a_stored_prior_is_held_once_and_offered_where_it_speaks_of_the_live_classes(
    start: Start, pets: Made, make_bundle: Callable[..., Made]
) -> None:
    one, other = start(), start()
    one.register(pets)
    one.set_prior("shop", LAW)
    other.follower.follow()
    before = other.live().stored_priors["shop"]
    one.set_prior("field", [1, 1, 1, 2])
    other.follower.follow()
    assert sorted(other.live().stored_priors) == ["field", "shop"]
    assert other.live().stored_priors["shop"] is before
    one.register(make_bundle("another", classes=("car", "van"), counts=(9, 1)))
    one.set_prior("road", [1, 3])
    other.follower.follow()
    assert list(other.live().stored_priors) == ["road"]
    one.catalog.change("pets", changes.undo(one.catalog, "pets"))
    other.follower.follow()
    assert sorted(other.live().stored_priors) == ["field", "shop"]


def test_the_active_prior_is_named_by_the_edition_that_scores_are_given_by(
    url: str, tmp_path: Path, start: Start, pets: Made
) -> None:
    other = [9.0, 1.0, 1.0, 1.0]

    class Late(Database):
        """The prior gets another meaning just before its editions are read."""

        def editions(self, model: str) -> dict[str, int]:
            if one.database.newest_change("pets").revision == 3:
                one.set_prior("shop", other)
            return super().editions(model)

    one = start()
    one.register(pets)
    one.set_prior("shop", LAW)
    one.activate_prior("shop")
    process = Process(Late(url), tmp_path / "artifacts")
    process.follower.follow()
    for edition, law in ((1, list(LAW.values())), (2, np.array(other) / 12)):
        assert process.live().prior_shown("shop") == {"name": "shop", "edition": edition}
        np.testing.assert_allclose(process.live().deployment.prior.probs, law)
        np.testing.assert_allclose(process.live().stored_priors["shop"].probs, law)
        process.follower.follow()
    process.catalog.close()


def test_at_the_start_only_so_many_networks_are_loaded_as_there_is_room_for(
    start: Start, make_bundle: Callable[..., Made]
) -> None:
    made = [make_bundle(name, name=name, seed=seed) for seed, name in enumerate(("ants", "bees", "cats"))]
    start().register(*made)
    size = (made[0].path / "model.onnx").stat().st_size
    process = start(limit_bytes=int(2.5 * size))
    assert process.networks.digests() == [each.manifest.files["model.onnx"] for each in made[:2]]
    process.activate_prior("training", "cats")
    process.follower.follow()  # a change of a model that nobody uses puts out none that is used
    assert process.networks.digests() == [each.manifest.files["model.onnx"] for each in made[:2]]
    runner = process.live("cats").runner
    assert runner is not None
    assert runner.run(IMAGES).shape == (1, 4)  # and it is loaded on demand


def test_the_network_of_a_new_version_is_in_memory_before_it_goes_live(
    start: Start, make_bundle: Callable[..., Made]
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    size = (old.path / "model.onnx").stat().st_size
    one, other = start(), start(limit_bytes=size)
    one.register(old)
    other.follower.follow()
    one.register(new)
    other.follower.follow()
    assert other.networks.digests() == [new.manifest.files["model.onnx"]]


def test_a_former_version_answers_when_it_is_asked_for_by_number_or_alias(
    url: str, start: Start, make_bundle: Callable[..., Made]
) -> None:
    old, new = make_bundle("old", seed=1), make_bundle("new", seed=2)
    process = start()
    process.register(old, new)
    process.catalog.change("pets", changes.set_alias(process.catalog, "pets", "before", 1))
    process.activate_prior("training")
    process.follower.follow()
    live, variant = process.live(), process.follower.variant
    with ThreadPoolExecutor(8) as pool:
        asked = [{"version": ("1", "before")[n % 2], "calibration": None} for n in range(32)]
        found = list(pool.map(lambda each: variant(live, **each), asked))
    assert {(each.version, each.calibration, each.prior) for each in found} == {("1", "c1", "training")}
    assert variant(live, version=None, calibration=1).version == "1"
    for same in ("production", "2", None):
        assert variant(live, version=same, calibration=None) is live
    with gone(url, process):
        assert variant(live, version="before", calibration=None).version == "1"  # it is in memory by now
        assert variant(live, version=None, calibration=1).version == "1"
    with pytest.raises(UnknownVersion):
        variant(live, version="9", calibration=None)
    with pytest.raises(UnknownVersion):
        variant(live, version="after", calibration=None)
    with pytest.raises(UnknownCalibration):
        variant(live, version=None, calibration=9)
