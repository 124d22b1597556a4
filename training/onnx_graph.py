"""The standard graph of a bundle, made by editing ONNX: needs onnx and not torch.

uint8 images in; `logits`, raw and centred, and `scores` out, with

    scores = softmax(scale * logits + offset + log_prior)

`scale` and `offset`, `(1, C)`, and `log_prior`, `(1, C)` or `(N, C)`, are overridable initialisers: inputs with a default.
Any ONNX runtime gives debiased scores from the file alone, and takes another calibration or prior with a request.
`log_prior` means log target - log r; its default is that of the uniform target.
"""

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.calibration.types import Calibration, ClassPrior

IMAGES, LOGITS, SCORES = "images", "logits", "scores"


def standardise(model: ModelProto, raw_output: str, calibration: Calibration) -> bytes:
    """Append centring and calibration to a graph whose output `raw_output` is raw logits `(N, C)`.

    Args: model, edited in place; its only input is the uint8 images.
    Returns: the serialised model, one file without external data, checked.
    """
    graph, classes = model.graph, calibration.num_classes
    to_uniform = ClassPrior.uniform(classes).log_probs - calibration.implied_prior.log_probs
    for name, values, rows in (
        ("scale", calibration.scale, 1),
        ("offset", calibration.offset, 1),
        ("log_prior", to_uniform, "prior_rows"),
    ):
        graph.initializer.append(numpy_helper.from_array(values.astype(np.float32)[None], name))
        graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [rows, classes]))
    graph.node.extend(_calibration_nodes(raw_output, _row_mean(model, raw_output)))
    del graph.output[:]
    for name in (LOGITS, SCORES):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes]))
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _row_mean(model: ModelProto, raw_output: str) -> NodeProto:
    """The axes of ReduceMean are an attribute up to opset 17, and an input from 18 on."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 18:
        return helper.make_node("ReduceMean", [raw_output], ["row_mean"], axes=[1], keepdims=1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "class_axis"))
    return helper.make_node("ReduceMean", [raw_output, "class_axis"], ["row_mean"], keepdims=1)


def _calibration_nodes(raw_output: str, row_mean: NodeProto) -> list[NodeProto]:
    return [
        row_mean,
        helper.make_node("Sub", [raw_output, "row_mean"], [LOGITS]),
        helper.make_node("Mul", [LOGITS, "scale"], ["scaled_logits"]),
        helper.make_node("Add", ["scaled_logits", "offset"], ["debiased_logits"]),
        helper.make_node("Add", ["debiased_logits", "log_prior"], ["adjusted_logits"]),
        helper.make_node("Softmax", ["adjusted_logits"], [SCORES], axis=-1),
    ]


def quiet_session_options() -> ort.SessionOptions:
    """onnxruntime warns of every overridable initialiser; ours are meant."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options
