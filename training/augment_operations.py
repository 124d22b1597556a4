"""The operations of AutoAugment and RandAugment on batches, with the semantics of torchvision's `v2` transforms."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FILL = 128  # grey, as in the CIFAR code of the methods that use these policies
GREY = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class Operation:
    """The strength at the first and at the last bin; `signed` ones go either way."""

    first: float = 0.0
    last: float = 0.0
    signed: bool = False


OPERATIONS = {
    "shear-x": Operation(0.0, 0.3, True),
    "shear-y": Operation(0.0, 0.3, True),
    "translate-x": Operation(0.0, 150 / 331, True),
    "translate-y": Operation(0.0, 150 / 331, True),
    "rotate": Operation(0.0, 30.0, True),
    "brightness": Operation(0.0, 0.9, True),
    "color": Operation(0.0, 0.9, True),
    "contrast": Operation(0.0, 0.9, True),
    "sharpness": Operation(0.0, 0.9, True),
    "posterize": Operation(8.0, 4.0),
    "solarize": Operation(1.0, 0.0),
    "autocontrast": Operation(),
    "equalize": Operation(),
    "invert": Operation(),
}


def apply_operation(name: str, images: Tensor, strength: Tensor) -> Tensor:
    """uint8 `(N, H, W, 3)`, a strength for each image `(N,)` in the units of `OPERATIONS`; translations in pixels."""
    if name in _GEOMETRY:
        return _resample(images, _GEOMETRY[name](strength, images.shape[1], images.shape[2]))
    return _PHOTOMETRY[name](images, strength)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    share = factor[:, None, None, None]
    return (share * images + (1 - share) * other).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.float().unbind(-1)
    return (GREY[0] * red + GREY[1] * green + GREY[2] * blue).floor()[..., None]


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return (images * (1 + strength)[:, None, None, None]).clamp(0, 255).to(torch.uint8)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images), 1 + strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(images, _grey(images).mean(dim=(1, 2), keepdim=True), 1 + strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    pixels = images.permute(0, 3, 1, 2).float()
    if min(pixels.shape[2:]) <= 2:
        return images
    kernel = torch.ones(3, 1, 3, 3, device=images.device)
    kernel[:, :, 1, 1] = 5.0
    blurred = pixels.clone()  # the border keeps its pixels
    blurred[:, :, 1:-1, 1:-1] = F.conv2d(pixels, kernel / 13, groups=3).round()
    return _blend(images, blurred.permute(0, 2, 3, 1), 1 + strength)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    kept = (256 - 2 ** (8 - strength.long())).to(torch.uint8)
    return images & kept[:, None, None, None]


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images >= (255 * strength)[:, None, None, None], 255 - images, images)


def _invert(images: Tensor, strength: Tensor) -> Tensor:
    return 255 - images


def _autocontrast(images: Tensor, strength: Tensor) -> Tensor:
    low, high = (extreme(images, dim=(1, 2), keepdim=True).float() for extreme in (torch.amin, torch.amax))
    flat = low == high
    stretched = (images - low) * (255 / torch.where(flat, 1.0, high - low))
    return torch.where(flat, images, stretched.clamp(0, 255).to(torch.uint8))


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    num, height, width, _ = images.shape
    values = images.permute(0, 3, 1, 2).reshape(num * 3, height * width).long()
    histogram = torch.zeros(num * 3, 256, dtype=torch.long, device=images.device)
    histogram.scatter_add_(1, values, torch.ones_like(values))
    brightest = histogram.gather(1, values.amax(dim=1, keepdim=True))
    step = (height * width - brightest) // 255
    below = histogram.cumsum(1) - histogram  # pixels darker than each value
    table = ((below + step // 2) // step.clamp(min=1)).clamp(0, 255)
    equalized = torch.where(step > 0, table.gather(1, values), values)
    return equalized.reshape(num, 3, height, width).permute(0, 2, 3, 1).to(torch.uint8)


_PHOTOMETRY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "invert": _invert,
}


def _matrix(strength: Tensor, *entries: Tensor | float) -> Tensor:
    """Rows `[[a, b, c], [d, e, f]]` for each image: output place to input place, both from the image's centre."""
    filled = [torch.zeros_like(strength) + entry for entry in entries]
    return torch.stack(filled, dim=1).reshape(-1, 2, 3)


# Shears keep the image's top left corner, rotations its centre (counter-clockwise, degrees).
_GEOMETRY: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "shear-x": lambda s, height, width: _matrix(s, 1, s, s * height / 2, 0, 1, 0),
    "shear-y": lambda s, height, width: _matrix(s, 1, 0, 0, s, 1, s * width / 2),
    "translate-x": lambda s, height, width: _matrix(s, 1, 0, -s, 0, 1, 0),
    "translate-y": lambda s, height, width: _matrix(s, 1, 0, 0, 0, 1, -s),
    "rotate": lambda s, height, width: _turn(s * (math.pi / 180)),
}


def _turn(angle: Tensor) -> Tensor:
    return _matrix(angle, angle.cos(), -angle.sin(), 0, angle.sin(), angle.cos(), 0)


def _resample(images: Tensor, matrix: Tensor) -> Tensor:
    """The nearest pixel under an inverse affine map `(N, 2, 3)`; grey where it falls outside."""
    num, height, width, _ = images.shape
    device = images.device
    down = torch.arange(height, device=device) - (height - 1) / 2
    right = torch.arange(width, device=device) - (width - 1) / 2
    a, b, c, d, e, f = (entry[:, None, None] for entry in matrix.reshape(num, 6).unbind(1))
    column = (a * right[None, None, :] + b * down[None, :, None] + c + (width - 1) / 2).round().long()
    row = (d * right[None, None, :] + e * down[None, :, None] + f + (height - 1) / 2).round().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    item = torch.arange(num, device=device)[:, None, None]
    sampled = images[item, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return torch.where(inside[..., None], sampled, FILL)
