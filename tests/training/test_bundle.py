import hashlib
import json

import numpy as np
import pytest

from models.calibration.manifest import InputSize, Manifest
from models.calibration.prior import Ledger
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import LogitSet
from training.bundle import OutputExists, new_folder, write_bundle

LEDGER = Ledger.by_rule("cross-entropy", [5, 2])


def manifest(**changes) -> Manifest:
    fields = {"name": "pets", "class_names": ("ant", "bee"), "ledger": LEDGER, "row_norms": np.ones(2)}
    return Manifest(**(fields | {"calibration": closed_form_without_data(LEDGER)} | changes))


def test_the_manifest_has_the_checksum_of_every_other_file(tmp_path):
    logits = LogitSet(logits=np.eye(2), labels=np.array([0, 1]), split="calibration", drawn="by hand, größer")
    size = InputSize(height=8, width=8)
    write_bundle(tmp_path / "b", manifest(input_size=size), model=b"a graph", calibration_set=logits)
    read = Manifest.from_json(json.loads((tmp_path / "b" / "manifest.json").read_text(encoding="utf-8")))
    others = {path.name: path for path in (tmp_path / "b").iterdir() if path.name != "manifest.json"}
    assert dict(read.files) == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in others.items()}
    assert set(others) == {"model.onnx", "calibration_set.npz"}


def test_the_same_content_gives_the_same_bytes(tmp_path):
    logits = LogitSet(logits=np.eye(2), labels=np.array([0, 1]), split="calibration")
    first, second = (
        write_bundle(tmp_path / name, manifest(), model=None, calibration_set=logits) for name in ("a", "b")
    )
    assert first.files == second.files


def test_a_block_that_fails_leaves_nothing(tmp_path):
    def fail_halfway() -> None:
        with new_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("written")
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        fail_halfway()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_appeared_in_the_meantime_is_not_replaced(tmp_path):
    with pytest.raises(OutputExists), new_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()  # empty: a rename would take its place without a word
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_missing_parents_are_made_and_the_folder_is_readable_by_others(tmp_path):
    with new_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").touch()
    (tmp_path / "like").mkdir()
    assert (tmp_path / "a" / "b").stat().st_mode == (tmp_path / "like").stat().st_mode
