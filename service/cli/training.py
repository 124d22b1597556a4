"""Commands that make a model: train, fit, evaluate, export, import."""

import importlib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from models.calibration.errors import CalibrationError
from models.calibration.frequencies import read_frequencies
from models.calibration.types import LogitSet
from service.cli.terminal import EpochsBar, console, figures_table, say

Run = Annotated[Path, typer.Argument(help="The run folder that `equipoise train` wrote.", show_default=False)]


class MissingExtra(CalibrationError):
    """A command needs packages that the serving installation leaves out."""


def load_training(module: str) -> Any:
    """A module of `training`, imported late because it needs torch or onnx. Raises: MissingExtra."""
    try:
        return importlib.import_module(f"training.{module}")
    except ModuleNotFoundError as error:
        extra = "onnx" if module == "onnx_import" else "train"
        raise MissingExtra(
            f"this command needs the package {error.name!r}, which serving does without. "
            f"Install the extra: pip install 'equipoise[{extra}]'."
        ) from error


def train(
    out: Annotated[Path, typer.Option(help="Folder to write the run to; it must not exist yet.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            help="`digits` (the 8x8 digits that scikit-learn ships), or a .npz file with x_train, y_train, x_test, "
            "y_test and, if you like, x_holdout, y_holdout and class_names. Images are uint8 (N, H, W, 3).",
            show_default="digits, or the recipe's",
        ),
    ] = None,
    loss: Annotated[
        Literal["cross-entropy", "balanced-softmax"] | None,
        typer.Option(help="What the network is trained with.", show_default="cross-entropy, or the recipe's"),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="A training by name, with its data set (unless --data names other data); see `equipoise recipes`.",
            show_default=False,
        ),
    ] = None,
    imbalance_ratio: Annotated[
        float | None,
        typer.Option(
            help="Cut the training images to a long tail with this ratio of the largest to the smallest class. "
            "Without it: 50 for digits, an .npz as it is.",
            show_default=False,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", show_default="by image size")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="by image size")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Largest learning rate.", show_default="by image size")
    ] = None,
    augmented_passes: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Look at the training images so many times through their augmentation afterwards, for "
            "`equipoise fit --method marc-paper`.",
            show_default="0, or the recipe's",
        ),
    ] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option(help="A complete run whose network a two-stage recipe starts from, instead of training it anew."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same network on the same machine.")] = 0,
) -> None:
    """Train a classifier and write a run folder (network, logits of held-out images, how it was made).

    The same command again goes on with a training that was stopped.
    """
    runs, recipes = load_training("runs"), load_training("recipes")
    chosen = {"loss": loss, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    changes = {name: value for name, value in chosen.items() if value is not None}
    known = None if recipe is None else recipes.recipe(recipe)
    if known is not None:
        changes = {"config": replace(known.config, **changes)}
        imbalance_ratio = known.imbalance_ratio if data is None and imbalance_ratio is None else imbalance_ratio
        data, augmented_passes = (
            data or known.data,
            known.augmented_passes if augmented_passes is None else augmented_passes,
        )
    with EpochsBar(f"training {recipe or 'with ' + (loss or 'cross-entropy')}") as progress:
        runs.train_run(
            data or "digits",
            out=out,
            imbalance_ratio=imbalance_ratio,
            augmented_passes=augmented_passes or 0,
            first_stage=first_stage,
            progress=progress,
            **changes,
        )
    say(f"Trained. Next: equipoise fit {out}")


def recipes() -> None:
    """List the trainings that have a name: those of the papers, and ours."""
    for each in load_training("recipes").recipes():
        config = each.config
        network = [config.architecture.backbone]
        network += ["NBN"] if config.architecture.norm == "nbn" else []
        network += ["logit rectification"] if config.architecture.rectify else []
        network += [f"{config.architecture.head} head"]
        loss = config.loss + (" and CIBL" if config.cibl else "") + (", then Meta Sampler" if config.decoupled else "")
        data = each.data + (f" ratio {each.imbalance_ratio:g}" if each.imbalance_ratio else "")
        budget = f"{config.epochs} epochs of batch {config.batch_size}"
        say(f"{each.name}\n    {data}; {', '.join(network)}; {loss}; {budget}")
        say(f"    after {each.source}{'' if each.tried else '; not run by this project'}")


def fit(
    run: Run,
    method: Annotated[
        Literal["choose", "closed-form", "bcts", "marc", "marc-paper"],
        typer.Option(
            help="closed-form takes the training prior out; bcts and marc also fit every class on held-out images; "
            "choose takes the simplest of these that the held-out images support; marc-paper is MARC as published, on "
            "the training images seen through their augmentation (train with --augmented-passes)."
        ),
    ] = "choose",
) -> None:
    """Fit the post-hoc calibration of a trained run on its held-out images."""
    say(load_training("runs").fit_run(run, method=method).reason)
    say(f"Next: equipoise evaluate {run}, equipoise export {run} --out BUNDLE")


def evaluate(run: Run) -> None:
    """Show raw and debiased figures on the test images: accuracy by class size, calibration error, NLL."""
    console.print(figures_table(load_training("runs").evaluate_run(run)))


def export(
    run: Run,
    out: Annotated[Path, typer.Option(help="Bundle folder to write; it must not exist yet.", show_default=False)],
    name: Annotated[
        str | None, typer.Option(help="Name of the model in the service.", show_default="the bundle folder's")
    ] = None,
) -> None:
    """Export a fitted run as a bundle: ONNX graph, manifest, calibration set."""
    manifest = load_training("runs").export_run(run, out, name=name or out.name)
    say(f"Wrote {out} (ONNX and torch differ by {manifest.metrics['onnx_parity']:.1e} at most).")
    say(f"Next: equipoise serve {out}")


def import_model(
    name: Annotated[str, typer.Option(help="Name of the model in the service.", show_default=False)],
    classes: Annotated[Path, typer.Option(help="Text file, one class name a line, in order.", show_default=False)],
    counts: Annotated[
        Path, typer.Option(help="Class-frequency file (CSV or JSON): training images a class.", show_default=False)
    ],
    trained_with: Annotated[
        Literal["cross-entropy", "balanced-softmax", "balanced-sampling", "unknown"],
        typer.Option(help="How it was trained; counts alone do not tell. unknown needs --logits.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Bundle folder to write; it must not exist yet.", show_default=False)],
    model: Annotated[
        Path | None, typer.Argument(help="The .onnx file; leave it out for a model that is sent logits.")
    ] = None,
    logits: Annotated[
        Path | None,
        typer.Option(help="Labelled held-out logits to calibrate on: .npz with logits (N, C) and labels (N,)."),
    ] = None,
    layout: Annotated[
        Literal["nchw", "nhwc"] | None, typer.Option(help="Order of the input's axes.", show_default="from the graph")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="Input size HxW, such as 224x224.", show_default="from the graph")
    ] = None,
    mean: Annotated[str, typer.Option(help="Mean of each channel, for pixels in [0, 1].")] = "0.485,0.456,0.406",
    std: Annotated[str, typer.Option(help="Standard deviation of each channel.")] = "0.229,0.224,0.225",
    input_name: Annotated[
        str | None, typer.Option("--input", help="Name of the graph's input.", show_default="the only one")
    ] = None,
    output_name: Annotated[
        str | None, typer.Option("--output", help="Name of the graph's output.", show_default="the only one")
    ] = None,
    output_kind: Annotated[Literal["logits", "probabilities"], typer.Option(help="What the output holds.")] = "logits",
) -> None:
    """Turn any ONNX classifier, or just its logits, into a bundle."""
    class_names = [line.strip() for line in _read(classes).decode().splitlines() if line.strip()]
    frequencies = read_frequencies(_read(counts), class_names, role="training")
    load_training("onnx_import").import_onnx(
        model,
        out=out,
        name=name,
        class_names=class_names,
        class_counts=frequencies.counts,
        trained_with=trained_with,
        logits=None if logits is None else _labelled_logits(logits),
        layout=layout,
        size=None if size is None else _numbers(size, "--size", "x", int, 2),
        mean=_numbers(mean, "--mean", ",", float, 3),
        std=_numbers(std, "--std", ",", float, 3),
        input_name=input_name,
        output_name=output_name,
        output_kind=output_kind,
    )
    say(f"Wrote {out}. Next: equipoise serve {out}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}.") from error


def _labelled_logits(path: Path) -> LogitSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} must be an .npz with logits (N, C) and labels (N,): {error}.") from error
    return LogitSet(logits=logits, labels=labels, split="calibration", drawn=f"given at import ({path.name})")


def _numbers(text: str, option: str, separator: str, kind: type, count: int) -> tuple[Any, ...]:
    try:
        numbers = tuple(kind(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise typer.BadParameter(f"{count} numbers separated by {separator!r}; got {text!r}.", param_hint=option)
    return numbers
