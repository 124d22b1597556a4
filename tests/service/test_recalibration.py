"""Refits beside other changes: what is live decides, and is measured once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service import changes, recalibration
from service.bundle import read_bundle
from service.catalog import Catalog, Plan
from service.recalibration import Measured, Upload
from service.store.artifacts import ArtifactStore
from service.store.database import Database
from service.store.tables import ChangeRow
from tests.service.bundles import Made

UPLOADS = {
    "training": Upload(data=b"ant,4000\nbee,100\ncat,60\ndog,9\n", role="training"),
    "target": Upload(data=b"ant,5\nbee,10\ncat,20\ndog,65\n", role="target", name="shop"),
}


class Counting(ArtifactStore):
    """Counts how often a calibration set is read, which every fit and every comparison does."""

    reads = 0

    def get(self, digest: str) -> bytes:
        self.reads += 1
        return super().get(digest)


@pytest.fixture
def catalog(tmp_path: Path, pets: Made) -> Iterator[Catalog]:
    store = Counting((tmp_path / "artifacts").as_uri())
    opened = Catalog(Database(f"sqlite:///{tmp_path / 'test.db'}"), store)
    opened.register(read_bundle(pets.path))
    store.reads = 0
    yield opened
    opened.close()


def upload_among(catalog: Catalog, role: str, others: list[changes.Planner]) -> ChangeRow:
    """An upload whose every attempt is overtaken by one of the others, until none is left."""
    done: Measured = {}

    def plan(head: ChangeRow) -> Plan:
        planned, _ = recalibration.apply_frequencies(catalog, head, UPLOADS[role], lambda share: None, done)
        if others:
            catalog.change("pets", others.pop())
        return planned

    return catalog.change("pets", plan)[1]


@pytest.mark.parametrize("role", ["training", "target"])
def test_changes_of_nothing_live_do_not_let_an_upload_begin_anew(catalog: Catalog, role: str) -> None:
    beside = [changes.set_prior(catalog, "pets", "shop", [1, 1, 1, weight]) for weight in (1, 2, 3)]
    change = upload_among(catalog, role, [changes.set_alias(catalog, "pets", "candidate", 1), *beside])
    assert (change.revision, change.undoes_to, catalog.artifacts.reads) == (6, 5, 1)  # type: ignore[attr-defined]
    assert catalog.database.aliases("pets") == {"candidate": 1}
    assert catalog.database.prior("pets", "shop").edition == {"training": 3, "target": 4}[role]


def test_a_change_of_what_is_live_is_what_an_upload_is_measured_against(catalog: Catalog) -> None:
    alone = upload_among(catalog, "training", [])
    catalog.change("pets", changes.undo(catalog, "pets"))
    change = upload_among(catalog, "training", [changes.activate_prior(catalog, "pets", "training")])
    assert (change.prior, change.revision, change.undoes_to) == ("training", 5, 4)
    assert alone.metrics is not None
    assert change.metrics is not None
    assert change.metrics["before"] != alone.metrics["before"]
