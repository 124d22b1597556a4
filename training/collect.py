"""Raw logits of labelled images, as the calibration sees them."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from models.calibration.types import FloatArray, LogitSet, Split
from models.images import UInt8Array
from models.networks.classifier import Classifier
from training.data import ImageFiles, ImageSet
from training.data.feed import evaluation_batches
from training.feed import Feed

BATCH, BATCH_OF_FILES = 512, 64


def raw_logits(classifier: Classifier, images: UInt8Array | ImageFiles) -> FloatArray:
    """float32 raw logits `(N, C)` of uint8 images `(N, H, W, 3)` or of files, the network in evaluation mode."""
    return logits_and_strengths(classifier, images)[0]


@torch.inference_mode()
def logits_and_strengths(classifier: Classifier, images: UInt8Array | ImageFiles) -> tuple[FloatArray, FloatArray]:
    """float32 raw logits `(N, C)` and the lengths of the features `(N,)` of uint8 images `(N, H, W, 3)` or of files."""
    classifier.eval()
    device = classifier.mean.device
    parts = [_forward(classifier, batch.to(device)) for batch in _in_batches(images)]
    logits, strengths = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
    return logits, strengths


def pixels_of(data: ImageSet | ImageFiles) -> UInt8Array | ImageFiles:
    """What the functions here take: arrays from memory, files as they are."""
    return data.images if isinstance(data, ImageSet) else data


def some_images(data: ImageSet | ImageFiles, num: int) -> UInt8Array:
    """About so many images `(n, H, W, 3)`, evenly spaced."""
    some = data.subset(np.arange(0, len(data), max(1, len(data) // num))[:num])
    return np.concatenate([batch.numpy() for batch in _in_batches(pixels_of(some))])


def collect(classifier: Classifier, data: ImageSet | ImageFiles, *, split: Split, drawn: str) -> LogitSet:
    """The labelled logits of a set of images."""
    return LogitSet(logits=raw_logits(classifier, pixels_of(data)), labels=data.labels, split=split, drawn=drawn)


def collect_augmented(
    classifier: Classifier,
    feed: Feed,
    data: ImageSet | ImageFiles,
    *,
    passes: int,
    seed: int,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> LogitSet:
    """The labelled logits of the training images seen through their augmentation, so many passes, in the precision of
    training: what MARC's published fit takes. The network stays in evaluation mode (the official code lets its batch
    statistics drift)."""
    classifier.eval()
    device = classifier.mean.device
    rows = list(torch.arange(len(data.labels)).split(BATCH)) * passes
    parts = []
    mixed = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
    with torch.inference_mode(), mixed:
        for images in feed.epoch(rows, seed=seed, first_step=0):
            parts.append(_forward(classifier, images[0].to(device))[0].cpu().numpy())
    return LogitSet(
        logits=np.concatenate(parts),
        labels=np.tile(data.labels, passes),
        split="train",
        drawn=f"the training images through their augmentation, {passes} passes",
    )


def accuracy_by_class(classifier: Classifier, data: ImageSet | ImageFiles) -> FloatArray:
    """Share of right top-1 answers for each class with an example."""
    right = raw_logits(classifier, pixels_of(data)).argmax(axis=1) == data.labels
    counts = np.bincount(data.labels)
    return np.asarray(np.bincount(data.labels, weights=right)[counts > 0] / counts[counts > 0], dtype=np.float64)


def _forward(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    features = classifier.features(images)
    return classifier.head(features).float(), features.float().norm(dim=1)


def _in_batches(images: UInt8Array | ImageFiles) -> Iterator[Tensor]:
    if isinstance(images, ImageFiles):
        yield from evaluation_batches(images, BATCH_OF_FILES)
        return
    for start in range(0, max(len(images), 1), BATCH):
        yield torch.from_numpy(images[start : start + BATCH])
