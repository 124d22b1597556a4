"""Commands that make a model from a trained network: fit, evaluate, report, export, import."""

import importlib
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from models.calibration.errors import CalibrationError, LeakedSplit
from models.calibration.frequencies import read_frequencies
from models.calibration.types import Calibration, LogitSet
from models.onnx_graph.answers import OutputKind, as_logits
from service.class_names import read_class_names
from service.cli.terminal import console, figures_table, say

Run = Annotated[Path, typer.Argument(help="The run folder that `equipoise train` wrote.", show_default=False)]


class MissingExtra(CalibrationError):
    """A command needs packages that the serving installation leaves out."""


def load_training(module: str) -> Any:
    """A module of `training`, imported late because it needs torch, or is slow to load. Raises: MissingExtra."""
    try:
        return importlib.import_module(f"training.{module}")
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"this command needs the package {error.name!r}, which serving does without. "
            "Install the extra: pip install 'equipoise[train]'."
        ) from error


def fit(
    run: Run,
    method: Annotated[
        Literal["choose", "closed-form", "bcts", "marc", "marc-paper", "temperature", "vector-scaling"],
        typer.Option(
            help="closed-form takes the training prior out; bcts and marc also fit every class on held-out images; "
            "choose takes the simplest of these that the held-out images support; marc-paper is MARC as published, on "
            "the training images seen through their augmentation (train with --augmented-passes). For comparison: "
            "temperature leaves the training prior in (under a uniform target it is the closed form), "
            "vector-scaling is marc without its pull to the closed form."
        ),
    ] = "choose",
) -> None:
    """Fit the post-hoc calibration of a trained run on its held-out images."""
    choice = load_training("runs").fit_run(run, method=method)
    say(choice.reason)
    _say_warnings(choice.calibration)
    say(f"Next: equipoise evaluate {run}, equipoise export {run} --out BUNDLE")


def evaluate(run: Run) -> None:
    """Show raw and debiased figures on the test images: accuracy by class size, calibration error, NLL."""
    console.print(figures_table(load_training("runs").evaluate_run(run)))


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.", show_default=False)],
    out: Annotated[Path, typer.Option(help="HTML file to write; a .json with all numbers goes beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """Put runs side by side: figures with intervals, paired differences, plots, in one HTML page."""
    load_training("report").write_report(folders, out)
    say(f"Wrote {out} and {out.with_suffix('.json')}.")


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
        Path,
        typer.Option(
            help="Class-frequency file (CSV, JSON, a split list, ...): training images a class.", show_default=False
        ),
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
    output_kind: Annotated[OutputKind, typer.Option(help="What the output and --logits hold.")] = "logits",
) -> None:
    """Turn any ONNX classifier, or just its logits, into a bundle."""
    class_names = read_class_names(_read(classes))
    frequencies = read_frequencies(_read(counts), class_names, role="training")
    manifest = load_training("onnx_import").import_onnx(
        model,
        out=out,
        name=name,
        class_names=class_names,
        class_counts=frequencies.counts,
        trained_with=trained_with,
        logits=None if logits is None else _labelled_logits(logits, output_kind),
        layout=layout,
        size=None if size is None else _numbers(size, "--size", "x", int, 2),
        mean=_numbers(mean, "--mean", ",", float, 3),
        std=_numbers(std, "--std", ",", float, 3),
        input_name=input_name,
        output_name=output_name,
        output_kind=output_kind,
    )
    if "chosen" in manifest.calibration.provenance:
        say(manifest.calibration.provenance["chosen"])
    _say_warnings(manifest.calibration)
    say(f"Wrote {out}. Next: equipoise serve {out}")


def _say_warnings(calibration: Calibration) -> None:
    for warning in calibration.provenance.get("warnings", []):
        say(f"warning: {warning}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read: {error.strerror}.") from error


def _labelled_logits(path: Path, kind: OutputKind) -> LogitSet:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            logits, labels = arrays["logits"], arrays["labels"]
            split = str(arrays["split"]) if "split" in arrays else "calibration"
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CalibrationError(f"{path} must be an .npz with logits (N, C) and labels (N,): {error}.") from error
    logits = as_logits(logits, path.name, kind)
    return LogitSet(logits=logits, labels=labels, split=_held_out(split, path), drawn=f"given at import ({path.name})")


def _held_out(split: str, path: Path) -> Literal["calibration"]:
    """What every split but that of the training is to an import. Raises: LeakedSplit."""
    if split == "train":
        raise LeakedSplit(f"{path.name} holds training logits, which the network has seen. Give held-out ones.")
    return "calibration"


def _numbers(text: str, option: str, separator: str, kind: type, count: int) -> tuple[Any, ...]:
    try:
        numbers = tuple(kind(part) for part in text.lower().split(separator))
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise typer.BadParameter(f"{count} numbers separated by {separator!r}; got {text!r}.", param_hint=option)
    return numbers
