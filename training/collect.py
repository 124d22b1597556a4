"""Raw logits of labelled images, as the calibration sees them."""

import numpy as np
import torch

from models.calibration.types import FloatArray, LogitSet, Split
from models.images import UInt8Array
from models.networks.classifier import Classifier
from training.data import ImageSet

BATCH = 512


@torch.inference_mode()
def raw_logits(classifier: Classifier, images: UInt8Array) -> FloatArray:
    """float32 raw logits `(N, C)` of uint8 images `(N, H, W, 3)`, the network in evaluation mode."""
    classifier.eval()
    device = classifier.mean.device
    parts = [
        classifier(torch.from_numpy(images[start : start + BATCH]).to(device)).float().cpu().numpy()
        for start in range(0, len(images), BATCH)
    ]
    return np.concatenate(parts) if parts else np.empty((0, classifier.head.out_features), np.float32)


def collect(classifier: Classifier, data: ImageSet, *, split: Split, drawn: str) -> LogitSet:
    """The labelled logits of a set of images."""
    return LogitSet(logits=raw_logits(classifier, data.images), labels=data.labels, split=split, drawn=drawn)
