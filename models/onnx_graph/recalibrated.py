"""Another calibration in a graph that exists: a recalibrated bundle needs no new export."""

from google.protobuf.message import DecodeError
from onnx import ModelProto, numpy_helper

from models.calibration.errors import ShapeMismatch
from models.calibration.types import Calibration, ClassPrior
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.graph import LOGITS, SCORES, overridable, serialised


def with_calibration(model: bytes, calibration: Calibration, prior: ClassPrior | None = None) -> bytes:
    """The standard graph `model` with other defaults of `scale`, `offset` and `log_prior`; its network is not touched.

    Args: prior, the target `(C,)` of `scores`, uniform if None; the score of a class that cannot occur is exactly 0.
    Raises: InvalidModel for a graph that is not in the standard form, ShapeMismatch for other classes than its own.
    """
    edited = _read(model)
    values = overridable(calibration, prior)
    held = {each.name: each for each in edited.graph.initializer if each.name in values}
    inputs, outputs = ({each.name for each in names} for names in (edited.graph.input, edited.graph.output))
    lacking = sorted((values.keys() - (held.keys() & inputs)) | ({LOGITS, SCORES} - outputs))
    if lacking:
        raise InvalidModel(
            "a recalibrated graph has the outputs logits and scores, and the overridable initialisers scale, offset "
            f"and log_prior; this one lacks {', '.join(lacking)}. Export or import the model again."
        )
    for name, (_, array) in values.items():
        if tuple(held[name].dims) != array.shape:
            raise ShapeMismatch(
                f"the graph holds {name} {tuple(held[name].dims)}, the calibration needs {array.shape}. "
                "Take the calibration of this model."
            )
        held[name].CopyFrom(numpy_helper.from_array(array, name))
    return serialised(edited)


def _read(model: bytes) -> ModelProto:
    try:
        graph: ModelProto = ModelProto.FromString(model)
    except DecodeError as error:
        raise InvalidModel(f"the graph to recalibrate cannot be read as an ONNX model: {error}") from error
    return graph
