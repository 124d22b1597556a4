"""A classifier made elsewhere, wrapped into the standard form and compared with what it was."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.calibration.types import Calibration, FloatArray, RawLogits
from models.images import UInt8Array
from models.onnx_graph import graph
from models.onnx_graph.answers import FLOOR, OutputKind, as_logits
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.foreign import Signature

DRY_RUN_IMAGES = 3
MAX_DIFFERENCE = 1e-4
_RAW = "equipoise/raw"


class Preprocessing:
    """(pixel / 255 - mean) / std a channel, in float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Raises: InvalidModel unless both are three finite numbers, std positive."""
        self.mean, self.std = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
        sound = self.mean.shape == self.std.shape == (3,) and bool(np.isfinite([self.mean, self.std]).all())
        if not sound or not (self.std > 0).all():
            raise InvalidModel(f"mean and std are three numbers each, std positive; got {mean} and {std}.")

    def __call__(self, images: UInt8Array) -> NDArray[np.float32]:
        return (images.astype(np.float32) / np.float32(255) - self.mean) / self.std

    def nodes(self, source: str, result: str) -> list[NodeProto]:
        """The same as ONNX nodes."""
        steps = [("Div", np.array(255, np.float32)), ("Sub", self.mean), ("Div", self.std)]
        made = [helper.make_node("Cast", [source], ["equipoise/pixels0"], to=TensorProto.FLOAT)]
        for index, (operator, value) in enumerate(steps):
            constant = f"equipoise/constant{index}"
            made.append(helper.make_node("Constant", [], [constant], value=numpy_helper.from_array(value)))
            target = result if index == len(steps) - 1 else f"equipoise/pixels{index + 1}"
            made.append(helper.make_node(operator, [f"equipoise/pixels{index}", constant], [target]))
        return made


def wrapped(
    original: ModelProto, signature: Signature, preprocessing: Preprocessing, kind: OutputKind, calibration: Calibration
) -> bytes:
    """The standard graph around a classifier: uint8 images in, centred logits and scores out."""
    model = ModelProto()
    model.CopyFrom(original)
    renamed = graph.free_reserved_names(model)
    into = renamed.get(signature.input_name, signature.input_name)
    answer = renamed.get(signature.output_name, signature.output_name)
    before = preprocessing.nodes(graph.IMAGES, "equipoise/normalised")
    if signature.layout == "nchw":
        before.append(
            helper.make_node("Transpose", ["equipoise/normalised"], ["equipoise/arranged"], perm=[0, 3, 1, 2])
        )
    before.append(helper.make_node("Cast", [before[-1].output[0]], [into], to=signature.element_type))
    after = [
        helper.make_node("Flatten", [answer], ["equipoise/flat"], axis=1),  # (N, C, 1, 1) is common too
        helper.make_node("Cast", ["equipoise/flat"], ["equipoise/answer"], to=TensorProto.FLOAT),
    ]
    if kind == "probabilities":
        floor = numpy_helper.from_array(np.array(FLOOR, np.float32))
        after += [
            helper.make_node("Constant", [], ["equipoise/floor"], value=floor),
            helper.make_node("Max", ["equipoise/answer", "equipoise/floor"], ["equipoise/positive"]),
            helper.make_node("Log", ["equipoise/positive"], [_RAW]),
        ]
    else:
        after.append(helper.make_node("Identity", ["equipoise/answer"], [_RAW]))
    nodes = [*before, *model.graph.node, *after]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.input[:]  # an older graph lists its weights here too: they become constants
    model.graph.input.append(graph.images_input(signature.height, signature.width))
    return graph.standardise(model, _RAW, calibration)


def dry_run(
    original: ModelProto, signature: Signature, preprocessing: Preprocessing, kind: OutputKind, *, num_classes: int
) -> tuple[UInt8Array, FloatArray]:
    """Random images `(N, H, W, 3)` and the raw logits `(N, C)` that the original model gives for them.

    It is run on one image at a time (repeated where the graph insists on more), so that a mix-up of the images of a
    batch shows in the wrapped graph.

    Raises: InvalidModel when it does not run, or when its answer is not what it is said to be.
    """
    rng = np.random.default_rng(0)
    shape = (DRY_RUN_IMAGES, signature.height, signature.width, 3)
    images = rng.integers(0, 256, size=shape, dtype=np.uint8)
    session = graph.session(graph.serialised(original))
    pixels = preprocessing(images).astype(helper.tensor_dtype_to_np_dtype(signature.element_type))
    pixels = pixels.transpose(0, 3, 1, 2) if signature.layout == "nchw" else pixels
    rows = []
    for image in pixels:
        batch = np.repeat(image[None], signature.fixed_batch or 1, axis=0)
        try:
            (answer,) = session.run([signature.output_name], {signature.input_name: batch})
        except Exception as error:  # onnxruntime's errors have no common parent below Exception
            raise InvalidModel(f"the model does not run on an image of {images.shape[1:3]} pixels: {error}") from error
        rows.append(_first_row(answer, signature.output_name, num_classes))
    return images, as_logits(np.concatenate(rows), repr(signature.output_name), kind)


def _first_row(answer: Any, output_name: str, num_classes: int) -> FloatArray:
    """What a batch's first image got, `(1, C)`."""
    if not isinstance(answer, np.ndarray) or answer.dtype.kind not in "iuf" or not answer.ndim or not answer.size:
        raise InvalidModel(f"the output {output_name!r} must be an array of numbers, one row an image; it is not.")
    row = answer[:1].reshape(1, -1).astype(np.float64)
    if row.size != num_classes:
        raise InvalidModel(
            f"the output {output_name!r} has {row.size} numbers, there are {num_classes} class names. Give one name "
            "for each, in the model's order."
        )
    return row


def checked_difference(network: bytes, images: UInt8Array, expected: FloatArray) -> float:
    """Largest difference between the wrapped graph's logits, all images in one batch, and the expected ones; a share of
    the largest logit where that is above 1.

    Raises: InvalidModel above 1e-4.
    """
    largest = float(np.abs(RawLogits(expected).values).max())
    difference = graph.centred_difference(network, images, expected) / max(1.0, largest)
    if not difference <= MAX_DIFFERENCE:
        raise InvalidModel(
            f"the wrapped graph must give the original's logits to {MAX_DIFFERENCE:g}; on the same images they differ "
            f"by {difference:g}. Nothing was written. If it was exported for one image, give it a dynamic batch axis."
        )
    return difference
