import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.calibration.manifest import Manifest
from models.calibration.types import RawLogits
from models.onnx_graph.errors import InvalidModel
from models.onnx_graph.graph import session
from tests.models.onnx_graph.networks import (
    CLASSES,
    COUNTS,
    HEIGHT,
    IMAGES,
    MEAN,
    STD,
    WEIGHT,
    WIDTH,
    by_hand,
    labelled,
    network,
    point_outside,
)
from training.bundle import OutputExists
from training.onnx_import import import_onnx


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


def test_the_bundle_holds_the_wrapped_network_and_says_where_it_came_from(bring_in, tmp_path):
    model = network(layout="nhwc", kind="probabilities", dims=["batch", "height", "width", 3])
    manifest, wrapped = bring_in(model, output_kind="probabilities", size=(HEIGHT, WIDTH))
    (logits,) = wrapped.run(["logits"], {"images": IMAGES})
    np.testing.assert_allclose(logits, RawLogits(by_hand("nhwc")).values, atol=1e-4)  # float32, |z| < 10
    assert manifest.provenance["imported_from"] == "theirs.onnx"
    assert manifest.provenance["packages"]["onnx"] == onnx.__version__
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", "model.onnx"}


def test_a_refused_model_leaves_nothing_behind(bring_in, tmp_path):
    with pytest.raises(InvalidModel, match="Say output_kind=logits"):
        bring_in(network(), output_kind="probabilities")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.onnx"]


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
    point_outside(model, model.graph.initializer[0], location)
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


def test_a_model_without_a_network_is_its_logits_and_a_manifest(bring_in, tmp_path):
    manifest, wrapped = bring_in(logits=labelled())
    assert wrapped is None
    assert manifest.input_size is None
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"manifest.json", "calibration_set.npz"}
    document = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert document["input"] is None
    assert Manifest.from_json(document).class_names == CLASSES


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
