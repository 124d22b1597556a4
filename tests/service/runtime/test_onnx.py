"""What a graph must be to be served, tried on real graphs with the real runtime."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from models.calibration.manifest import InputSize
from service.errors import InvalidBundle
from service.runtime.onnx import MAX_BATCH, OnnxRunner
from tests.service.bundles import HEIGHT, WIDTH, linear_graph

SIZE = InputSize(height=HEIGHT, width=WIDTH)
RNG = np.random.default_rng(3)
WEIGHT = RNG.normal(size=(HEIGHT * WIDTH * 3, 4)).astype(np.float32)


def graph(edit: Callable[[onnx.ModelProto], None] = lambda model: None, weight: np.ndarray = WEIGHT) -> bytes:
    model = linear_graph(weight, np.zeros(4))
    edit(model)
    return bytes(model.SerializeToString())


def runner(model: bytes, *, num_classes: int = 4, size: InputSize = SIZE) -> OnnxRunner:
    return OnnxRunner(model, num_classes=num_classes, input_size=size)


def dimension(model: onnx.ModelProto, axis: int) -> onnx.TensorShapeProto.Dimension:
    return model.graph.input[0].type.tensor_type.shape.dim[axis]


def external(model: onnx.ModelProto, location: str) -> None:
    weight = next(each for each in model.graph.initializer if each.name == "weight")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)


def test_logits_are_those_of_numpy_also_beyond_one_batch() -> None:
    images = RNG.integers(0, 256, size=(2 * MAX_BATCH + 5, HEIGHT, WIDTH, 3), dtype=np.uint8)
    z = images.reshape(len(images), -1).astype(np.float32) / np.float32(255) @ WEIGHT
    np.testing.assert_allclose(runner(graph()).run(images), z - z.mean(axis=1, keepdims=True), atol=1e-4)


@pytest.mark.parametrize("model", [b"", b"garbage", graph()[:200]])
def test_bytes_that_are_no_graph_are_refused(model: bytes) -> None:
    with pytest.raises(InvalidBundle, match=r"model\.onnx"):
        runner(model)


@pytest.mark.parametrize("where", ["weights.bin", "../weights.bin", "{folder}/weights.bin"])
def test_weights_outside_of_the_graph_are_refused_even_where_the_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / "weights.bin").write_bytes(WEIGHT.tobytes())
    monkeypatch.chdir(tmp_path / "inner")
    assert os.path.exists(where.format(folder=tmp_path))  # noqa: PTH110 - as the runtime would look for it
    with pytest.raises(InvalidBundle, match="Export it as one file"):
        runner(graph(lambda model: external(model, where.format(folder=tmp_path))))


def test_a_graph_of_another_input_size_is_refused() -> None:
    with pytest.raises(InvalidBundle, match=r"must take one input uint8 \(N, 9, 8, 3\)"):
        runner(graph(), size=InputSize(height=9, width=WIDTH))


def test_a_graph_that_only_fits_by_a_free_dimension_fails_its_dry_run() -> None:
    def free(model: onnx.ModelProto) -> None:
        dimension(model, 1).dim_param = "height"

    with pytest.raises(InvalidBundle, match="does not run on two images"):
        runner(graph(free), size=InputSize(height=9, width=WIDTH))


def test_a_graph_for_one_image_at_a_time_is_refused() -> None:
    def fixed(model: onnx.ModelProto) -> None:
        dimension(model, 0).dim_value = 1

    with pytest.raises(InvalidBundle, match="does not run on two images"):
        runner(graph(fixed))


def test_a_graph_of_floats_is_refused() -> None:
    def floats(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT

    with pytest.raises(InvalidBundle, match=r"it takes images tensor\(float\)"):
        runner(graph(floats))


def test_a_graph_of_another_number_of_classes_is_refused() -> None:
    with pytest.raises(InvalidBundle, match=r"must be \(N, 5\)"):
        runner(graph(), num_classes=5)


def test_a_graph_without_the_output_logits_is_refused() -> None:
    def renamed(model: onnx.ModelProto) -> None:
        del model.graph.output[0]

    with pytest.raises(InvalidBundle, match="must have an output 'logits'; it has scores"):
        runner(graph(renamed))


def test_a_graph_that_gives_no_finite_logits_is_refused() -> None:
    with pytest.raises(InvalidBundle, match="not finite"):
        runner(graph(weight=np.full_like(WEIGHT, np.float32(3e38))))


def test_what_is_wrong_with_a_graph_is_said_once_and_not_on_the_console_too(capfd: pytest.CaptureFixture[str]) -> None:
    def free(model: onnx.ModelProto) -> None:
        dimension(model, 1).dim_param = "height"

    with pytest.raises(InvalidBundle, match="does not run"):
        runner(graph(free), size=InputSize(height=9, width=WIDTH))
    assert capfd.readouterr() == ("", "")
