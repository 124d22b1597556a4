"""From a trained classifier to the standard ONNX graph, checked against torch on real images."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from models.calibration.errors import CalibrationError
from models.calibration.types import Calibration
from models.images import UInt8Array
from models.networks.classifier import Classifier
from models.onnx_graph.graph import BATCH, IMAGES, centred_difference, standardise
from training.collect import raw_logits

# Between torch's and onnxruntime's centred float32 logits; of the largest logit where that is above 1.
MAX_DIFFERENCE = 1e-4
_RAW = "raw_logits"


class ParityError(CalibrationError):
    """The exported graph does not compute what the network computes."""


def to_onnx(classifier: Classifier, calibration: Calibration, *, height: int, width: int) -> bytes:
    """The serialised standard graph, in one file, with a dynamic number of images."""
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)  # two: the exporter takes a 1 for fixed
    with _quiet():
        program = torch.onnx.export(
            classifier.eval().cpu(),
            (example,),
            input_names=[IMAGES],
            output_names=[_RAW],
            dynamic_shapes={IMAGES: {0: torch.export.Dim(BATCH)}},
            external_data=False,
            verbose=False,
        )
    assert program is not None  # None is what the older exporter returns
    return standardise(program.model_proto, _RAW, calibration)


def check_parity(model: bytes, classifier: Classifier, images: UInt8Array) -> float:
    """Largest absolute difference of the centred logits on these images.

    Raises: ParityError above 1e-4, or above 1e-4 of the largest logit where logits are large.
    """
    logits = raw_logits(classifier, images)
    allowed = MAX_DIFFERENCE * max(1.0, float(np.abs(logits).max()))
    difference = centred_difference(model, images, logits)
    if not difference <= allowed:
        raise ParityError(
            f"onnxruntime and torch must agree to {allowed:g} on these logits; they differ by {difference:g}. "
            "Nothing was exported."
        )
    return difference


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter logs every optional package that it does not find, and warns of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
