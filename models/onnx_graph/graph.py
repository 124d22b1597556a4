"""The standard graph of a bundle, made by editing ONNX. No torch here: import and export of bundles in the service do
without it.

    images uint8 (N, H, W, 3) -> network -> z -> logits = z - row mean
    scores = softmax(scale * logits + offset + log_prior)

`scale`, `offset` and `log_prior` are overridable initialisers: initialiser and graph input at once (ONNX IR 4 and
later), so a runtime may be fed `images` alone, or any of them too. `log_prior` means log target - log r, up to a
constant a row; its first dimension is symbolic, so that every row of a batch can have a target of its own.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import EncodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from models.calibration.errors import ShapeMismatch
from models.calibration.types import Calibration, ClassPrior, FloatArray, RawLogits
from models.images import UInt8Array
from models.onnx_graph.errors import InvalidModel

IMAGES, LOGITS, SCORES = "images", "logits", "scores"
SCALE, OFFSET, LOG_PRIOR = "scale", "offset", "log_prior"
BATCH, PRIOR_ROWS = "N", "prior_rows"  # names of the symbolic dimensions
_PREFIX = "equipoise/"  # of the names that this module makes up
_RESERVED = frozenset((IMAGES, LOGITS, SCORES, SCALE, OFFSET, LOG_PRIOR))
_AXES_BECAME_AN_INPUT = 18  # the opset in which ReduceMean changed
_MIN_IR = 4


def standardise(network: ModelProto, raw: str, calibration: Calibration) -> bytes:
    """The standard graph of a network that takes `images` and computes raw logits `(N, C)` float32, the tensor `raw`.

    Source paths and other remarks of the exporter are dropped. The network must not use the names above.
    """
    model = ModelProto()
    model.CopyFrom(network)
    assert not (_value_names(model) & (_RESERVED - {IMAGES}))  # `free_reserved_names`, or names chosen by ourselves
    model.ir_version = max(model.ir_version, _MIN_IR)
    graph, num_classes = model.graph, calibration.num_classes
    graph.node.extend(_row_mean(raw, opset_of(model)))
    graph.node.extend(
        [
            helper.make_node("Sub", [raw, f"{_PREFIX}mean"], [LOGITS]),
            helper.make_node("Mul", [LOGITS, SCALE], [f"{_PREFIX}scaled"]),
            helper.make_node("Add", [f"{_PREFIX}scaled", OFFSET], [f"{_PREFIX}debiased"]),
            helper.make_node("Add", [f"{_PREFIX}debiased", LOG_PRIOR], [f"{_PREFIX}adjusted"]),
            helper.make_node("Softmax", [f"{_PREFIX}adjusted"], [SCORES], axis=1),
        ]
    )
    for name, (rows, values) in overridable(calibration).items():
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, num_classes]))
        graph.initializer.append(numpy_helper.from_array(values, name))
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [BATCH, num_classes]) for name in (LOGITS, SCORES)
    ]
    del graph.output[:]
    graph.output.extend(outputs)
    _drop_remarks(model)
    return serialised(model)


def overridable(
    calibration: Calibration, target: ClassPrior | None = None
) -> dict[str, tuple[int | str, NDArray[np.float32]]]:
    """Declared rows and default `(1, C)` of each overridable initialiser.

    log_prior is log target - log r, shifted so that it is exactly 0 where both are uniform, and minus infinity for a
    class that cannot occur: its softmax is exactly 0.

    Args: target, uniform if None. Raises: ShapeMismatch when it has another number of classes.
    """
    if target is not None and target.num_classes != calibration.num_classes:
        raise ShapeMismatch(
            f"the target prior must have {calibration.num_classes} classes as the model has; got {target.num_classes}."
        )
    log_r = calibration.implied_prior.log_probs
    log_target = 0.0 if target is None else target.log_probs - target.log_probs.max()
    defaults: dict[str, tuple[int | str, FloatArray]] = {
        SCALE: (1, calibration.scale),
        OFFSET: (1, calibration.offset),
        LOG_PRIOR: (PRIOR_ROWS, log_target + (log_r.mean() - log_r)),
    }
    return {name: (rows, values.astype(np.float32)[None]) for name, (rows, values) in defaults.items()}


def free_reserved_names(model: ModelProto) -> dict[str, str]:
    """Rename, in place, what carries a name of the standard form; returns old name -> new name.

    onnx.compose.add_prefix is not used because it forgets initialisers that an inner graph takes from the outer one.
    """
    taken = sorted(each for each in _value_names(model) if each in _RESERVED or each.startswith(_PREFIX))
    renamed = {each: f"network/{each}" for each in taken}
    for graph in graphs_of(model.graph):
        for node in graph.node:
            node.input[:] = [renamed.get(each, each) for each in node.input]
            node.output[:] = [renamed.get(each, each) for each in node.output]
        for value in _named_values(graph):
            value.name = renamed.get(value.name, value.name)
    return renamed


def opset_of(model: ModelProto) -> int:
    """Version of ONNX's own operators; 0 where the model uses none."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def images_input(height: int, width: int) -> ValueInfoProto:
    return helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [BATCH, height, width, 3])


def serialised(model: ModelProto) -> bytes:
    """Raises: InvalidModel above the 2 GiB that one protobuf file holds."""
    try:
        return bytes(model.SerializeToString())
    except (EncodeError, ValueError) as error:
        raise InvalidModel(f"a bundle's network is one file, 2 GiB at most; this one does not fit: {error}") from error


def session(model: bytes) -> Any:
    """An onnxruntime session that says what is wrong by an exception, and nothing on the terminal.

    Raises: InvalidModel.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common parent below Exception
        raise InvalidModel(f"onnxruntime cannot load the graph: {error}") from error


def centred_difference(model: bytes, images: UInt8Array, raw: FloatArray) -> float:
    """Largest absolute difference between the graph's logits on `images` and raw logits `(N, C)` made elsewhere.

    Raises: InvalidModel when the graph does not run on these images at once, or gives another shape.
    """
    try:
        (logits,) = session(model).run([LOGITS], {IMAGES: images})
    except InvalidModel:
        raise
    except Exception as error:  # as in `session`
        raise InvalidModel(
            f"the graph does not run on {len(images)} images at once: {error} Export it with a dynamic batch axis."
        ) from error
    expected = RawLogits(raw).values
    if logits.shape != expected.shape:
        raise InvalidModel(f"the graph must give logits {expected.shape} for these images; got {logits.shape}.")
    return float(np.abs(logits - expected).max())


def graphs_of(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and every graph inside its nodes (the branches of `If`, the body of `Loop`)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            inner = [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs
            for each in inner:
                yield from graphs_of(each)


def _named_values(graph: GraphProto) -> Iterator[Any]:
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    yield from (each.values for each in graph.sparse_initializer)


def _value_names(model: ModelProto) -> set[str]:
    names: set[str] = set()
    for graph in graphs_of(model.graph):
        names.update(each.name for each in _named_values(graph))
        names.update(name for node in graph.node for name in (*node.input, *node.output))
    return names


def _row_mean(raw: str, opset: int) -> list[NodeProto]:
    mean = f"{_PREFIX}mean"
    if opset < _AXES_BECAME_AN_INPUT:
        return [helper.make_node("ReduceMean", [raw], [mean], axes=[1], keepdims=1)]
    axes = numpy_helper.from_array(np.array([1], dtype=np.int64))
    return [
        helper.make_node("Constant", [], [f"{_PREFIX}axes"], value=axes),
        helper.make_node("ReduceMean", [raw, f"{_PREFIX}axes"], [mean], keepdims=1),
    ]


def _drop_remarks(model: ModelProto) -> None:
    """Exporters note source lines with the paths of their machine; the shapes they guessed may assume a batch size."""
    model.ClearField("metadata_props")
    model.doc_string = ""
    for graph in graphs_of(model.graph):
        for each in (graph, *graph.node, *graph.input, *graph.initializer):
            each.doc_string = ""
            each.ClearField("metadata_props")
        graph.ClearField("value_info")
