"""The two bundles that the serving benchmark serves, and the requests that are sent to them.

`resnet32` is ResNet-32 with 100 classes on 32 x 32 images, as training exports it, with random weights; `null` has the
same inputs and outputs and a network that computes nothing, so that what is left is the server's own work.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from PIL import Image

from benchmarks.serving_peers.graph import session
from models.calibration.choose import fit_named
from models.calibration.manifest import MANIFEST_FILE, MODEL_FILE, InputSize, Manifest
from models.calibration.prior import Ledger
from models.calibration.types import Calibration, ClassPrior, FloatArray, LogitSet, RawLogits
from models.onnx_graph.graph import IMAGES, LOG_PRIOR, SCORES, images_input, overridable, standardise
from training.bundle import write_bundle

RESNET32, NULL = "resnet32", "null"
CLASSES, SIZE = 100, 32
COUNTS = np.maximum((500 * 0.01 ** (np.arange(CLASSES) / (CLASSES - 1))).astype(int), 1)  # CIFAR-100-LT, ratio 100
PRIOR = "training"  # an explicit one, and not the one that the graph has built in
OCTETS = "application/octet-stream"
JSON = "application/json"
HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request as wrk sends it, how the scores `(100,)` are read from its answer, and what they must be."""

    path: str
    body: bytes
    expected: FloatArray
    scores: Callable[[httpx.Response], Any]
    headers: dict[str, str] = field(default_factory=dict)


def bundles(folder: Path) -> dict[str, Path]:
    """The folders of both bundles, made where they are not there."""
    made = {name: folder / "bundles" / name for name in (RESNET32, NULL)}
    for name, path in made.items():
        if not path.exists():
            write(name, path)
    return made


def write(name: str, path: Path) -> None:
    """Write the bundle `resnet32` or `null`; its calibration is MARC, so that every class has its own scale."""
    ledger = Ledger.by_rule("cross-entropy", COUNTS)
    labelled = _calibration_set(ledger)
    calibration, _ = fit_named("marc")(labelled, ledger)
    manifest = Manifest(
        name=name,
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        input_size=InputSize(height=SIZE, width=SIZE),
        ledger=ledger,
        calibration=calibration,
        row_norms=np.ones(CLASSES),
    )
    model = _resnet32(calibration) if name == RESNET32 else _nothing(calibration)
    write_bundle(path, manifest, model=model, calibration_set=labelled)


def _calibration_set(ledger: Ledger) -> LogitSet:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(CLASSES), 20)
    logits = 3 * np.eye(CLASSES)[labels] + 2 * rng.normal(size=(labels.size, CLASSES))
    return LogitSet(
        logits=logits + ledger.implied_prior.log_probs, labels=labels, split="calibration", drawn="simulated"
    )


def _resnet32(calibration: Calibration) -> bytes:
    import torch  # not needed where the bundles are there

    from models.networks.classifier import Architecture, Classifier
    from training.export import check_parity, to_onnx

    torch.manual_seed(0)
    half = torch.full((3,), 0.5)
    classifier = Classifier(Architecture(backbone=RESNET32), CLASSES, mean=half, std=half / 2)
    with torch.no_grad():  # random layers make huge logits, and scores that are all 0 or 1 would compare badly
        classifier.head.weight.mul_(4 / classifier.eval()(torch.from_numpy(image()[None])).std())
    model = to_onnx(classifier, calibration, height=SIZE, width=SIZE)
    check_parity(model, classifier, image()[None])
    return model


def _nothing(calibration: Calibration) -> bytes:
    """The first 100 bytes of an image are its logits."""
    constants = {"begin": [0], "end": [CLASSES], "columns": [1]}
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [IMAGES], ["flat"]),
            helper.make_node("Slice", ["flat", "begin", "end", "columns"], ["first"]),
            helper.make_node("Cast", ["first"], ["z"], to=TensorProto.FLOAT),
        ],
        NULL,
        [images_input(SIZE, SIZE)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in constants.items()],
    )
    network: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return standardise(network, "z", calibration)


def image() -> np.ndarray:
    """uint8 `(32, 32, 3)`: smooth with some noise, because PNG takes longer for a photograph than for noise alone."""
    rng = np.random.default_rng(7)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    smooth = np.stack([rows, columns, (rows + columns) / 2], axis=-1) * 200 + 20
    return np.clip(smooth + 6 * rng.normal(size=smooth.shape), 0, 255).astype(np.uint8)


def ours(folder: Path, network: str) -> dict[str, Call]:
    """The ways of asking our server, each with an explicit prior.

    Args: folder, the bundle.
    """
    pixels, law = image(), ClassPrior.from_weights(COUNTS)
    scores, infer = f"/v1/models/{network}/scores?prior={PRIOR}", f"/v2/models/{network}/infer"
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, format="PNG")
    length, binary = _oip(pixels, binary=True)
    sent = {
        "bytes": (scores, pixels.tobytes(), {"Content-Type": OCTETS}, of_results),
        "png": (scores, png.getvalue(), {"Content-Type": "image/png"}, of_results),
        "oip": (infer, binary, {"Content-Type": OCTETS, HEADER_LENGTH: str(length)}, of_binary),
        "oip-json": (infer, _oip(pixels, binary=False)[1], {"Content-Type": JSON}, of_outputs),
    }
    expected = expected_scores(folder, pixels, law)
    calls = {
        kind: Call(path=path, body=body, headers=headers, scores=read, expected=expected)
        for kind, (path, body, headers, read) in sent.items()
    }
    # float32, as a network gives them: in JSON they have seventeen digits
    logits = np.random.default_rng(8).normal(scale=4, size=CLASSES).astype(np.float32)
    calls["logits"] = Call(
        path=scores,
        body=json.dumps({"logits": logits.tolist()}).encode(),
        headers={"Content-Type": JSON},
        scores=of_results,
        expected=_calibration(folder).debias(RawLogits(logits[None])).adjust(law).scores()[0],
    )
    return calls


def expected_scores(folder: Path, pixels: np.ndarray, target: ClassPrior | None = None) -> FloatArray:
    """What bare onnxruntime makes of one image, `(100,)`; uniform target if None."""
    _, log_prior = overridable(_calibration(folder), target)[LOG_PRIOR]
    network = session(folder / MODEL_FILE)
    return np.asarray(network.run([SCORES], {IMAGES: pixels[None], LOG_PRIOR: log_prior})[0][0], dtype=np.float64)


def _calibration(folder: Path) -> Calibration:
    return Manifest.from_json(json.loads((folder / MANIFEST_FILE).read_text())).calibration


def plain(path: str, folder: Path, form: str) -> Call:
    """What a server without our routes is sent: the pixels as bytes, or as base64 in the JSON that it wants.

    Args: folder, the bundle; form, `bytes`, or the peer whose JSON it is.
    """
    pixels = image().tobytes()
    encoded = base64.b64encode(pixels).decode()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [encoded]}
    document, read = {
        "bytes": (None, of_scores),
        "litserve": ({"image": encoded}, of_scores),
        "mlserver": ({"inputs": [tensor]}, of_outputs),
        "bentoml": ({"images": [encoded]}, of_rows),
    }[form]
    body, kind = (pixels, OCTETS) if document is None else (json.dumps(document).encode(), JSON)
    expected = expected_scores(folder, image())
    return Call(path=path, body=body, headers={"Content-Type": kind}, scores=read, expected=expected)


def _oip(pixels: np.ndarray, *, binary: bool) -> tuple[int, bytes]:
    """Length of the JSON, and the body: the tensor as bytes after the JSON, or flat inside."""
    tensor: dict[str, Any] = {"name": IMAGES, "shape": [1, *pixels.shape], "datatype": "UINT8"}
    output: dict[str, Any] = {"name": SCORES}
    if binary:
        tensor["parameters"], output["parameters"] = {"binary_data_size": pixels.size}, {"binary_data": True}
    else:
        tensor["data"] = pixels.reshape(-1).tolist()
    header = json.dumps({"inputs": [tensor], "outputs": [output], "parameters": {"prior": PRIOR}}).encode()
    return len(header), header + (pixels.tobytes() if binary else b"")


def of_results(answer: httpx.Response) -> Any:
    return answer.json()["results"][0]["scores"]


def of_outputs(answer: httpx.Response) -> Any:
    return answer.json()["outputs"][0]["data"]


def of_scores(answer: httpx.Response) -> Any:
    return answer.json()["scores"]


def of_rows(answer: httpx.Response) -> Any:
    return answer.json()[0]


def of_binary(answer: httpx.Response) -> Any:
    return np.frombuffer(answer.content[int(answer.headers[HEADER_LENGTH]) :], dtype="<f4")
