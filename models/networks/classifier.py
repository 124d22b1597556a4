"""Pixels in, raw logits out: normalisation, backbone and linear head in one module, so that export loses nothing."""

import torch
from torch import Tensor, nn

from models.networks.backbones import BACKBONES
from models.networks.heads import LinearHead


class Classifier(nn.Module):
    """uint8 RGB images `(N, H, W, 3)` to raw logits `(N, C)`.

    Args: backbone, a name of `BACKBONES`. mean and std `(3,)` of the training pixels, scaled to [0, 1].
    """

    def __init__(self, backbone: str, num_classes: int, *, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone = BACKBONES[backbone]()
        self.head = LinearHead(self.backbone.num_features, num_classes)
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    def forward(self, images: Tensor) -> Tensor:
        x = (images.float() / 255 - self.mean) / self.std
        return self.head(self.backbone(x.permute(0, 3, 1, 2)))


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation `(3,)` of uint8 images `(N, H, W, 3)` in [0, 1]; a constant channel gets 1."""
    pixels = images.reshape(-1, 3).double() / 255
    std = pixels.std(dim=0)
    return pixels.mean(dim=0), torch.where(std > 0, std, 1.0)
