"""A run folder: what training leaves behind, and reading it back.

config.json               what was asked for, and by which revision of the code; written first
log.txt                   what happened when
training.pt               the last finished epoch, until the training is complete
run.json                  how it was made and the ledger; written last: with it the run is complete
curves.json               one row an epoch
splits.json               which items of the source each split holds
checkpoint.pt             the network
logits_calibration.npz, logits_test.npz, logits_train.npz (with augmented passes, for MARC's published fit)
feature_lengths_test.npy  the length of each test image's feature vector
test_images.npy           a few, for the parity check on export
calibration.json          once fitted
"""

import fcntl
import json
import pickle
import subprocess
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calibration.errors import CalibrationError
from models.calibration.manifest import calibration_from_json, ledger_from_json
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, LogitSet
from models.networks.classifier import Architecture, Classifier
from models.networks.nbn import NbnConfig
from training.bundle import OutputExists, unpack_logits

CONFIG_FILE, LOG_FILE, TRAINING_FILE, RUN_FILE = "config.json", "log.txt", "training.pt", "run.json"
CURVES_FILE, SPLITS_FILE, CHECKPOINT_FILE = "curves.json", "splits.json", "checkpoint.pt"
CALIBRATION_FILE, FEATURE_LENGTHS_FILE, TEST_IMAGES_FILE = (
    "calibration.json",
    "feature_lengths_test.npy",
    "test_images.npy",
)


class IncompleteRun(CalibrationError):
    """A folder that is not a run, or a run that lacks a step."""


class RunInUse(CalibrationError):
    """Another training writes to the folder."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """What a run folder says: `description` is run.json, `ledger` its ledger."""

    folder: Path
    description: dict[str, Any]
    ledger: Ledger
    calibration_set: LogitSet
    test_set: LogitSet

    @property
    def row_norms(self) -> list[float]:
        return list(self.description["row_norms"])

    @property
    def training(self) -> dict[str, Any]:
        """The configuration that it was trained with."""
        return dict(self.description["provenance"]["training"])


@contextmanager
def open_folder(out: Path, identity: str, config: dict[str, Any]) -> Iterator[bool]:
    """The folder of a training, new or to go on with, held against other processes.

    Yields: whether a training goes on here.
    Raises: OutputExists for a complete run, for another training and for a folder that is none; RunInUse.
    """
    if (out / RUN_FILE).exists():
        raise OutputExists(f"{out} holds a complete run and is not overwritten. Remove it, or choose another --out.")
    known = _read_config(out)
    same = known is not None and known.get("identity") == identity
    if not same:
        _refuse_foreign(out, known)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise CalibrationError(f"{out} cannot be written: {error.strerror}. Choose another --out.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunInUse(f"another training writes to {out}. Wait for it, or choose another --out.") from error
        write_json(out / CONFIG_FILE, {"identity": identity, **config})
        yield same and (out / TRAINING_FILE).exists()
    (out / ".lock").unlink(missing_ok=True)


def _refuse_foreign(out: Path, known: dict[str, Any] | None) -> None:
    """A folder may be taken over only from a training that has not finished an epoch."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputExists(f"{out} exists already and is not overwritten. Remove it, or choose another --out.")
    if known is not None and (out / TRAINING_FILE).exists():
        raise OutputExists(
            f"{out} holds an unfinished training with another configuration or other data. Give its options again to "
            "go on with it, or remove it, or choose another --out."
        )
    left = {CONFIG_FILE, LOG_FILE, ".lock"}
    if out.exists() and (known is None or any(each.name not in left for each in out.iterdir())):
        raise OutputExists(f"{out} exists already and is not overwritten. Remove it, or choose another --out.")


def _read_config(out: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((out / CONFIG_FILE).read_text()))
    except (OSError, ValueError):
        return None


def write_json(path: Path, document: Any) -> None:
    """As a whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False))
    partial.replace(path)


def log(folder: Path, text: str) -> None:
    """One more line, with the time, in the run's log."""
    with (folder / LOG_FILE).open("a") as file:
        file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S%z')} {text}\n")


def code_revision() -> str | None:
    """The git revision of this code, with `+` where files differ from it; None for an installed package."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision.stdout.strip() + ("+" if changed.stdout.strip() else "")


def read_run(folder: Path) -> Run:
    """Raises: IncompleteRun."""
    try:
        description = json.loads((folder / RUN_FILE).read_text())
        return Run(
            folder=folder,
            description=description,
            ledger=ledger_from_json(description["ledger"]),
            calibration_set=read_logits(folder, "calibration"),
            test_set=read_logits(folder, "test"),
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise IncompleteRun(
            f"{folder} is not a complete run folder: {error}. Make one with: equipoise train --out {folder}"
        ) from error


def read_calibration(folder: Path) -> Calibration:
    """Raises: IncompleteRun where the run was not fitted."""
    try:
        return calibration_from_json(json.loads((folder / CALIBRATION_FILE).read_text()))
    except FileNotFoundError as error:
        raise IncompleteRun(f"{folder} has no calibration yet. Fit one with: equipoise fit {folder}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IncompleteRun(
            f"{folder / CALIBRATION_FILE} cannot be read: {error}. Fit again with: equipoise fit {folder}"
        ) from error


def read_classifier(run: Run) -> Classifier:
    """The trained network, in evaluation mode on the CPU. Raises: IncompleteRun."""
    path = run.folder / CHECKPOINT_FILE
    try:
        architecture = architecture_from_json(run.training["architecture"])
        state = torch.load(path, map_location="cpu", weights_only=True)
        num_classes = len(run.description["class_names"])
        classifier = Classifier(architecture, num_classes, mean=state["mean"], std=state["std"])
        classifier.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise IncompleteRun(f"{path} cannot be read as this run's network: {error}. Train again.") from error
    return classifier.eval()


def architecture_from_json(document: dict[str, Any]) -> Architecture:
    return Architecture(**{**document, "nbn": NbnConfig(**document["nbn"])})


def read_logits(folder: Path, split: str) -> LogitSet:
    with (folder / f"logits_{split}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return unpack_logits(arrays)
