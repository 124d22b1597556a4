"""From a trained classifier to the standard ONNX graph, checked against torch on real images."""

import logging
import warnings

import numpy as np
import onnxruntime as ort
import torch

from models.calibration.errors import CalibrationError
from models.calibration.types import Calibration, RawLogits
from models.images import UInt8Array
from models.networks.classifier import Classifier
from training.collect import raw_logits
from training.onnx_graph import IMAGES, LOGITS, quiet_session_options, standardise

MAX_DIFFERENCE = 1e-4  # between torch's and onnxruntime's centred float32 logits


class ParityError(CalibrationError):
    """The exported graph does not compute what the network computes."""


def to_onnx(classifier: Classifier, calibration: Calibration, *, height: int, width: int) -> bytes:
    """The serialised standard graph with a dynamic number of images."""
    classifier = classifier.eval().cpu()
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            classifier,
            (example,),
            input_names=[IMAGES],
            output_names=["raw_logits"],
            dynamic_shapes={IMAGES: {0: torch.export.Dim("N")}},
            dynamo=True,
            verbose=False,
        )
    return standardise(program.model_proto, "raw_logits", calibration)


def check_parity(model: bytes, classifier: Classifier, images: UInt8Array) -> float:
    """Largest absolute difference of the centred logits on these images.

    Raises: ParityError above 1e-4.
    """
    session = ort.InferenceSession(model, quiet_session_options(), providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run([LOGITS], {IMAGES: images})
    difference = float(np.abs(from_onnx - RawLogits(raw_logits(classifier, images)).values).max())
    if not difference <= MAX_DIFFERENCE:
        raise ParityError(
            f"onnxruntime and torch must agree to {MAX_DIFFERENCE:g} on the logits; they differ by {difference:g}. "
            "Nothing was exported."
        )
    return difference


class _quiet:
    """torch's exporter logs every optional package that it does not find, and warns of its own deprecations."""

    def __enter__(self) -> None:
        self._logger = logging.getLogger("torch.onnx")
        self._level = self._logger.level
        self._logger.setLevel(logging.ERROR)
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        self._warnings.__exit__(*error)
        self._logger.setLevel(self._level)
