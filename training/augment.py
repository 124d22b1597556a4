"""Augmentation of whole batches of small images, each image with its own draw, on the device where the images are."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from models.calibration.errors import CalibrationError
from training.augment_operations import OPERATIONS, apply_operation

Policy = Literal["none", "autoaugment", "randaugment"]

# The CIFAR-10 policy of AutoAugment (Cubuk et al., CVPR 2019): an image gets one of the rows, each operation of it with
# its probability and at its magnitude, a bin of 10.
AUTOAUGMENT_CIFAR10: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate-x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear-y", 0.5, 8), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.5, 0), ("equalize", 0.9, 0)),
    (("shear-y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 0), ("equalize", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate-x", 0.5, 8)),
    (("equalize", 0.3, 0), ("autocontrast", 0.4, 0)),
    (("translate-y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 0)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 0), ("equalize", 0.6, 0)),
    (("color", 0.9, 9), ("equalize", 0.6, 0)),
    (("autocontrast", 0.8, 0), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 0)),
    (("translate-y", 0.9, 9), ("translate-y", 0.7, 9)),
    (("autocontrast", 0.9, 0), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 0), ("invert", 0.1, 0)),
    (("translate-y", 0.7, 9), ("autocontrast", 0.9, 0)),
)
AUTOAUGMENT_BINS = 10
# RandAugment (Cubuk et al., 2020): two operations, each drawn alike, all at bin 9 of 31.
RANDAUGMENT_OPERATIONS = ("identity", *(name for name in OPERATIONS if name != "invert"))
RANDAUGMENT_ROUNDS, RANDAUGMENT_BIN, RANDAUGMENT_BINS = 2, 9, 31


class InvalidAugmentation(CalibrationError):
    """An augmentation that cannot be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Crop, flip, policy, Cutout, in this order (that of the MARC and BALMS code).

    Args: padding, random shift by up to so many pixels, black comes in. flip, mirror half of the images. policy,
        colours and shapes; what a shape leaves empty becomes grey (128). cutout, side in pixels of one black
        square, its centre anywhere on the image (DeVries and Taylor, 2017). jitter, for images in files only, which
        are cropped and scaled at random and take flip and jitter but not the rest: brightness, contrast and
        saturation by up to 40 %.
    """

    padding: int = 0
    flip: bool = False
    policy: Policy = "none"
    cutout: int = 0
    jitter: bool = False

    def __post_init__(self) -> None:
        rules = {
            "padding is at least 0": self.padding >= 0,
            f"policy is one of {', '.join(get_args(Policy))}": self.policy in get_args(Policy),
            "cutout is at least 0": self.cutout >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise InvalidAugmentation(f"{rule}; got {getattr(self, rule.split()[0])!r}.")


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """uint8 `(N, H, W, 3)` to uint8 `(N, H, W, 3)` on the same device.

    Args: generator, on the CPU: what is drawn is a few numbers an image, and so is the same for every device.
    """
    if augmentation.padding:
        images = _shift(images, augmentation.padding, generator)
    if augmentation.flip:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(2), images)
    if augmentation.policy == "autoaugment":
        images = _autoaugment(images, generator)
    elif augmentation.policy == "randaugment":
        images = _randaugment(images, generator)
    if augmentation.cutout:
        images = _cutout(images, augmentation.cutout, generator)
    return images


def _shift(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    num, height, width, _ = images.shape
    padded = F.pad(images, (0, 0, *4 * (padding,)))
    down, right = torch.randint(0, 2 * padding + 1, (2, num, 1), generator=generator).to(images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    item = torch.arange(num, device=images.device)
    return padded[item[:, None, None], rows[:, :, None], columns[:, None, :]]


def _cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    num, height, width, _ = images.shape

    def covered(length: int) -> Tensor:
        centre = torch.randint(0, length, (num, 1), generator=generator)
        places = torch.arange(length)
        return ((places >= centre - side // 2) & (places < centre - side // 2 + side)).to(images.device)

    hole = covered(height)[:, :, None] & covered(width)[:, None, :]
    return images.masked_fill(hole[..., None], 0)


def _autoaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    row = torch.randint(0, len(AUTOAUGMENT_CIFAR10), (len(images),), generator=generator)
    images = images.clone()
    for place in range(2):
        applied = torch.rand(len(images), generator=generator)
        sign = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0)
        wanted: dict[str, list[tuple[int, int, float]]] = {}  # operation: (policy row, bin, probability)
        for index, policy in enumerate(AUTOAUGMENT_CIFAR10):
            name, probability, magnitude = policy[place]
            wanted.setdefault(name, []).append((index, magnitude, probability))
        for name, choices in wanted.items():
            bins = torch.full((len(AUTOAUGMENT_CIFAR10),), 0)
            chance = torch.zeros(len(AUTOAUGMENT_CIFAR10))
            for index, magnitude, probability in choices:
                bins[index], chance[index] = magnitude, probability
            _apply(images, name, applied < chance[row], bins[row], sign, AUTOAUGMENT_BINS)
    return images


def _randaugment(images: Tensor, generator: torch.Generator) -> Tensor:
    images = images.clone()
    for _ in range(RANDAUGMENT_ROUNDS):
        operation = torch.randint(0, len(RANDAUGMENT_OPERATIONS), (len(images),), generator=generator)
        sign = torch.where(torch.rand(len(images), generator=generator) < 0.5, -1.0, 1.0)
        bins = torch.full((len(images),), RANDAUGMENT_BIN)
        for index, name in enumerate(RANDAUGMENT_OPERATIONS):
            if name != "identity":
                _apply(images, name, operation == index, bins, sign, RANDAUGMENT_BINS)
    return images


def _apply(images: Tensor, name: str, chosen: Tensor, bins: Tensor, sign: Tensor, num_bins: int) -> None:
    """One operation on the chosen images, in place."""
    items = chosen.nonzero()[:, 0]
    if not len(items):
        return
    strength = magnitude_of(name, bins[items], num_bins, images.shape[1], images.shape[2])
    if OPERATIONS[name].signed:
        strength = strength * sign[items]
    on_device = items.to(images.device)
    images[on_device] = apply_operation(name, images[on_device], strength.to(images.device))


def magnitude_of(name: str, bins: Tensor, num_bins: int, height: int, width: int) -> Tensor:
    """The strength of an operation at bins `(n,)` of 0 to num_bins - 1: linear between the operation's two ends; those
    of a translation are shares of the image's side, posterise rounds to whole bits."""
    first, last = OPERATIONS[name].first, OPERATIONS[name].last
    side = {"translate-x": width, "translate-y": height}.get(name, 1)
    strength = first + (last - first) * side * bins / (num_bins - 1)
    if name == "posterize":
        return strength.round()
    return strength.trunc() if name.startswith("translate") else strength
