"""The steps behind the commands, each on a run folder: train, fit, evaluate, export.

A run folder holds run.json (how it was made and the ledger), checkpoint.pt, logits_calibration.npz, logits_test.npz,
test_images.npy (a few, for the parity check on export) and, once fitted, calibration.json.
"""

import json
import pickle
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calibration.choose import Choice, choose, fit_named
from models.calibration.errors import CalibrationError
from models.calibration.manifest import (
    InputSize,
    Manifest,
    calibration_from_json,
    calibration_to_json,
    ledger_from_json,
    ledger_to_json,
)
from models.calibration.metrics import Metrics, evaluate
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, LogitSet
from models.networks.classifier import Classifier
from training.bundle import new_folder, pack_logits, package_versions, unpack_logits, write_bundle
from training.collect import collect
from training.data import load
from training.export import check_parity, to_onnx
from training.loop import Progress, config_for, train

RUN_FILE, CHECKPOINT_FILE, CALIBRATION_FILE = "run.json", "checkpoint.pt", "calibration.json"
TEST_IMAGES_FILE, TEST_IMAGES = "test_images.npy", 64


class IncompleteRun(CalibrationError):
    """A folder that is not a run, or a run that lacks a step."""


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


def train_run(
    source: str,
    *,
    out: Path,
    imbalance_ratio: float | None = None,
    progress: Progress | None = None,
    **config: Any,
) -> Path:
    """Train on `digits` or an .npz and write the run folder, complete or not at all.

    Args: config, fields of TrainConfig that differ from what the image size suggests.
    Raises: InvalidData, EmptyClass, OutputExists, TrainingDiverged.
    """
    with new_folder(out) as folder:
        data = load(source, imbalance_ratio)
        height, width = data.image_size
        train_config = config_for(height, width, **config)
        classifier = train(train_config, data, progress)
        calibration_set = collect(classifier, data.calibration, split="calibration", drawn=data.drawn)
        test_set = collect(classifier, data.test, split="test", drawn="the test images of the data")
        description = {
            "class_names": data.class_names,
            "input": {"height": height, "width": width},
            "ledger": ledger_to_json(Ledger.by_rule(train_config.loss, data.class_counts)),
            "row_norms": classifier.head.row_norms.double().tolist(),
            "provenance": {
                "data": data.name,
                "data_sha256": data.digest,
                "imbalance_ratio": data.imbalance_ratio,
                "training": asdict(train_config),
                "packages": package_versions(),
            },
        }
        (folder / RUN_FILE).write_text(json.dumps(description, indent=1, ensure_ascii=False))
        torch.save(classifier.cpu().state_dict(), folder / CHECKPOINT_FILE)
        np.save(
            folder / TEST_IMAGES_FILE, data.test.images[:: max(1, len(data.test.images) // TEST_IMAGES)][:TEST_IMAGES]
        )
        for split, logit_set in (("calibration", calibration_set), ("test", test_set)):
            (folder / f"logits_{split}.npz").write_bytes(pack_logits(logit_set))
    return out


def fit_run(folder: Path, *, method: str = "choose") -> Choice:
    """Fit the calibration on the run's held-out logits and write it beside them.

    Returns: the calibration with the reason for its method in words.
    Raises: IncompleteRun, and whatever the fit raises.
    """
    run = read_run(folder)
    if method == "choose":
        choice = choose(run.calibration_set, run.ledger, run.row_norms)
    else:
        calibration, report = fit_named(method, run.row_norms)(run.calibration_set, run.ledger)
        reason = (
            f"{method}: as asked, class-balanced NLL {report.objective:.4f} on the {report.num_items} fitted images."
        )
        choice = Choice(calibration=calibration, report=report, balanced_nll={}, reason=reason)
    document = calibration_to_json(choice.calibration) | {"reason": choice.reason}
    partial = folder / f".{CALIBRATION_FILE}.partial"
    partial.write_text(json.dumps(document, indent=1))
    partial.rename(folder / CALIBRATION_FILE)
    return choice


def evaluate_run(folder: Path) -> dict[str, Metrics]:
    """Figures on the test images, target uniform: `raw`, and `debiased` once the run is fitted.

    Raises: IncompleteRun.
    """
    run = read_run(folder)
    uniform = ClassPrior.uniform(run.test_set.num_classes)
    scores = {"raw": run.test_set.raw.scores()}
    if (folder / CALIBRATION_FILE).exists():
        scores["debiased"] = read_calibration(folder).debias(run.test_set.raw).adjust(uniform).scores()
    counts = run.ledger.class_counts
    return {
        name: evaluate(values, run.test_set.labels, class_counts=counts, target=uniform)
        for name, values in scores.items()
    }


def export_run(folder: Path, out: Path, *, name: str) -> Manifest:
    """Export the fitted run as a bundle.

    Raises: IncompleteRun, OutputExists, ParityError.
    """
    run, calibration = read_run(folder), read_calibration(folder)
    size = InputSize(**run.description["input"])
    classifier = read_classifier(run)
    model = to_onnx(classifier, calibration, height=size.height, width=size.width)
    parity = check_parity(model, classifier, np.load(folder / TEST_IMAGES_FILE))
    figures = {key: asdict(value) for key, value in evaluate_run(folder).items()}
    manifest = Manifest(
        name=name,
        class_names=tuple(run.description["class_names"]),
        ledger=run.ledger,
        calibration=calibration,
        row_norms=np.array(run.row_norms),
        input_size=size,
        metrics={"test": figures, "onnx_parity": parity},
        provenance=run.description["provenance"],
    )
    return write_bundle(out, manifest, model=model, calibration_set=run.calibration_set)


def read_run(folder: Path) -> Run:
    """Raises: IncompleteRun."""
    try:
        description = json.loads((folder / RUN_FILE).read_text())
        return Run(
            folder=folder,
            description=description,
            ledger=ledger_from_json(description["ledger"]),
            calibration_set=_read_logits(folder, "calibration"),
            test_set=_read_logits(folder, "test"),
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
    backbone = run.description["provenance"]["training"]["backbone"]
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        classifier = Classifier(backbone, len(run.description["class_names"]), mean=state["mean"], std=state["std"])
        classifier.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise IncompleteRun(f"{path} cannot be read as this run's network: {error}. Train again.") from error
    return classifier.eval()


def _read_logits(folder: Path, split: str) -> LogitSet:
    with (folder / f"logits_{split}.npz").open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return unpack_logits(arrays)
