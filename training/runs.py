"""The steps behind the commands, each on a run folder: train, fit, evaluate, export."""

import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.calibration.choose import Choice, choose, fit_named, with_warnings
from models.calibration.manifest import InputSize, Manifest, calibration_to_json, ledger_to_json
from models.calibration.marc_paper import METHOD as MARC_PAPER
from models.calibration.marc_paper import fit_paper
from models.calibration.metrics import Metrics, evaluate
from models.calibration.packing import pack_logits
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, FitReport, LogitSet
from models.networks.classifier import Classifier, folded
from models.onnx_graph.versions import package_versions
from training import checkpoint
from training.bundle import OutputExists, write_bundle
from training.collect import collect, collect_augmented, logits_and_strengths, pixels_of, some_images
from training.config import InvalidConfig, TrainConfig, config_for
from training.data import DataSplits, ImageFiles, load
from training.decoupled import train_head
from training.export import check_parity, to_onnx
from training.feed import feed_for
from training.loop import Progress, check_possible, new_accelerator, new_classifier, train
from training.run_folder import (
    CALIBRATION_FILE,
    CHECKPOINT_FILE,
    CURVES_FILE,
    FEATURE_LENGTHS_FILE,
    RUN_FILE,
    SPLITS_FILE,
    TEST_IMAGES_FILE,
    TRAINING_FILE,
    IncompleteRun,
    Run,
    code_revision,
    log,
    open_folder,
    read_calibration,
    read_classifier,
    read_logits,
    read_run,
    write_json,
)

TEST_IMAGES = 64


def train_run(
    source: str,
    *,
    out: Path,
    imbalance_ratio: float | None = None,
    data_options: Mapping[str, Any] | None = None,
    workers: int = 0,
    augmented_passes: int = 0,
    first_stage: Path | None = None,
    progress: Progress | None = None,
    config: TrainConfig | None = None,
    **changes: Any,
) -> Path:
    """Train and write the run folder; a training that was killed goes on where the same call finds it again.

    Args: source, imbalance_ratio and data_options, see `training.data.load`. workers, processes that decode images
        which stay in files. augmented_passes, how often the training images are looked at through their augmentation
        afterwards, for MARC's published fit. first_stage, a complete run with the same first stage, for a decoupled
        configuration. config and changes, see `training.config.config_for`.
    Raises: InvalidData, InvalidConfig, EmptyClass, OutputExists, RunInUse, TrainingDiverged, IncompleteRun.
    """
    if (out / RUN_FILE).exists():
        raise OutputExists(f"{out} holds a complete run and is not overwritten. Remove it, or choose another --out.")
    data = load(source, imbalance_ratio, **(data_options or {}))
    in_files = isinstance(data.train, ImageFiles)
    config = config_for(*data.image_size, base=config, in_files=in_files, **changes)
    check_possible(config, data, new_accelerator().num_processes)
    if augmented_passes < 0:
        raise InvalidConfig(f"augmented_passes is a number of passes, at least 0; got {augmented_passes}.")
    if first_stage is not None and config.decoupled is None:
        raise InvalidConfig(
            f"{first_stage} can be the first stage of a training in two; this one has a single stage. Leave the first "
            "stage out, or choose a recipe of two stages, such as cifar100_lt_r100_balms."
        )
    identity = checkpoint.identity_of(config, data)
    classifier = new_classifier(config, data)
    if not new_accelerator().is_main_process:  # torchrun's others take their share of the batches and write nothing
        _first_stage(config, data, classifier, first_stage, out, identity, workers, None)
        return out
    asked = {"data": data.name, "training": asdict(config), "code": code_revision()}
    with open_folder(out, identity, asked) as goes_on:
        log(out, "going on from the last finished epoch" if goes_on else f"training on {data.name}")
        if data.skipped:
            log(out, f"left out, being no images: {', '.join(data.skipped)}")
        curves = _first_stage(config, data, classifier, first_stage, out, identity, workers, progress)
        # no workers: the sampler of a second stage must not be asked ahead
        feed = feed_for(data.train, config.augmentation, classifier.mean.device)
        rates = None
        if config.decoupled is not None:
            log(out, f"second stage, {config.decoupled.sampler} sampler")
            second = train_head(config, classifier, feed, data.train.labels, data.class_counts)
            rates = second.rates
            write_json(out / "second_stage.json", {"losses": second.losses, "rates": rates.tolist()})
        log(out, "collecting logits")
        _write_results(out, data, classifier, curves)
        if augmented_passes:
            seen = collect_augmented(
                classifier, feed, data.train, passes=augmented_passes, seed=config.seed, precision=config.precision
            )
            (out / "logits_train.npz").write_bytes(pack_logits(seen))
        _finish(out, config, data, classifier, identity, rates)
        log(out, "complete")
    return out


def _first_stage(
    config: TrainConfig,
    data: DataSplits,
    classifier: Classifier,
    first_stage: Path | None,
    out: Path,
    identity: str,
    workers: int,
    progress: Progress | None,
) -> list[dict[str, float]]:
    """Train the whole network, or take it from a run that did. Returns: the curves."""
    if first_stage is None:
        feed = feed_for(data.train, config.augmentation, new_accelerator().device, workers=workers)
        return train(
            config,
            data,
            feed,
            classifier,
            progress=_logged(out, progress),
            save_to=out / TRAINING_FILE,
            identity=identity,
        )
    run = read_run(first_stage)
    if run.description["identity"] != identity:
        raise IncompleteRun(
            f"{first_stage} was trained with another first stage (configuration, seed or data) than this one asks for. "
            "Leave it out, and the first stage is trained here."
        )
    classifier.load_state_dict(read_classifier(run).state_dict())
    classifier.to(new_accelerator().device, memory_format=torch.channels_last)
    return []


def _logged(out: Path, progress: Progress | None) -> Progress:
    def tell(epoch: int, epochs: int, loss: float) -> None:
        log(out, f"epoch {epoch} of {epochs}, loss {loss:.4f}")
        if progress is not None:
            progress(epoch, epochs, loss)

    return tell


def _write_results(
    out: Path,
    data: DataSplits,
    classifier: Classifier,
    curves: list[dict[str, float]],
) -> None:
    write_json(out / CURVES_FILE, curves)
    write_json(out / SPLITS_FILE, data.items)
    calibration_set = collect(classifier, data.calibration, split="calibration", drawn=data.drawn)
    logits, lengths = logits_and_strengths(classifier, pixels_of(data.test))
    test_set = LogitSet(logits=logits, labels=data.test.labels, split="test", drawn="the test images of the data")
    for split, logit_set in (("calibration", calibration_set), ("test", test_set)):
        (out / f"logits_{split}.npz").write_bytes(pack_logits(logit_set))
    np.save(out / FEATURE_LENGTHS_FILE, lengths)
    np.save(out / TEST_IMAGES_FILE, some_images(data.test, TEST_IMAGES))


def _finish(
    out: Path,
    config: TrainConfig,
    data: DataSplits,
    classifier: Classifier,
    identity: str,
    rates: torch.Tensor | None,
) -> None:
    """The network and, last, run.json: with it the run is complete."""
    torch.save(classifier.cpu().state_dict(), out / CHECKPOINT_FILE)
    ledger = ledger_of(config, data, rates, read_logits(out, "calibration"))
    height, width = data.image_size
    description = {
        "class_names": data.class_names,
        "input": {"height": height, "width": width},
        "ledger": ledger_to_json(ledger),
        "row_norms": classifier.head.row_norms.double().tolist(),
        "identity": identity,
        "provenance": {
            "data": data.name,
            "data_sha256": data.digest,
            "test_sha256": data.test_digest,
            "skipped": list(data.skipped),
            "splits": data.items,
            "imbalance_ratio": data.imbalance_ratio,
            "training": asdict(config),
            "code": code_revision(),
            "packages": package_versions(),
        },
    }
    write_json(out / RUN_FILE, description)
    (out / TRAINING_FILE).unlink(missing_ok=True)


def ledger_of(config: TrainConfig, data: DataSplits, rates: torch.Tensor | None, calibration_set: LogitSet) -> Ledger:
    """The prior that the raw logits imply: by rule for cross-entropy, Balanced Softmax and the logit-adjusted loss on a
    linear head; measured on the held-out logits for everything that bends the rule (CIBL, a cosine or rectified head,
    the Meta Sampler, whose rates change while the head is trained)."""
    counts = data.class_counts
    if config.decoupled is not None:
        if config.decoupled.sampler == "instance":
            return Ledger.by_rule("balanced-softmax", counts)
        assert rates is not None
        return Ledger.by_rule("meta-sampler", counts, rates=rates.double().numpy()).measured_on(calibration_set)
    ledger = Ledger.by_rule(config.loss, counts, tau=config.tau)
    bent = config.cibl is not None or config.architecture.head == "cosine" or config.architecture.rectify
    return ledger.measured_on(calibration_set) if bent else ledger


def fit_run(folder: Path, *, method: str = "choose") -> Choice:
    """Fit the calibration on the run's held-out logits and write it beside them.

    Returns: the calibration with the reason for its method in words.
    Raises: IncompleteRun, and whatever the fit raises.
    """
    run = read_run(folder)
    if method == "choose":
        choice = choose(run.calibration_set, run.ledger, run.row_norms)
    else:
        calibration, report = _fit_as_asked(run, method)
        reason = f"{method}: as asked; {report.num_items} rows fitted to an objective of {report.objective:.4f} nats."
        choice = Choice(calibration=with_warnings(calibration, report), report=report, balanced_nll={}, reason=reason)
    document = calibration_to_json(choice.calibration) | {"reason": choice.reason}
    write_json(folder / CALIBRATION_FILE, document)
    return choice


def _fit_as_asked(run: Run, method: str) -> tuple[Calibration, FitReport]:
    if method != MARC_PAPER:
        return fit_named(method, run.row_norms)(run.calibration_set, run.ledger)
    try:
        seen = read_logits(run.folder, "train")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise IncompleteRun(
            f"{run.folder} has no logits of its training images, which MARC's published fit needs: {error}. Train with "
            "--augmented-passes 10, or fit --method marc on held-out images."
        ) from error
    return fit_paper(seen, run.ledger.class_counts, run.row_norms, held_out=run.calibration_set)


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
    model = to_onnx(folded(classifier), calibration, height=size.height, width=size.width)
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
