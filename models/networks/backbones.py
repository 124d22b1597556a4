"""Feature extractors `(N, 3, H, W)` -> `(N, D)`."""

import torch.nn.functional as F
from torch import Tensor, nn

from models.calibration.errors import CalibrationError


class UnknownBackbone(CalibrationError):
    """No network of this name."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al., CVPR 2016): where the block halves
    the image, the shortcut takes every second pixel and fills the new channels with zeros."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.new_channels:
            half = self.new_channels // 2
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        return F.relu(out + x)


class ResNet32(nn.Module):
    """ResNet-32 for 32-pixel images: 3 stages of 5 blocks with 16, 32 and 64 channels, 64 features."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int = 5) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


class SmallNet(nn.Module):
    """Three convolutions with batch normalisation, 64 features: for images of a few pixels, such as 8x8 digits."""

    num_features = 64

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for in_channels, out_channels, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1)):
            layers += [
                nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(out_channels),
                nn.ReLU(inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        _init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))


def _init_convolutions(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)


SMALL, RESNET32, TIMM = "small", "resnet32", "timm/"
SMALL_BELOW = 16  # pixels of the shorter side: ResNet-32 would leave less than 4x4 of them
LARGE_ABOVE = 64


def build_backbone(name: str, *, weights: str | None = None) -> nn.Module:
    """A feature extractor with its `num_features`.

    Args: name, `small`, `resnet32`, or `timm/NAME` for a network of timm without its classifier. weights, for timm
        only: `pretrained` downloads the weights that timm knows for the name, anything else is a file of weights.
    Raises: UnknownBackbone.
    """
    own = {SMALL: SmallNet, RESNET32: ResNet32}
    if name in own and weights is None:
        return own[name]()
    if not name.startswith(TIMM):
        rule = f"{name} is trained from scratch; weights={weights!r} needs a timm backbone" if name in own else ""
        raise UnknownBackbone(
            rule or f"a backbone is small, resnet32 or timm/NAME, such as timm/resnet50; got {name!r}."
        )
    import timm

    wanted = name.removeprefix(TIMM)
    if wanted not in timm.list_models():
        raise UnknownBackbone(f"there is no {name}: timm has no network {wanted!r}. Its names: timm.list_models().")
    overlay = None if weights in (None, "pretrained") else {"file": weights}
    backbone = timm.create_model(wanted, pretrained=weights is not None, num_classes=0, pretrained_cfg_overlay=overlay)
    # of some families the last layer before the classifier is wider than what timm calls num_features
    backbone.num_features = getattr(backbone, "head_hidden_size", backbone.num_features)
    return backbone


def backbone_for(height: int, width: int) -> str:
    """The backbone's name for an image size."""
    if min(height, width) < SMALL_BELOW:
        return SMALL
    return RESNET32 if min(height, width) <= LARGE_ABOVE else f"{TIMM}resnet50"
