"""Any ONNX classifier, or just its logits, as what a bundle holds. Needs onnx and onnxruntime, never torch."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from models.calibration.choose import choose
from models.calibration.errors import ShapeMismatch, UnknownTrainingRule
from models.calibration.manifest import InputSize, Manifest, check_class_names
from models.calibration.prior import Ledger, TrainedWith
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import LogitSet
from models.onnx_graph.answers import OutputKind
from models.onnx_graph.foreign import Layout, read_model, read_signature
from models.onnx_graph.versions import package_versions
from models.onnx_graph.wrap import Preprocessing, checked_difference, dry_run, wrapped


def imported(
    model: bytes | None,
    *,
    name: str,
    class_names: Sequence[str],
    class_counts: ArrayLike,
    trained_with: TrainedWith,
    mean: Sequence[float],
    std: Sequence[float],
    logits: LogitSet | None = None,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
    output_kind: OutputKind = "logits",
    source: str | None = None,
) -> tuple[Manifest, bytes | None]:
    """The manifest, without `files`, and the wrapped graph of a classifier that was made elsewhere.

    With labelled held-out `logits` the calibration is chosen by them (and r measured where training is `unknown`);
    without, it is the closed form at temperature 1.

    Args: model, None for one that is sent logits; class_counts `(C,)`, training images a class; mean and std of pixels
        in [0, 1]; layout, size (height, width), input_name and output_name, None where the graph tells; source, the
        file's name for the provenance.
    Raises: InvalidModel, naming the option that helps, or when the wrapped graph differs from the original;
        UnknownTrainingRule for `unknown` without logits; ShapeMismatch, EmptyClass, InvalidManifest.
    """
    check_class_names(tuple(class_names))
    ledger = _ledger(trained_with, class_counts, logits)
    _check_classes(len(class_names), ledger, logits)
    calibration = closed_form_without_data(ledger) if logits is None else choose(logits, ledger).calibration
    network, size_of_input, metrics = None, None, {}
    if model is not None:
        original = read_model(model)
        signature = read_signature(original, layout=layout, size=size, input_name=input_name, output_name=output_name)
        preprocessing = Preprocessing(mean, std)
        images, expected = dry_run(original, signature, preprocessing, output_kind, num_classes=len(class_names))
        network = wrapped(original, signature, preprocessing, output_kind, calibration)
        metrics["import_difference"] = checked_difference(network, images, expected)
        size_of_input = InputSize(height=signature.height, width=signature.width)
    manifest = Manifest(
        name=name,
        class_names=tuple(class_names),
        ledger=ledger,
        calibration=calibration,
        row_norms=np.ones(len(class_names)),  # unknown: MARC's penalty lies on the offset, so they change nothing
        input_size=size_of_input,
        metrics=metrics,
        provenance={
            "imported_from": source,
            "mean": list(mean),
            "std": list(std),
            "packages": package_versions(),
        },
    )
    return manifest, network


def _ledger(trained_with: TrainedWith, class_counts: ArrayLike, logits: LogitSet | None) -> Ledger:
    if trained_with != "unknown":
        return Ledger.by_rule(trained_with, class_counts)
    if logits is None:
        raise UnknownTrainingRule(
            "class counts alone do not tell what a classifier trained in an unknown way implies. Give the "
            "option logits, labelled held-out logits, so that it can be measured."
        )
    return Ledger.measured(logits, class_counts)


def _check_classes(num_classes: int, ledger: Ledger, logits: LogitSet | None) -> None:
    found = {"class counts": ledger.class_counts.size} | ({} if logits is None else {"logits": logits.num_classes})
    for what, count in found.items():
        if count != num_classes:
            raise ShapeMismatch(f"{what} must cover the {num_classes} class names; got {count}.")
