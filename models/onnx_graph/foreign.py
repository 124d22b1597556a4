"""Reading somebody's ONNX model, and what its graph tells about itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto, ValueInfoProto
from onnx.external_data_helper import uses_external_data

from models.images import MAX_PIXELS
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.graph import opset_of

Layout = Literal["nchw", "nhwc"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_CHANNELS = {"nchw": 1, "nhwc": 3}  # the axis
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


def read_model(data: bytes) -> ModelProto:
    """The bytes of an ONNX model that keeps its weights inside.

    Raises: InvalidModel for what is not ONNX, for an operator set that is too old, and for weights in other files.
    """
    model = parsed(data)
    outside = next(external_tensors(model), None)
    if outside is not None:
        raise InvalidModel(
            f"the model must be one file; it keeps {outside.name!r} outside of itself (ONNX external data). Save it as "
            "one: onnx.save(onnx.load(path), path, save_as_external_data=False)."
        )
    return model


def parsed(data: bytes, what: str = "the file") -> ModelProto:
    """Args: what, the name of the model in messages. Raises: InvalidModel, but not for weights in other files."""
    try:
        model: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidModel(f"{what} cannot be read as an ONNX model: {error}") from error
    if not model.graph.node:
        raise InvalidModel(f"{what} is not an ONNX model: it holds no graph.")
    if opset_of(model) < OLDEST_OPSET:
        raise InvalidModel(
            f"{what} uses opset {opset_of(model)}; {OLDEST_OPSET} is the oldest that can be wrapped. Convert it with "
            "onnx.version_converter first."
        )
    return model


def external_tensors(message: Message) -> Iterator[TensorProto]:
    """Every tensor of a model that keeps its numbers in another file, wherever the model holds it."""
    if isinstance(message, TensorProto):
        if uses_external_data(message):
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                yield from external_tensors(each)


def read_signature(
    model: ModelProto,
    *,
    layout: Layout | None = None,
    size: tuple[int, int] | None = None,
    input_name: str | None = None,
    output_name: str | None = None,
) -> Signature:
    """What the graph tells about its input and output; the options tell the rest.

    Args: size, height and width in pixels.
    Raises: InvalidModel, naming the option where the graph does not tell, or where it contradicts the option.
    """
    weights = {each.name for each in model.graph.initializer}
    inputs = {each.name: each for each in model.graph.input if each.name not in weights}
    outputs = {each.name: each for each in model.graph.output}
    image = inputs[_the_one(list(inputs), input_name, "input")]
    if len(inputs) > 1:
        others = ", ".join(name for name in inputs if name != image.name)
        raise InvalidModel(f"a classifier takes images and nothing else; this graph also needs {others}.")
    element_type = image.type.tensor_type.elem_type
    if element_type not in _FLOATS:
        raise InvalidModel(
            f"the input {image.name!r} must take floating-point pixels; it takes "
            f"{dict(enumerate(TensorProto.DataType.keys())).get(element_type, 'something unknown')}."
        )
    dims = _dims(image)
    layout = _layout(image.name, dims, layout)
    height, width = _size(image.name, dims, layout, size)
    return Signature(
        input_name=image.name,
        output_name=_the_one(list(outputs), output_name, "output"),
        layout=layout,
        height=height,
        width=width,
        element_type=element_type,
        fixed_batch=dims[0],
    )


def _the_one(names: list[str], asked: str | None, what: str) -> str:
    """`what` is the name of the option too."""
    listed = ", ".join(names) or "none"
    if asked is not None and asked not in names:
        raise InvalidModel(f"the graph has no {what} {asked!r}; it has {listed}. Correct the option {what}.")
    if asked is None and len(names) != 1:
        raise InvalidModel(f"the graph has {len(names)} {what}s ({listed}). Name the right one with the option {what}.")
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
    possible = [each for each in LAYOUTS if dims[_CHANNELS[each]] in (3, None)]
    if asked is not None and asked in possible:
        return asked
    told = [each for each in LAYOUTS if dims[_CHANNELS[each]] == 3]
    if asked is None and len(told) == 1:
        return told[0]
    shape = [each or "?" for each in dims]
    if asked is None and possible:
        raise InvalidModel(
            f"the input {name!r} of shape {shape} does not tell its layout. Say layout=nchw or layout=nhwc."
        )
    raise InvalidModel(
        f"the input {name!r} must have three colour channels{f' in the layout {asked}' if asked else ''}; its shape is "
        f"{shape}."
    )


def _size(name: str, dims: tuple[int | None, ...], layout: Layout, asked: tuple[int, int] | None) -> tuple[int, int]:
    told = dims[2:4] if layout == "nchw" else dims[1:3]
    if asked is None:
        if None in told:
            raise InvalidModel(f"the input {name!r} leaves its image size open. Give size=HEIGHTxWIDTH.")
        asked = (told[0] or 0, told[1] or 0)
    if any(has not in (None, wants) for has, wants in zip(told, asked, strict=True)) or min(asked) < 1:
        shown = "x".join(str(each or "?") for each in told)
        raise InvalidModel(f"the input {name!r} takes images of {shown} pixels; size says {asked[0]}x{asked[1]}.")
    if (pixels := asked[0] * asked[1] * (dims[0] or 1)) > MAX_PIXELS:
        raise InvalidModel(f"a batch has at most {MAX_PIXELS:,} pixels; the input {name!r} takes {pixels:,} at least.")
    return asked
