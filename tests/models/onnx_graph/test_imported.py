import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.calibration.errors import EmptyClass, InvalidManifest, ShapeMismatch, UnknownTrainingRule
from models.calibration.types import ClassPrior, RawLogits
from models.onnx_graph.errors import InvalidModel
from tests.models.onnx_graph.networks import (
    CLASSES,
    COUNTS,
    HEIGHT,
    IMAGES,
    WIDTH,
    bring_in,
    by_hand,
    labelled,
    network,
)


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_a_wrapped_classifier_gives_its_own_centred_logits_for_any_number_of_images(layout, kind, batch):
    manifest, wrapped = bring_in(network(layout=layout, kind=kind, batch=batch), output_kind=kind)
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    np.testing.assert_allclose(logits, RawLogits(by_hand(layout)).values, atol=1e-4)  # float32, |z| < 10
    assert (manifest.input_size.height, manifest.input_size.width) == (HEIGHT, WIDTH)
    assert manifest.metrics["import_difference"] <= 1e-4


def test_the_scores_are_debiased_without_any_labelled_example():
    manifest, wrapped = bring_in(network())
    logits, scores = wrapped.run(["logits", "scores"], {"images": IMAGES})
    expected = RawLogits(logits - np.log(COUNTS)).values
    np.testing.assert_allclose(RawLogits(np.log(scores)).values, expected, atol=1e-4)
    uniform = ClassPrior.uniform(4)
    np.testing.assert_allclose(
        scores, manifest.calibration.debias(RawLogits(logits)).adjust(uniform).scores(), atol=1e-5
    )
    assert manifest.calibration.parameters["temperature"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"element": TensorProto.FLOAT16},
        {"element": TensorProto.DOUBLE},
        {"opset": 11, "ir": 6},
        {"opset": 8, "ir": 3},
        {"opset": 20, "ir": 10},
        {"names": ("images", "logits")},
        {"names": ("log_prior", "scores")},
        {"extra_axes": True},
    ],
    ids=str,
)
def test_other_number_formats_versions_and_names_are_taken(changes):
    _, wrapped = bring_in(network(**changes))
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    precision = 2e-2 if changes.get("element") == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(logits, RawLogits(by_hand()).values, atol=precision)
    assert [each.name for each in wrapped.get_inputs()] == ["images"]
    assert {each.name for each in wrapped.get_overridable_initializers()} == {"scale", "offset", "log_prior"}


def test_an_initialiser_used_in_a_branch_survives_the_renaming():
    model = network(names=("input", "inner"))
    constants = {"offset": np.full(4, 0.5, np.float32), "always": np.array(True)}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    branches = {}
    for branch in ("then_branch", "else_branch"):
        added = helper.make_node("Add", ["inner", "offset"], [branch])  # the outer graph's `offset`
        result = helper.make_tensor_value_info(branch, TensorProto.FLOAT, None)
        branches[branch] = helper.make_graph([added], branch, [], [result])
    model.graph.node.append(helper.make_node("If", ["always"], ["answer"], **branches))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 4]))
    _, wrapped = bring_in(model)
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    np.testing.assert_allclose(logits, RawLogits(by_hand()).values, atol=1e-4)


def test_a_network_that_mixes_the_images_of_a_batch_is_refused():
    model = network(names=("input", "alone"))
    model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["alone", "mean"], ["mixed"]))
    model.graph.output[0].name = "mixed"
    with pytest.raises(InvalidModel, match=r"on the same images they differ by .* Nothing was written"):
        bring_in(model)


def test_an_unknown_training_is_measured_on_labelled_logits_and_refused_without():
    with pytest.raises(UnknownTrainingRule, match="Give the option logits"):
        bring_in(network(), trained_with="unknown")
    manifest, _ = bring_in(network(), trained_with="unknown", logits=labelled())
    assert manifest.ledger.source == "measured"


def test_balanced_softmax_is_not_debiased_again():
    manifest, _ = bring_in(network(), trained_with="balanced-softmax")
    assert np.ptp(manifest.calibration.offset) == 0


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"class_counts": [1, 2, 3]}, ShapeMismatch, "class counts must cover the 4 class names; got 3"),
        ({"class_counts": [1, 2, 3, 0]}, EmptyClass, "class 3 has 0"),
        ({"logits": labelled(classes=5)}, ShapeMismatch, "logits must cover the 4 class names; got 5"),
        (
            {"class_names": CLASSES[:3], "class_counts": [1, 2, 3]},
            InvalidModel,
            "has 4 numbers, there are 3 class names",
        ),
    ],
    ids=["counts", "empty", "logits", "network"],
)
def test_names_counts_logits_and_network_have_the_same_classes(options, error, says):
    with pytest.raises(error, match=says):
        bring_in(network(), **options)


def test_class_names_that_no_file_could_tell_apart_are_refused():
    with pytest.raises(InvalidManifest, match=r"'caf\\xe9' and 'cafe\\u0301' are the same"):
        bring_in(None, class_names=("caf\u00e9", "bee", "cafe\u0301", "dog"))


def test_a_model_that_is_sent_logits_has_no_graph():
    manifest, wrapped = bring_in(None, logits=labelled())
    assert wrapped is None
    assert manifest.input_size is None
    assert manifest.provenance["imported_from"] is None


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("imported", {"torch", "sklearn", "service", "training", "models.networks"}),
        ("errors", {"onnx", "onnxruntime"}),
        ("answers", {"onnx", "onnxruntime"}),
    ],
)
def test_it_loads_no_more_than_it_needs(module, unwanted):
    probe = f"import models.onnx_graph.{module}, sys; print(sorted({unwanted} & set(sys.modules)))"
    root = Path(__file__).parents[3]
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"
