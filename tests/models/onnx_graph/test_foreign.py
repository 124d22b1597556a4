import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.foreign import read_model
from tests.models.onnx_graph.networks import HEIGHT, WIDTH, bring_in, network, point_outside


def test_an_open_layout_or_size_is_asked_for_and_then_taken():
    model = network(dims=["batch", "a", "b", "c"])
    with pytest.raises(InvalidModel, match="Say layout=nchw"):
        bring_in(model)
    with pytest.raises(InvalidModel, match="Give size=HEIGHTxWIDTH"):
        bring_in(model, layout="nchw")
    _, wrapped = bring_in(model, layout="nchw", size=(HEIGHT, WIDTH))
    assert wrapped.get_inputs()[0].shape == ["N", HEIGHT, WIDTH, 3]


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({}, {"size": (9, 9)}, "takes images of 6x5 pixels; size says 9x9"),
        ({}, {"layout": "nhwc"}, "three colour channels in the layout nhwc"),
        ({"dims": ["batch", 1, HEIGHT, WIDTH]}, {}, "three colour channels"),
        ({"dims": ["batch", 90]}, {}, "four axes"),
        (
            {"element": TensorProto.FLOAT},
            {"input_name": "x"},
            "has no input 'x'; it has input. Correct the option input",
        ),
        ({}, {"output_name": "y"}, "has no output 'y'; it has output. Correct the option output"),
        ({}, {"std": (0.2, 0, 0.2)}, "mean and std are three numbers"),
        ({}, {"mean": (0.2,)}, "mean and std are three numbers"),
        ({}, {"output_kind": "probabilities"}, "Say output_kind=logits"),
        ({"kind": "probabilities"}, {"output_kind": "logits"}, "Say output_kind=probabilities"),
        ({"batch": 1, "flatten": False}, {}, "batch axis"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_the_option_that_helps(changes, options, says):
    with pytest.raises(InvalidModel, match=says):
        bring_in(network(**changes), **options)


def test_two_outputs_must_be_told_apart():
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("scale", TensorProto.FLOAT, ["batch", 90]))
    with pytest.raises(InvalidModel, match=r"2 outputs \(output, scale\). Name the right one with the option output"):
        bring_in(model)
    _, wrapped = bring_in(model, output_name="output")
    assert wrapped.get_outputs()[0].shape == ["N", 4]


def test_a_graph_that_needs_more_than_images_is_refused():
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, [1]))
    with pytest.raises(InvalidModel, match="also needs age"):
        bring_in(model, input_name="input")


def test_whole_numbers_as_pixels_are_refused():
    model = network()
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    with pytest.raises(InvalidModel, match="floating-point pixels; it takes INT32"):
        bring_in(model)


def test_a_batch_too_large_to_try_is_refused():
    with pytest.raises(InvalidModel, match="at most 50,000,000 pixels; the input 'input' takes 60,000,000"):
        bring_in(network(dims=["batch", 3, "height", "width"]), size=(6_000, 10_000))
    with pytest.raises(InvalidModel, match="at most 50,000,000 pixels"):
        bring_in(network(batch=1_700_000))


def test_an_answer_that_is_not_one_row_an_image_is_refused():
    model = network(names=("input", "row"))
    model.graph.node.append(helper.make_node("ReduceSum", ["row"], ["answer"], keepdims=0))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("answer", TensorProto.FLOAT, []))
    with pytest.raises(InvalidModel, match="'answer' must be an array of numbers, one row an image"):
        bring_in(model)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_bytes_that_are_no_model_are_refused(content):
    with pytest.raises(InvalidModel, match="ONNX model"):
        read_model(content)


def test_an_old_operator_set_is_refused_with_the_way_out():
    with pytest.raises(InvalidModel, match=r"opset 7; 8 is the oldest .* onnx\.version_converter"):
        bring_in(network(opset=7))


def weights_of_a_function(model):
    constant = numpy_helper.from_array(np.zeros(4, np.float32), "bias")
    nodes = [helper.make_node("Constant", [], ["b"], value=constant), helper.make_node("Add", ["x", "b"], ["y"])]
    opsets = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("theirs", "shifted", ["x"], ["y"], nodes, opsets))
    return model.functions[0].node[0].attribute[0].t


def weights_of_a_constant(model):
    constant = numpy_helper.from_array(np.zeros(4, np.float32), "bias")
    model.graph.node.append(helper.make_node("Constant", [], ["unused"], value=constant))
    return model.graph.node[-1].attribute[0].t


def sparse_weights(model):
    values = numpy_helper.from_array(np.ones(1, np.float32), "bias")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([2]), "where"), [4])
    )
    return model.graph.sparse_initializer[0].values


@pytest.mark.parametrize(
    "tensor_of",
    [lambda model: model.graph.initializer[0], weights_of_a_function, weights_of_a_constant, sparse_weights],
)
def test_weights_outside_of_the_bytes_are_never_read_wherever_the_model_names_them(tmp_path, tensor_of, monkeypatch):
    model = network()
    tensor = tensor_of(model)
    (tmp_path / "secret.data").write_bytes(b"\x00" * 10_000)
    monkeypatch.chdir(tmp_path)  # where a runtime would look for it
    data = point_outside(model, tensor, "secret.data").SerializeToString()
    with pytest.raises(InvalidModel, match=r"one file; it keeps '\w+' outside of itself"):
        bring_in(onnx.load_model_from_string(data))
