"""The whole way with ResNet-32 on real 32-pixel images: one epoch on a part of CIFAR-100-LT."""

import os
from pathlib import Path

import numpy as np
import pytest

from tests.needs import missing
from training import runs
from training.run_folder import read_run


@pytest.fixture(scope="module")
def part_of_cifar(tmp_path_factory) -> Path:
    """The five largest and the five smallest classes, so that many and few are there."""
    source = Path(os.environ.get("EQUIPOISE_DATA", ".")) / "cifar100_lt_ir100.npz"
    if not source.is_file():
        missing("cifar", "EQUIPOISE_DATA names no folder with cifar100_lt_ir100.npz")
    classes = np.r_[:5, 95:100]
    with np.load(source, allow_pickle=False) as arrays:
        part = {"class_names": arrays["class_names"][classes]}
        for split, limit in (("train", 200), ("test", 30)):
            labels = arrays[f"y_{split}"]
            rows = np.concatenate([np.flatnonzero(labels == each)[:limit] for each in classes])
            part[f"x_{split}"] = arrays[f"x_{split}"][rows]
            part[f"y_{split}"] = np.searchsorted(classes, labels[rows])
    path = tmp_path_factory.mktemp("data") / "part.npz"
    np.savez(path, **part)
    return path


def test_resnet32_is_trained_fitted_exported_and_gives_torchs_logits(part_of_cifar, tmp_path):
    run = runs.train_run(str(part_of_cifar), out=tmp_path / "run", epochs=1)
    choice = runs.fit_run(run)
    manifest = runs.export_run(run, tmp_path / "bundle", name="cifar")
    assert manifest.provenance["training"]["architecture"]["backbone"] == "resnet32"
    assert (manifest.input_size.height, manifest.input_size.width) == (32, 32)
    largest = np.abs(read_run(run).test_set.logits).max()
    assert manifest.metrics["onnx_parity"] <= 1e-4 * max(1.0, largest)
    assert manifest.ledger.class_counts.min() >= 4  # of 5 images, one is held out
    assert choice.calibration.method == "closed-form"  # one held-out image of a rare class carries no more
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "model.onnx",
        "manifest.json",
        "calibration_set.npz",
    }
