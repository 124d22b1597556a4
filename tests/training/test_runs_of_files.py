"""Runs on images that stay in files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import runs
from training.augment import Augmentation, InvalidAugmentation


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Photographs of three classes, larger than what is kept in memory, no two alike; one file is damaged."""
    draw = np.random.default_rng(0)
    for split, counts in {"train": (12, 6, 3), "calibration": (3, 3, 3), "test": (4, 4, 4)}.items():
        for name, shade, count in zip(("ant", "bee", "cat"), (60, 120, 180), counts, strict=True):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = (shade + draw.integers(-40, 40, (90, 100, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (tmp_path / "data" / "train" / "ant" / "broken.png").write_bytes(b"not an image")
    return tmp_path / "data"


FILES = {"image_size": 72, "corrupt": "skip"}
pytestmark = pytest.mark.filterwarnings("ignore::training.data.LeftOut")  # of the damaged file


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_stay_in_files_are_trained_on_fitted_and_exported(image_folder, tmp_path, workers):
    options = {"parts": {"backbone": "small"}, "epochs": 2, "augmented_passes": 1, "data_options": FILES}
    folder = runs.train_run(
        str(image_folder),
        out=tmp_path / "run",
        workers=workers,
        batch_size=7,
        **options,
    )
    assert "left out, being no images: train/ant/broken.png" in (folder / "log.txt").read_text()
    run = runs.read_run(folder)
    assert run.training["augmentation"]["jitter"]  # files are cropped and scaled at random, whatever the backbone
    assert run.ledger.class_counts.tolist() == [12, 6, 3]
    assert run.description["class_names"] == ["ant", "bee", "cat"]
    assert run.description["provenance"]["skipped"] == ["train/ant/broken.png"]
    runs.fit_run(folder, method="closed-form")
    manifest = runs.export_run(folder, tmp_path / "bundle", name="insects")
    assert (manifest.input_size.height, manifest.input_size.width) == (72, 72)
    assert "of" in manifest.provenance["splits"]["train"]


def test_workers_change_nothing(image_folder, tmp_path):
    logits = []
    for workers in (0, 2):
        folder = runs.train_run(
            str(image_folder),
            out=tmp_path / f"run{workers}",
            workers=workers,
            parts={"backbone": "small"},
            epochs=2,
            batch_size=7,
            augmentation=Augmentation(flip=True),
            data_options=FILES,
        )
        logits.append(runs.read_run(folder).test_set.logits)
    np.testing.assert_array_equal(*logits)


def test_an_augmentation_that_files_cannot_take_is_refused(image_folder, tmp_path):
    with pytest.raises(InvalidAugmentation, match="flip and jitter only"):
        runs.train_run(
            str(image_folder),
            out=tmp_path / "run",
            parts={"backbone": "small"},
            augmentation=Augmentation(padding=4),
            data_options=FILES,
        )
    with pytest.raises(InvalidAugmentation, match="jitter is for images that stay in files"):
        runs.train_run("digits", out=tmp_path / "run", augmentation=Augmentation(jitter=True))
