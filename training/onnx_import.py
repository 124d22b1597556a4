"""Any ONNX classifier, or just its logits, as a bundle. Needs onnx and onnxruntime, never torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.calibration.choose import choose
from models.calibration.errors import ShapeMismatch, UnknownTrainingRule
from models.calibration.manifest import InputSize, Manifest, check_class_names
from models.calibration.prior import Ledger, TrainedWith
from models.calibration.temperature import closed_form_without_data
from models.calibration.types import Calibration, FloatArray, LogitSet, RawLogits
from models.images import UInt8Array
from training import onnx_graph
from training.bundle import package_versions, write_bundle
from training.onnx_file import Layout, Signature, read_model, read_signature
from training.onnx_graph import InvalidModel

OutputKind = Literal["logits", "probabilities"]
DRY_RUN_IMAGES = 3
MAX_DIFFERENCE = 1e-4
_RAW = "equipoise/raw"
FLOOR = 1e-30  # of a probability before its logarithm: a softmax in float32 may underflow to 0


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
        UnknownTrainingRule for `unknown` without logits; ShapeMismatch, EmptyClass, InvalidManifest, FolderExists.
    """
    check_class_names(tuple(class_names))
    ledger = _ledger(trained_with, class_counts, logits)
    _check_classes(len(class_names), ledger, logits)
    calibration = closed_form_without_data(ledger) if logits is None else choose(logits, ledger).calibration
    network, size_of_input, metrics = None, None, {}
    if model_path is not None:
        original = read_model(model_path)
        signature = read_signature(original, layout=layout, size=size, input_name=input_name, output_name=output_name)
        preprocessing = Preprocessing(mean, std)
        images, expected = dry_run(original, signature, preprocessing, output_kind)
        if expected.shape[1] != len(class_names):
            raise InvalidModel(
                f"the output {signature.output_name!r} has {expected.shape[1]} numbers, there are {len(class_names)} "
                "class names. Give one name for each, in the model's order."
            )
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
            "imported_from": None if model_path is None else model_path.name,
            "mean": list(mean),
            "std": list(std),
            "packages": package_versions(),
        },
    )
    return write_bundle(out, manifest, model=network, calibration_set=logits)


class Preprocessing:
    """(pixel / 255 - mean) / std a channel, in float32."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Raises: InvalidModel unless both are three finite numbers, std positive."""
        self.mean, self.std = np.asarray(mean, dtype=np.float32), np.asarray(std, dtype=np.float32)
        sound = self.mean.shape == self.std.shape == (3,) and bool(np.isfinite([self.mean, self.std]).all())
        if not sound or not (self.std > 0).all():
            raise InvalidModel(f"--mean and --std are three numbers each, std positive; got {mean} and {std}.")

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
    renamed = onnx_graph.free_reserved_names(model)
    into = renamed.get(signature.input_name, signature.input_name)
    answer = renamed.get(signature.output_name, signature.output_name)
    before = preprocessing.nodes(onnx_graph.IMAGES, "equipoise/normalised")
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
    model.graph.input.append(onnx_graph.images_input(signature.height, signature.width))
    return onnx_graph.standardise(model, _RAW, calibration)


def dry_run(
    original: ModelProto, signature: Signature, preprocessing: Preprocessing, kind: OutputKind
) -> tuple[UInt8Array, FloatArray]:
    """Random images `(N, H, W, 3)` and the raw logits `(N, C)` that the original model gives for them.

    It is run on one image at a time (repeated where the graph insists on more), so that a mix-up of the images of a
    batch shows in the wrapped graph.

    Raises: InvalidModel when it does not run, or when its answer is not what it is said to be.
    """
    rng = np.random.default_rng(0)
    shape = (DRY_RUN_IMAGES, signature.height, signature.width, 3)
    images = rng.integers(0, 256, size=shape, dtype=np.uint8)
    session = onnx_graph.session(onnx_graph.serialised(original))
    pixels = preprocessing(images).astype(helper.tensor_dtype_to_np_dtype(signature.element_type))
    pixels = pixels.transpose(0, 3, 1, 2) if signature.layout == "nchw" else pixels
    answers = []
    for image in pixels:
        batch = np.repeat(image[None], signature.fixed_batch or 1, axis=0)
        try:
            (answer,) = session.run([signature.output_name], {signature.input_name: batch})
        except Exception as error:  # onnxruntime's errors have no common parent below Exception
            raise InvalidModel(f"the model does not run on an image of {images.shape[1:3]} pixels: {error}") from error
        answers.append(answer[:1].reshape(1, -1).astype(np.float64))
    result = np.concatenate(answers)
    positive, furthest = bool((result >= 0).all()), float(np.abs(result.sum(axis=1) - 1).max())
    if kind == "logits":
        if positive and furthest < 1e-3:
            raise InvalidModel(
                f"the rows of {signature.output_name!r} are not negative and sum to 1: they are probabilities, whose "
                "logarithms are the logits. Say --output-kind probabilities."
            )
        return images, result
    if not positive or furthest > 1e-2:
        raise InvalidModel(
            f"probabilities are not negative and sum to 1 in every row; those of {signature.output_name!r} do not. "
            "Say --output-kind logits."
        )
    return images, np.log(np.maximum(result, FLOOR))


def checked_difference(network: bytes, images: UInt8Array, expected: FloatArray) -> float:
    """Largest difference between the wrapped graph's logits, all images in one batch, and the expected ones; a share of
    the largest logit where that is above 1.

    Raises: InvalidModel above 1e-4.
    """
    largest = float(np.abs(RawLogits(expected).values).max())
    difference = onnx_graph.centred_difference(network, images, expected) / max(1.0, largest)
    if not difference <= MAX_DIFFERENCE:
        raise InvalidModel(
            f"the wrapped graph must give the original's logits to {MAX_DIFFERENCE:g}; on the same images they differ "
            f"by {difference:g}. Nothing was written. If it was exported for one image, give it a dynamic batch axis."
        )
    return difference


def _ledger(trained_with: TrainedWith, class_counts: ArrayLike, logits: LogitSet | None) -> Ledger:
    if trained_with != "unknown":
        return Ledger.by_rule(trained_with, class_counts)
    if logits is None:
        raise UnknownTrainingRule(
            "class counts alone do not tell what a classifier trained in an unknown way implies. Give --logits with "
            "labelled held-out logits, so that it can be measured."
        )
    return Ledger.measured(logits, class_counts)


def _check_classes(num_classes: int, ledger: Ledger, logits: LogitSet | None) -> None:
    found = {"class counts": ledger.class_counts.size} | ({} if logits is None else {"logits": logits.num_classes})
    for what, count in found.items():
        if count != num_classes:
            raise ShapeMismatch(f"{what} must cover the {num_classes} class names; got {count}.")
