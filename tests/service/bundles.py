"""Small real bundles: a linear ONNX graph over the pixels, written by the same contract as training's."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper

from models.calibration.choose import choose
from models.calibration.manifest import CALIBRATION_SET_FILE, MANIFEST_FILE, MODEL_FILE, InputSize, Manifest
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, LogitSet

CLASSES = ("ant", "bee", "cat", "dog")
COUNTS = (1000, 200, 50, 10)
HEIGHT, WIDTH = 6, 8
OVERRIDABLE = ("scale", "offset", "log_prior")


@dataclass(frozen=True, kw_only=True)
class Made:
    """A bundle on disk, and what a test compares with: the weights of its graph and its manifest."""

    path: Path
    manifest: Manifest
    weight: np.ndarray
    bias: np.ndarray

    def raw(self, pixels: np.ndarray) -> np.ndarray:
        """Raw centred logits `(N, C)` of uint8 `(N, H, W, 3)`, in NumPy."""
        z = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(255) @ self.weight + self.bias
        return np.asarray(z - z.mean(axis=1, keepdims=True))

    def scores(self, raw: np.ndarray, target: Sequence[float] | None = None) -> np.ndarray:
        """The formula of the service, written out: softmax(scale z~ + offset + log target - log r)."""
        return formula(self.manifest.to_json()["calibration"], raw, target)


def formula(calibration: dict, raw: np.ndarray, target: Sequence[float] | None = None) -> np.ndarray:
    centred = raw - raw.mean(axis=1, keepdims=True)
    d = np.array(calibration["scale"]) * centred + np.array(calibration["offset"])
    law = np.full(raw.shape[1], 1 / raw.shape[1]) if target is None else np.array(target) / np.sum(target)
    with np.errstate(divide="ignore"):
        a = d + np.log(law) - np.log(calibration["implied_prior"])
    weights = np.exp(a - a.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def write_bundle(
    folder: Path,
    *,
    name: str = "pets",
    classes: Sequence[str] = CLASSES,
    counts: Sequence[int] = COUNTS,
    trained_with: str = "cross-entropy",
    network: bool = True,
    calibration_set: bool = True,
    seed: int = 0,
    edit_graph: Callable[[onnx.ModelProto], None] = lambda graph: None,
) -> Made:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(HEIGHT * WIDTH * 3, len(classes))).astype(np.float32)
    bias = np.log(np.array(counts, dtype=np.float32))
    ledger = Ledger.by_rule(trained_with, counts)
    labelled, calibration = _fitted(tuple(counts), trained_with, seed)
    files = {}
    if network:
        graph = linear_graph(weight, bias)
        edit_graph(graph)
        (folder / MODEL_FILE).write_bytes(graph.SerializeToString())
        files[MODEL_FILE] = _digest(folder / MODEL_FILE)
    if calibration_set:
        arrays = {"logits": labelled.logits, "labels": labelled.labels, "split": "calibration", "drawn": "test"}
        np.savez(folder / CALIBRATION_SET_FILE, **arrays)
        files[CALIBRATION_SET_FILE] = _digest(folder / CALIBRATION_SET_FILE)
    manifest = Manifest(
        name=name,
        class_names=tuple(classes),
        input_size=InputSize(height=HEIGHT, width=WIDTH) if network else None,
        ledger=ledger,
        calibration=calibration,
        row_norms=np.ones(len(classes)),
        files=files,
    )
    (folder / MANIFEST_FILE).write_bytes(orjson.dumps(manifest.to_json()))
    return Made(path=folder, manifest=manifest, weight=weight, bias=bias)


@lru_cache
def _fitted(counts: tuple[int, ...], trained_with: str, seed: int) -> tuple[LogitSet, Calibration]:
    """A calibration set of 25 examples a class, and what `choose` makes of it; fitted once for all tests."""
    rng = np.random.default_rng(seed)
    ledger = Ledger.by_rule(trained_with, counts)
    labels = np.repeat(np.arange(len(counts)), 25)
    logits = 3 * np.eye(len(counts))[labels] + rng.normal(size=(labels.size, len(counts))) * 2
    labelled = LogitSet(
        logits=logits + ledger.implied_prior.log_probs, labels=labels, split="calibration", drawn="test"
    )
    return labelled, choose(labelled, ledger).calibration


def edit_manifest(folder: Path, edit: Callable[[dict], None]) -> None:
    document = orjson.loads((folder / MANIFEST_FILE).read_bytes())
    edit(document)
    (folder / MANIFEST_FILE).write_bytes(orjson.dumps(document))


def linear_graph(weight: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """uint8 (N, H, W, 3) to `logits` and `scores`, as design section 3 has them."""
    classes = weight.shape[1]
    constants = {
        "white": np.array(255, dtype=np.float32),
        "flat": np.array([0, -1], dtype=np.int64),
        "weight": weight,
        "bias": bias.astype(np.float32),
        "scale": np.ones((1, classes), dtype=np.float32),
        "offset": np.zeros((1, classes), dtype=np.float32),
        "log_prior": np.zeros((1, classes), dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["as_float", "white"], ["normalised"]),
        helper.make_node("Reshape", ["normalised", "flat"], ["features"]),
        helper.make_node("MatMul", ["features", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["uncentred"]),
        helper.make_node("ReduceMean", ["uncentred"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("Sub", ["uncentred", "mean"], ["logits"]),
        helper.make_node("Mul", ["logits", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["debiased"]),
        helper.make_node("Add", ["debiased", "log_prior"], ["adjusted"]),
        helper.make_node("Softmax", ["adjusted"], ["scores"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", HEIGHT, WIDTH, 3]),
            *(helper.make_tensor_value_info(each, TensorProto.FLOAT, [1, classes]) for each in OVERRIDABLE),
        ],
        [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["N", classes]) for each in ("logits", "scores")],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
