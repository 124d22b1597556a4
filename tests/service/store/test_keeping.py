"""Files that rows name stay, and only they; on both databases."""

import os
import threading
import time
from pathlib import Path

import pytest

from service.errors import StorageUnavailable
from service.store.artifacts import ArtifactStore
from service.store.database import Database, now
from service.store.keeping import Keeper, clear_left_overs
from service.store.tables import CalibrationRow, ChangeRow, JobRow, PriorRow, VersionRow

AT_ONCE = -1.0  # a grace that has passed for what was put just now


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "artifacts").as_uri())


@pytest.fixture
def keeper(database: Database, artifacts: ArtifactStore) -> Keeper:
    return Keeper(database, artifacts)


def calibration(number: int, *, labelled: str, file: str | None, deleted: bool = False) -> CalibrationRow:
    return CalibrationRow(
        model="pets",
        number=number,
        version=1,
        method="marc",
        calibration={},
        ledger={},
        file_digest=file,
        created_at=now(),
        calibration_set=labelled,
        deleted_at=now() if deleted else None,
    )


def version(number: int, graph: str, *, deleted: bool = False) -> VersionRow:
    manifest = {"name": "pets", "files": {"model.onnx": graph}}
    gone = now() if deleted else None
    return VersionRow(
        model="pets", number=number, manifest=manifest, fingerprint="f", created_at=now(), deleted_at=gone
    )


def change(file: str) -> ChangeRow:
    return ChangeRow(
        model="pets",
        revision=1,
        action="test",
        version=1,
        calibration=1,
        prior="uniform",
        prior_edition=None,
        undoes_to=None,
        created_at=now(),
        file_digest=file,
    )


def job(file: str, status: str) -> JobRow:
    return JobRow(
        kind="register",
        target="",
        options={},
        input_digest=file,
        request_digest="r",
        idempotency_key=None,
        actor=None,
        created_at=now(),
        status=status,
    )


def test_a_sweep_deletes_what_no_row_names_and_nothing_else(
    database: Database, keeper: Keeper, artifacts: ArtifactStore
) -> None:
    kept = ["graph", "set", "file of c1", "file of c2", "file of a change", "file of a prior", "queued", "running"]
    gone = ["nothing", "graph of a deleted version", "set of a deleted calibration", "ended"]
    digests = {name: keeper.put(name.encode()) for name in (*kept, *gone)}
    database.commit(
        change(digests["file of a change"]),
        [
            version(1, digests["graph"]),
            version(2, digests["graph of a deleted version"], deleted=True),
            calibration(1, labelled=digests["set"], file=digests["file of c1"]),
            calibration(2, labelled=digests["set of a deleted calibration"], file=digests["file of c2"], deleted=True),
            PriorRow(
                model="pets",
                name="shop",
                edition=1,
                probs={"ant": 1.0},
                file_digest=digests["file of a prior"],
                created_at=now(),
            ),
            job(digests["queued"], "queued"),
            job(digests["running"], "running"),
            job(digests["ended"], "done"),
        ],
    )
    assert set(keeper.sweep(grace_seconds=AT_ONCE)) == {digests[name] for name in gone}
    for name in kept:
        assert artifacts.get(digests[name]) == name.encode()
    for name in gone:
        with pytest.raises(StorageUnavailable):
            artifacts.get(digests[name])
    assert keeper.sweep(grace_seconds=AT_ONCE) == []


def test_a_file_that_was_put_not_long_ago_waits_for_its_row(keeper: Keeper, artifacts: ArtifactStore) -> None:
    digest = keeper.put(b"data")
    assert keeper.sweep(grace_seconds=60.0) == []
    assert artifacts.get(digest) == b"data"


def test_a_file_from_a_path_is_kept_the_same_way(keeper: Keeper, artifacts: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    digest = keeper.put_file(tmp_path / "file")
    assert artifacts.get(digest) == b"data"
    assert keeper.sweep(grace_seconds=AT_ONCE) == [digest]


def test_a_file_that_is_put_again_while_it_is_swept_is_there_afterwards(
    database: Database, keeper: Keeper, artifacts: ArtifactStore, tmp_path: Path
) -> None:
    class Slow(ArtifactStore):
        """Another process puts the file again just when it is about to be deleted."""

        def delete(self, digest: str) -> None:
            again.start()
            again.join(timeout=0.5)
            super().delete(digest)

    sweeping = Keeper(database, Slow((tmp_path / "artifacts").as_uri()))
    again = threading.Thread(target=keeper.put, args=(b"data",))
    digest = keeper.put(b"data")
    assert sweeping.sweep(grace_seconds=AT_ONCE) == [digest]
    again.join()
    assert artifacts.get(digest) == b"data"
    assert keeper.sweep(grace_seconds=AT_ONCE) == [digest]  # and it is known, so that it goes one day


def test_a_file_that_got_its_row_after_a_sweep_began_stays(
    database: Database, keeper: Keeper, artifacts: ArtifactStore
) -> None:
    digest = keeper.put(b"data")
    database.commit(change(digest), [version(1, digest), calibration(1, labelled=digest, file=None)])
    assert not keeper._delete(digest, AT_ONCE)  # what a sweep does for a file that it found before
    assert artifacts.get(digest) == b"data"


def test_uploads_that_a_killed_process_left_are_cleared_a_day_later(tmp_path: Path) -> None:
    for name, age_seconds in (("upload-old", 2 * 86400), ("upload-new", 0), ("artifacts", 2 * 86400)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "body").write_bytes(b"data")
        os.utime(tmp_path / name, (time.time() - age_seconds,) * 2)
    clear_left_overs(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "upload-new"]
