"""Reading somebody's ONNX file: all of it in memory, and what its graph tells about itself. No torch here."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, get_args

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from training.onnx_graph import InvalidModel, graphs_of, opset_of

Layout = Literal["nchw", "nhwc"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
OLDEST_OPSET = 8  # before it, not all of the operators around the network broadcast
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """Which tensor takes the images and in what form, and which one holds the answer.

    `element_type` is ONNX's number of the input's type; `fixed_batch`, the batch size that the graph insists on.
    """

    input_name: str
    output_name: str
    layout: Layout
    height: int
    width: int
    element_type: int
    fixed_batch: int | None


def read_model(path: Path) -> ModelProto:
    """An ONNX file with its weights, also those that it keeps in files beside it.

    Raises: InvalidModel for what is not ONNX, and for weights that are missing or lie outside of its folder.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, DecodeError, ValueError) as error:
        raise InvalidModel(f"{path} cannot be read as an ONNX model: {error}") from error
    if not model.graph.node:
        raise InvalidModel(f"{path} is not an ONNX model: it holds no graph.")
    if opset_of(model) < OLDEST_OPSET:
        raise InvalidModel(
            f"{path} uses opset {opset_of(model)}; {OLDEST_OPSET} is the oldest that can be wrapped. Convert it with "
            "onnx.version_converter first."
        )
    for tensor in _tensors(model):
        if uses_external_data(tensor):
            _check_location(tensor, path.parent)
    try:
        load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InvalidModel(f"the weights beside {path} cannot be read: {error}") from error
    return model


def read_signature(
    model: ModelProto,
    *,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
) -> Signature:
    """What the graph tells about its input and output; the options, named as on the command line, tell the rest.

    Args: size, height and width in pixels.
    Raises: InvalidModel, naming the option where the graph does not tell, or where it contradicts the option.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = {each.name: each for each in model.graph.input if each.name not in weights}
    outputs = {each.name: each for each in model.graph.output}
    image = inputs[_the_one(list(inputs), input_name, "input", "--input")]
    if len(inputs) > 1:
        others = ", ".join(name for name in inputs if name != image.name)
        raise InvalidModel(f"a classifier takes images and nothing else; this graph also needs {others}.")
    element_type = image.type.tensor_type.elem_type
    if element_type not in _FLOATS:
        raise InvalidModel(
            f"the input {image.name!r} must take floating-point pixels; it takes "
            f"{TensorProto.DataType.Name(element_type)}."
        )
    dims = _dims(image)
    layout = _layout(image.name, dims, layout)
    height, width = _size(image.name, dims, layout, size)
    return Signature(
        input_name=image.name,
        output_name=_the_one(list(outputs), output_name, "output", "--output"),
        layout=layout,
        height=height,
        width=width,
        element_type=element_type,
        fixed_batch=dims[0],
    )


def _the_one(names: list[str], asked: str | None, what: str, option: str) -> str:
    listed = ", ".join(names) or "none"
    if asked is not None and asked not in names:
        raise InvalidModel(f"the graph has no {what} {asked!r}; it has {listed}. Correct {option}.")
    if asked is None and len(names) != 1:
        raise InvalidModel(f"the graph has {len(names)} {what}s ({listed}). Name the right one with {option}.")
    return names[0] if asked is None else asked


def _dims(image: ValueInfoProto) -> tuple[int | None, ...]:
    """Four sizes, None where the graph leaves one open."""
    if not image.type.tensor_type.HasField("shape"):
        return (None,) * 4
    dims = image.type.tensor_type.shape.dim
    if len(dims) != 4:
        raise InvalidModel(f"the input {image.name!r} must have four axes, a batch of images; it has {len(dims)}.")
    return tuple(each.dim_value if each.HasField("dim_value") and each.dim_value > 0 else None for each in dims)


def _layout(name: str, dims: tuple[int | None, ...], asked: Layout | None) -> Layout:
    possible = [each for each, axis in (("nchw", 1), ("nhwc", 3)) if dims[axis] in (3, None)]
    if asked is not None and asked in possible:
        return asked
    told = [each for each, axis in (("nchw", 1), ("nhwc", 3)) if dims[axis] == 3]
    if asked is None and len(told) == 1:
        return told[0]
    shape = [each or "?" for each in dims]
    if asked is None and possible:
        raise InvalidModel(f"the input {name!r} of shape {shape} does not tell its layout. Say --layout nchw or nhwc.")
    raise InvalidModel(
        f"the input {name!r} must have three colour channels{f' in the layout {asked}' if asked else ''}; its shape is "
        f"{shape}."
    )


def _size(name: str, dims: tuple[int | None, ...], layout: Layout, asked: tuple[int, int] | None) -> tuple[int, int]:
    told = dims[2:4] if layout == "nchw" else dims[1:3]
    if asked is None:
        if None in told:
            raise InvalidModel(f"the input {name!r} leaves its image size open. Give --size HEIGHTxWIDTH.")
        asked = (told[0] or 0, told[1] or 0)
    if any(has not in (None, wants) for has, wants in zip(told, asked, strict=True)) or min(asked) < 1:
        shown = "x".join(str(each or "?") for each in told)
        raise InvalidModel(f"the input {name!r} takes images of {shown} pixels; --size says {asked[0]}x{asked[1]}.")
    return asked


def _tensors(model: ModelProto) -> list[TensorProto]:
    """Every tensor that may keep its numbers in another file."""
    found: list[TensorProto] = []
    for graph in graphs_of(model.graph):
        found += graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                found += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
    return found


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
