"""Any ONNX classifier, or none at all, becomes a bundle: needs onnx and onnxruntime, and not torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, compose, helper, numpy_helper

from models.calibration.choose import choose
from models.calibration.errors import CalibrationError
from models.calibration.manifest import InputSize, Manifest
from models.calibration.prior import Ledger, TrainedWith
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import IntArray, LogitSet, RawLogits
from models.images import UInt8Array
from training.bundle import package_versions, write_bundle
from training.onnx_graph import IMAGES, LOGITS, quiet_session_options, standardise

MAX_DIFFERENCE = 1e-4  # relative to the largest centred logit, or absolute below 1
FLOOR = np.finfo(np.float32).tiny  # a probability of 0 has no logarithm
PREFIX = "imported/"


class InvalidModel(CalibrationError):
    """An ONNX file that cannot be turned into the standard form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """What the network expects: pixels in [0, 1] less `mean`, over `std`, axes in `layout`; what its output holds."""

    layout: Literal["nchw", "nhwc"]
    size: InputSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    output_kind: Literal["logits", "probabilities"]

    def __post_init__(self) -> None:
        if not all(np.isfinite(self.mean)) or not all(value > 0 and np.isfinite(value) for value in self.std):
            raise InvalidModel(f"--mean is finite and --std positive; got {self.mean} and {self.std}.")


def import_onnx(
    model_path: Path | None,
    *,
    out: Path,
    name: str,
    class_names: Sequence[str],
    class_counts: IntArray,
    trained_with: TrainedWith,
    logits: LogitSet | None = None,
    layout: Literal["nchw", "nhwc"] | None = None,
    size: tuple[int, int] | None = None,
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
    std: tuple[float, float, float] = (0.229, 0.224, 0.225),
    input_name: str | None = None,
    output_name: str | None = None,
    output_kind: Literal["logits", "probabilities"] = "logits",
) -> Manifest:
    """Wrap a classifier into the standard graph, calibrate it on `logits` where given, and write the bundle.

    Args: model_path, None for a model that is sent logits; class_counts `(C,)`, training images; logits, labelled and
        held out, needed for `unknown`, whose implied prior is measured on them.
    Raises: InvalidModel where the graph does not say enough, or where the wrapped graph differs from the original.
    """
    ledger = (
        Ledger.measured(logits, class_counts)
        if trained_with == "unknown" and logits is not None
        else Ledger.by_rule(trained_with, class_counts)
    )
    calibration = choose(logits, ledger).calibration if logits is not None else closed_form_without_data(ledger)
    graph, input_size, metrics = None, None, {}
    if model_path is not None:
        network = _load(model_path)
        source = _input(network, input_name)
        target = _output(network, output_name)
        known = _layout_and_size(network, source, layout, size)
        preprocessing = Preprocessing(layout=known[0], size=known[1], mean=mean, std=std, output_kind=output_kind)
        graph = standardise(_wrap(network, source, target, preprocessing), "raw_logits", calibration)
        input_size = preprocessing.size
        difference = _dry_run(model_path, graph, source, target, preprocessing, len(class_names))
        metrics = {"import_difference": difference}
    manifest = Manifest(
        name=name,
        class_names=tuple(class_names),
        ledger=ledger,
        calibration=calibration,
        row_norms=np.ones(len(class_names)),
        input_size=input_size,
        metrics=metrics,
        provenance={
            "imported_from": None if model_path is None else model_path.name,
            "mean": list(mean),
            "std": list(std),
            "packages": package_versions(),
        },
    )
    return write_bundle(out, manifest, model=graph, calibration_set=logits)


def _load(path: Path) -> ModelProto:
    """The model with its weights, also those that lie in files beside it; never outside its folder."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, file and checker errors have no common base
        raise InvalidModel(f"{path} cannot be read as an ONNX model: {error}") from error
    return model


def _input(model: ModelProto, name: str | None) -> str:
    weights = {weight.name for weight in model.graph.initializer}
    names = [value.name for value in model.graph.input if value.name not in weights]
    return _pick(names, name, "input", "--input")


def _output(model: ModelProto, name: str | None) -> str:
    return _pick([value.name for value in model.graph.output], name, "output", "--output")


def _pick(names: list[str], name: str | None, what: str, option: str) -> str:
    if name is None and len(names) == 1:
        return names[0]
    if name in names:
        return name
    came = "which is it" if name is None else f"{name!r} is none of them"
    raise InvalidModel(f"the graph's {what}s are {', '.join(names)}; {came}? Name one with {option}.")


def _layout_and_size(
    model: ModelProto, source: str, layout: Literal["nchw", "nhwc"] | None, size: tuple[int, int] | None
) -> tuple[Literal["nchw", "nhwc"], InputSize]:
    tensor = next(value for value in model.graph.input if value.name == source).type.tensor_type
    if tensor.elem_type != TensorProto.FLOAT:
        raise InvalidModel(
            f"the input {source!r} must be float32; it is {TensorProto.DataType.Name(tensor.elem_type)}."
        )
    dims = [dim.dim_value for dim in tensor.shape.dim]  # 0 where the graph leaves it open
    if len(dims) != 4:
        raise InvalidModel(f"the input {source!r} must have four axes, images of three channels; it has {len(dims)}.")
    if layout is None:
        if (dims[1] == 3) == (dims[3] == 3):
            raise InvalidModel(
                f"the input {source!r} has shape {dims}, which does not tell the channels. Say --layout."
            )
        layout = "nchw" if dims[1] == 3 else "nhwc"
    inside = dims[2:] if layout == "nchw" else dims[1:3]
    if size is None and not all(inside):
        raise InvalidModel(f"the input {source!r} has shape {dims}, which leaves the size open. Say --size HxW.")
    height, width = size or inside
    if any(given and given != wanted for given, wanted in zip(inside, (height, width), strict=True)):
        raise InvalidModel(f"--size is {height}x{width}, but the graph takes {inside[0]}x{inside[1]}.")
    return layout, InputSize(height=height, width=width)


def _wrap(model: ModelProto, source: str, target: str, preprocessing: Preprocessing) -> ModelProto:
    """uint8 NHWC in, `raw_logits (N, C)` out; the network's own names get a prefix, so that none can collide."""
    model = compose.add_prefix(model, PREFIX)
    graph = model.graph
    _open_batch(model, PREFIX + source)
    del graph.value_info[:]  # shapes inferred for a fixed batch would contradict the open one
    constants = {"max_pixel": [255.0], "mean": preprocessing.mean, "std": preprocessing.std, "floor": [FLOOR]}
    graph.initializer.extend(numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items())
    before = [
        helper.make_node("Cast", [IMAGES], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "max_pixel"], ["unit_pixels"]),
        helper.make_node("Sub", ["unit_pixels", "mean"], ["centred_pixels"]),
        helper.make_node("Div", ["centred_pixels", "std"], ["normalised"]),
        helper.make_node("Transpose", ["normalised"], [PREFIX + source], perm=[0, 3, 1, 2])
        if preprocessing.layout == "nchw"
        else helper.make_node("Identity", ["normalised"], [PREFIX + source]),
    ]
    after = [helper.make_node("Flatten", [PREFIX + target], ["flat"], axis=1)]
    if preprocessing.output_kind == "probabilities":
        after += [
            helper.make_node("Max", ["flat", "floor"], ["floored"]),
            helper.make_node("Log", ["floored"], ["raw_logits"]),
        ]
    else:
        after.append(helper.make_node("Identity", ["flat"], ["raw_logits"]))
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    rest = [value for value in graph.input if value.name != PREFIX + source]
    del graph.input[:]
    shape = ["N", preprocessing.size.height, preprocessing.size.width, 3]
    graph.input.extend([helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, shape), *rest])
    model.ir_version = max(model.ir_version, 4)  # from 4 on, an initialiser may be an input too
    return model


def _open_batch(model: ModelProto, source: str) -> None:
    for value in (*(v for v in model.graph.input if v.name == source), *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "N"


def _dry_run(
    path: Path, wrapped: bytes, source: str, target: str, preprocessing: Preprocessing, num_classes: int
) -> float:
    """Largest difference between the wrapped graph and the original, fed by hand, on random images of one and of two.

    Raises: InvalidModel above the tolerance, for a wrong number of classes, or where the wrapped graph does not run.
    """
    shape = (2, preprocessing.size.height, preprocessing.size.width, 3)
    images = np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)
    original = np.concatenate([_run_original(path, images[i : i + 1], source, target, preprocessing) for i in (0, 1)])
    if original.shape != (2, num_classes):
        raise InvalidModel(f"there are {num_classes} class names, but the output {target!r} has {original.shape[1]}.")
    try:
        session = ort.InferenceSession(wrapped, quiet_session_options(), providers=["CPUExecutionProvider"])
        (ours,) = session.run([LOGITS], {IMAGES: images})
    except Exception as error:  # onnxruntime's errors have no common base
        raise InvalidModel(
            f"the graph does not run on two images at once: {error} Export it with a dynamic batch axis."
        ) from error
    expected = RawLogits(original).values
    difference = float(np.abs(ours - expected).max() / max(1.0, np.abs(expected).max()))
    if not difference <= MAX_DIFFERENCE:
        raise InvalidModel(
            f"the wrapped graph differs from the original by {difference:g} on the same images, at most "
            f"{MAX_DIFFERENCE:g} is allowed. Nothing was written."
        )
    return difference


def _run_original(
    path: Path, images: UInt8Array, source: str, target: str, preprocessing: Preprocessing
) -> NDArray[np.float64]:
    pixels = (images.astype(np.float32) / 255 - np.float32(preprocessing.mean)) / np.float32(preprocessing.std)
    if preprocessing.layout == "nchw":
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    try:
        session = ort.InferenceSession(path, quiet_session_options(), providers=["CPUExecutionProvider"])
        (output,) = session.run([target], {source: pixels.astype(np.float32)})
    except Exception as error:  # onnxruntime's errors have no common base
        raise InvalidModel(f"{path} does not run on an image of {pixels.shape}: {error}") from error
    flat = output.reshape(len(images), -1).astype(np.float64)
    return np.log(np.maximum(flat, FLOOR)) if preprocessing.output_kind == "probabilities" else flat
