"""A linear classifier of pixels, as somebody else may have exported it, and its answers by hand."""

from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.calibration.manifest import Manifest
from models.calibration.types import LogitSet
from models.onnx_graph.graph import session
from models.onnx_graph.imported import imported

CLASSES = ("ant", "bee", "cat", "dog")
COUNTS = [100, 30, 8, 2]
HEIGHT, WIDTH = 6, 5
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
WEIGHT = np.random.default_rng(0).normal(size=(HEIGHT * WIDTH * 3, 4)).astype(np.float32) / 5
IMAGES = np.random.default_rng(1).integers(0, 256, (5, HEIGHT, WIDTH, 3), dtype=np.uint8)


def network(
    *,
    layout="nchw",
    kind="logits",
    batch="batch",
    dims=None,
    element=TensorProto.FLOAT,
    opset=17,
    ir=9,
    names=("input", "output"),
    extra_axes=False,
    flatten=True,
) -> ModelProto:
    into, out = names
    shape = [batch, 3, HEIGHT, WIDTH] if layout == "nchw" else [batch, HEIGHT, WIDTH, 3]
    numpy_type = helper.tensor_dtype_to_np_dtype(element)
    weights = {"weight": WEIGHT.astype(numpy_type), "rows": np.array([1, -1])}
    arrange = "Flatten" if flatten else "Reshape"  # to one row, which is right for one image and wrong for two
    nodes = [
        helper.make_node(arrange, [into] if flatten else [into, "rows"], ["scale"]),  # a name of the standard form
        helper.make_node("MatMul", ["scale", "weight"], ["product" if kind == "probabilities" or extra_axes else out]),
    ]
    if kind == "probabilities":
        nodes.append(helper.make_node("Softmax", ["product"], [out], axis=1))
    if extra_axes:
        weights["four"] = np.array([-1, 4, 1, 1])
        nodes.append(helper.make_node("Reshape", ["product", "four"], [out]))
    inputs = [helper.make_tensor_value_info(into, element, dims or shape)]
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    if ir < 4:  # weights were inputs too
        inputs += [helper.make_tensor_value_info(each.name, each.data_type, each.dims) for each in constants]
    answer = helper.make_tensor_value_info(out, element, [batch, 4, 1, 1] if extra_axes else [batch, 4])
    graph = helper.make_graph(nodes, "theirs", inputs, [answer], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def by_hand(layout: str = "nchw") -> np.ndarray:
    """Raw logits of IMAGES."""
    pixels = (IMAGES / 255 - np.array(MEAN)) / np.array(STD)
    pixels = pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels
    return pixels.reshape(len(pixels), -1) @ WEIGHT


def labelled(per_class: int = 20, classes: int = 4) -> LogitSet:
    labels = np.repeat(np.arange(classes), per_class)
    logits = np.eye(classes)[labels] * 2 + np.random.default_rng(2).normal(size=(labels.size, classes))
    return LogitSet(logits=logits, labels=labels, split="calibration", drawn="by the test")


def bring_in(model: ModelProto | None, **options: Any) -> tuple[Manifest, Any]:
    """Import it; the manifest and an onnxruntime session of the wrapped graph."""
    told = {"name": "pets", "class_names": CLASSES, "class_counts": COUNTS, "trained_with": "cross-entropy"}
    data = None if model is None else model.SerializeToString()
    manifest, wrapped = imported(data, **(told | {"mean": MEAN, "std": STD} | options))
    return manifest, None if wrapped is None else session(wrapped)


def point_outside(model: ModelProto, tensor: TensorProto, location: str) -> ModelProto:
    """The model with a tensor of it that claims to lie in another file."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return model
