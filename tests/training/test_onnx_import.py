import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.calibration.errors import EmptyClass, ShapeMismatch, UnknownTrainingRule
from models.calibration.manifest import Manifest
from models.calibration.types import ClassPrior, LogitSet, RawLogits
from training.bundle import OutputExists
from training.onnx_graph import InvalidModel, session
from training.onnx_import import import_onnx

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
):
    """A linear classifier of pixels as somebody else may have exported it."""
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


def by_hand(layout="nchw") -> np.ndarray:
    """Raw logits of IMAGES."""
    pixels = (IMAGES / 255 - np.array(MEAN)) / np.array(STD)
    pixels = pixels.transpose(0, 3, 1, 2) if layout == "nchw" else pixels
    return pixels.reshape(len(pixels), -1) @ WEIGHT


def labelled(per_class=20, classes=4) -> LogitSet:
    labels = np.repeat(np.arange(classes), per_class)
    logits = np.eye(classes)[labels] * 2 + np.random.default_rng(2).normal(size=(labels.size, classes))
    return LogitSet(logits=logits, labels=labels, split="calibration", drawn="by the test")


@pytest.fixture
def bring_in(tmp_path):
    """Save a model, import it, give the manifest and an onnxruntime session of the bundle."""

    def run(model=None, **options):
        path = options.pop("path", None)
        if model is not None:
            path = tmp_path / "theirs.onnx"
            onnx.save(model, path)
        defaults = {"name": "pets", "class_names": CLASSES, "class_counts": COUNTS, "trained_with": "cross-entropy"}
        out = tmp_path / "bundle"
        manifest = import_onnx(path, out=out, **(defaults | {"mean": MEAN, "std": STD} | options))
        file = out / "model.onnx"
        return manifest, session(file.read_bytes()) if file.exists() else None

    return run


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_a_wrapped_classifier_gives_its_own_centred_logits_for_any_number_of_images(bring_in, layout, kind, batch):
    manifest, wrapped = bring_in(network(layout=layout, kind=kind, batch=batch), output_kind=kind)
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    np.testing.assert_allclose(logits, RawLogits(by_hand(layout)).values, atol=1e-4)  # float32, |z| < 10
    assert (manifest.input_size.height, manifest.input_size.width) == (HEIGHT, WIDTH)
    assert manifest.metrics["import_difference"] <= 1e-4


def test_the_scores_are_debiased_without_any_labelled_example(bring_in):
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
def test_other_number_formats_versions_and_names_are_taken(bring_in, changes):
    _, wrapped = bring_in(network(**changes))
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    precision = 2e-2 if changes.get("element") == TensorProto.FLOAT16 else 1e-4
    np.testing.assert_allclose(logits, RawLogits(by_hand()).values, atol=precision)
    assert [each.name for each in wrapped.get_inputs()] == ["images"]
    assert {each.name for each in wrapped.get_overridable_initializers()} == {"scale", "offset", "log_prior"}


def test_an_initialiser_used_in_a_branch_survives_the_renaming(bring_in):
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


def test_a_network_that_mixes_the_images_of_a_batch_is_refused(bring_in, tmp_path):
    model = network(names=("input", "alone"))
    model.graph.node.append(helper.make_node("ReduceMean", ["alone"], ["mean"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Add", ["alone", "mean"], ["mixed"]))
    model.graph.output[0].name = "mixed"
    with pytest.raises(InvalidModel, match=r"on the same images they differ by .* Nothing was written"):
        bring_in(model)
    assert not (tmp_path / "bundle").exists()


def test_an_open_layout_or_size_is_asked_for_and_then_taken(bring_in, tmp_path):
    model = network(dims=["batch", "a", "b", "c"])
    with pytest.raises(InvalidModel, match="--layout"):
        bring_in(model)
    with pytest.raises(InvalidModel, match="--size"):
        bring_in(model, layout="nchw")
    assert not (tmp_path / "bundle").exists()
    _, wrapped = bring_in(model, layout="nchw", size=(HEIGHT, WIDTH))
    assert wrapped.get_inputs()[0].shape == ["N", HEIGHT, WIDTH, 3]


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"size": (9, 9)}, "takes images of 6x5 pixels; --size says 9x9"),
        ({}, {"layout": "nhwc"}, "three colour channels in the layout nhwc"),
        ({"dims": ["batch", 1, HEIGHT, WIDTH]}, {}, "three colour channels"),
        ({"dims": ["batch", 90]}, {}, "four axes"),
        ({"element": TensorProto.FLOAT}, {"input_name": "x"}, "has no input 'x'; it has input. Correct --input"),
        ({}, {"output_name": "y"}, "has no output 'y'; it has output. Correct --output"),
        ({}, {"std": (0.2, 0, 0.2)}, "--mean and --std"),
        ({}, {"mean": (0.2,)}, "--mean and --std"),
        ({}, {"output_kind": "probabilities"}, "--output-kind logits"),
        ({"kind": "probabilities"}, {"output_kind": "logits"}, "--output-kind probabilities"),
        ({"batch": 1, "flatten": False}, {}, "batch axis"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_the_option_that_helps(bring_in, tmp_path, changes, options, says):
    with pytest.raises(InvalidModel, match=says):
        bring_in(network(**changes), **options)
    assert not (tmp_path / "bundle").exists()


def test_two_outputs_must_be_told_apart(bring_in):
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch", 90]))
    with pytest.raises(InvalidModel, match=r"2 outputs \(output, scale\). Name the right one with --output"):
        bring_in(model)
    _, wrapped = bring_in(model, output_name="output")
    assert wrapped.get_outputs()[0].shape == ["N", 4]


def test_a_graph_that_needs_more_than_images_is_refused(bring_in):
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, [1]))
    with pytest.raises(InvalidModel, match="also needs age"):
        bring_in(model, input_name="input")


def test_whole_numbers_as_pixels_are_refused(bring_in):
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    with pytest.raises(InvalidModel, match="floating-point pixels; it takes INT32"):
        bring_in(model)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_a_file_that_is_no_model_is_refused(bring_in, tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(InvalidModel, match="ONNX model"):
        bring_in(path=tmp_path / "x.onnx")


def test_a_missing_file_is_refused(bring_in, tmp_path):
    with pytest.raises(InvalidModel, match="cannot be read"):
        bring_in(path=tmp_path / "nowhere.onnx")


def test_weights_beside_the_model_become_part_of_the_one_file(bring_in, tmp_path):
    path = tmp_path / "theirs.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="theirs.data", size_threshold=0)
    _, wrapped = bring_in(path=path)
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    np.testing.assert_allclose(logits, RawLogits(by_hand()).values, atol=1e-4)
    assert not list((tmp_path / "bundle").glob("*.data"))


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname", "..\\secret.data", "link.data"])
def test_weights_outside_of_the_models_folder_are_never_read(bring_in, tmp_path, location):
    (tmp_path / "secret.data").write_bytes(WEIGHT.tobytes())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "theirs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidModel, match="model's own folder; 'weight' points to"):
        bring_in(path=folder / "theirs.onnx")


def test_missing_weights_are_named(bring_in, tmp_path):
    path = tmp_path / "theirs.onnx"
    onnx.save(network(), path, save_as_external_data=True, location="theirs.data", size_threshold=0)
    (tmp_path / "theirs.data").unlink()
    with pytest.raises(InvalidModel, match=r"'weight' should lie in 'theirs\.data'"):
        bring_in(path=path)


def test_labelled_logits_choose_the_calibration_and_travel_along(bring_in, tmp_path):
    manifest, _ = bring_in(network(), logits=labelled())
    assert "chosen" in manifest.calibration.provenance
    with np.load(tmp_path / "bundle" / "calibration_set.npz", allow_pickle=False) as arrays:
        assert arrays["labels"].size == 80
        assert str(arrays["drawn"]) == "by the test"


def test_an_unknown_training_is_measured_on_labelled_logits_and_refused_without(bring_in):
    with pytest.raises(UnknownTrainingRule, match="--logits"):
        bring_in(network(), trained_with="unknown")
    manifest, _ = bring_in(network(), trained_with="unknown", logits=labelled())
    assert manifest.ledger.source == "measured"


def test_balanced_softmax_is_not_debiased_again(bring_in):
    manifest, _ = bring_in(network(), trained_with="balanced-softmax")
    assert np.ptp(manifest.calibration.offset) == 0


def test_a_model_without_a_network_is_its_logits_and_a_manifest(bring_in, tmp_path):
    manifest, wrapped = bring_in(logits=labelled())
    assert wrapped is None
    assert manifest.input_size is None
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", "calibration_set.npz"}
    document = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert document["input"] is None
    assert Manifest.from_json(document).class_names == CLASSES


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
def test_names_counts_logits_and_network_have_the_same_classes(bring_in, options, error, says):
    with pytest.raises(error, match=says):
        bring_in(network(), **options)


def test_nothing_is_overwritten(bring_in, tmp_path):
    (tmp_path / "bundle").mkdir()
    with pytest.raises(OutputExists):
        bring_in(network())


def test_importing_needs_no_torch():
    root = Path(__file__).parents[2]
    probe = (
        "import training.onnx_import, sys; "
        "print(sorted({'torch', 'sklearn', 'service', 'models.networks'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, cwd=root)
    assert found.stdout.strip() == "[]"
