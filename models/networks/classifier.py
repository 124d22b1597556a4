"""Pixels in, raw logits out: normalisation, backbone and head in one module, so that export loses nothing."""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from models.calibration.errors import CalibrationError
from models.networks.backbones import build_backbone
from models.networks.heads import CosineHead, LinearHead, RectifiedHead
from models.networks.nbn import NbnConfig, folded_state, normalize_batchnorm


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a classifier is made of.

    Args: backbone, see `build_backbone`. norm, `bn` or `nbn` (with `nbn` saying how). head, `linear` or `cosine` (with
        its scale). rectify, NBN's logit rectification after the head.
    """

    backbone: str
    norm: Literal["bn", "nbn"] = "bn"
    nbn: NbnConfig = field(default_factory=NbnConfig)
    head: Literal["linear", "cosine"] = "linear"
    cosine_scale: float = 30.0
    rectify: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("bn", "nbn"):
            raise CalibrationError(f"norm is bn or nbn; got {self.norm!r}.")
        if self.head not in ("linear", "cosine"):
            raise CalibrationError(f"head is linear or cosine; got {self.head!r}.")
        if not 0 < self.cosine_scale < float("inf"):
            raise CalibrationError(f"cosine_scale is positive and finite; got {self.cosine_scale!r}.")


class Classifier(nn.Module):
    """uint8 RGB images `(N, H, W, 3)` to raw logits `(N, C)`.

    Args: mean and std `(3,)` of the training pixels, scaled to [0, 1]. weights, for the backbone (`build_backbone`).
    """

    def __init__(
        self, architecture: Architecture, num_classes: int, *, mean: Tensor, std: Tensor, weights: str | None = None
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.backbone = build_backbone(architecture.backbone, weights=weights)
        if architecture.norm == "nbn":
            normalize_batchnorm(self.backbone, config=architecture.nbn)
        self.head = build_head(architecture, self.backbone.num_features, num_classes)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """uint8 RGB images `(N, H, W, 3)` to features `(N, D)`, the input of the head."""
        x = (images.float() / 255 - self.mean) / self.std
        return self.backbone(x.permute(0, 3, 1, 2))


def build_head(
    architecture: Architecture, num_features: int, num_classes: int
) -> LinearHead | CosineHead | RectifiedHead:
    """The head of an architecture with fresh weights."""
    head: LinearHead | CosineHead
    if architecture.head == "cosine":
        head = CosineHead(num_features, num_classes, scale=architecture.cosine_scale)
    else:
        head = LinearHead(num_features, num_classes)
    return RectifiedHead(head, num_classes) if architecture.rectify else head


def folded(classifier: Classifier) -> Classifier:
    """A network for export that computes the same in evaluation mode: NBN as ordinary BatchNorm, a rectified linear
    head as a linear head."""
    head = classifier.head
    linear = isinstance(head, RectifiedHead) and isinstance(head.head, LinearHead)
    plain_head = head.folded() if linear else head
    architecture = replace(classifier.architecture, norm="bn", rectify=isinstance(plain_head, RectifiedHead))
    num_classes = classifier.head.row_norms.numel()
    plain = Classifier(architecture, num_classes, mean=classifier.mean, std=classifier.std)
    plain.backbone.load_state_dict(folded_state(classifier.backbone))
    plain.head.load_state_dict(plain_head.state_dict())
    return plain.eval()


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(3,)` of uint8 images `(N, H, W, 3)` in [0, 1]; a constant channel gets 1."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    # counted by level: as floating-point numbers the pixels would take eight times the memory
    counts = torch.stack([torch.bincount(images[..., channel].reshape(-1), minlength=256) for channel in range(3)])
    counts = counts.double()
    total = counts.sum(dim=1)
    mean = counts @ levels / total
    std = ((counts * (levels - mean[:, None]) ** 2).sum(dim=1) / (total - 1)).sqrt()
    return mean, torch.where((counts > 0).sum(dim=1) > 1, std, 1.0)
