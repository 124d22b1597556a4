"""Any ONNX classifier, or just its logits, as a bundle on disk. Needs onnx and onnxruntime, never torch."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from numpy.typing import ArrayLike
from onnx import TensorProto
from onnx.checker import ValidationError
from onnx.external_data_helper import load_external_data_for_model

from models.calibration.manifest import Manifest
from models.calibration.prior import TrainedWith
from models.calibration.types import LogitSet
from models.onnx_graph.answers import OutputKind
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.foreign import Layout, external_tensors, parsed
from models.onnx_graph.graph import serialised
from models.onnx_graph.imported import imported
from training.bundle import write_bundle


def import_onnx(
    model_path: Path | None,
    *,
    out: Path,
    name: str,
    class_names: Sequence[str],
    class_counts: ArrayLike,
    trained_with: TrainedWith,
    logits: LogitSet | None = None,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
    input_name: str | None = None,
    output_name: str | None = None,
    output_kind: OutputKind = "logits",
) -> Manifest:
    """Write a bundle around a classifier that was made elsewhere.

    With labelled held-out `logits` the calibration is chosen by them (and r measured where training is `unknown`);
    without, it is the closed form at temperature 1.

    Args: model_path, None for a model that is sent logits; class_counts `(C,)`, training images a class; layout, size
        (height, width), input_name and output_name, None where the graph tells; mean and std of pixels in [0, 1].
    Raises: InvalidModel, naming the option that helps, or when the wrapped graph differs from the original;
        UnknownTrainingRule for `unknown` without logits; ShapeMismatch, EmptyClass, InvalidManifest, OutputExists.
    """
    manifest, network = imported(
        None if model_path is None else read_model_file(model_path),
        name=name,
        class_names=class_names,
        class_counts=class_counts,
        trained_with=trained_with,
        mean=mean,
        std=std,
        logits=logits,
        layout=layout,
        size=size,
        input_name=input_name,
        output_name=output_name,
        output_kind=output_kind,
        source=None if model_path is None else model_path.name,
    )
    return write_bundle(out, manifest, model=network, calibration_set=logits)


def read_model_file(path: Path) -> bytes:
    """An ONNX file as one, with the weights that it keeps in files beside it.

    Raises: InvalidModel for what is not ONNX, and for weights that are missing or lie outside of its folder.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidModel(f"{path} cannot be read as an ONNX model: {error}") from error
    model = parsed(data, str(path))
    outside = list(external_tensors(model))
    if not outside:
        return data
    for tensor in outside:
        _check_location(tensor, path.parent)
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, ValidationError) as error:
        raise InvalidModel(f"the weights beside {path} cannot be read: {error}") from error
    return serialised(model)


def _check_location(tensor: TensorProto, folder: Path) -> None:
    location = next((each.value for each in tensor.external_data if each.key == "location"), "")
    climbs = ".." in PurePosixPath(location).parts or ".." in PureWindowsPath(location).parts
    absolute = PurePosixPath(location).is_absolute() or PureWindowsPath(location).is_absolute()
    if climbs or absolute or not (folder / location).resolve().is_relative_to(folder.resolve()):
        raise InvalidModel(
            f"weights in other files must lie in the model's own folder; {tensor.name!r} points to {location!r}."
        )
    if not (folder / location).is_file():
        raise InvalidModel(f"the weights {tensor.name!r} should lie in {location!r} beside the model; it is missing.")
