"""NBN, normalised batch normalisation (Bao et al., IEEE TIP 2024, arXiv 2501.03122).

The affine parameters of BatchNorm favour channels of common classes. NBN takes the weight and the bias vector of a
layer as directions of unit length and gives both back one learned magnitude:

    weight = alpha g / (||g|| + 1e-6),   bias = alpha h / (||h|| + 1e-6)

Written after the official code, because of the paper only the abstract was available.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.calibration.errors import CalibrationError

EPS = 1e-6
Where = Literal["last-stage", "all"] | Iterable[str] | Callable[[str, nn.Module], bool]


class NothingToNormalize(CalibrationError):
    """No batch normalisation where it was looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NbnConfig:
    """How layers are normalised.

    Args: scope, `shared`, one magnitude for all layers (the official code), or `layer`, one each.
        magnitude, alpha at the start: 1 in the official code, which starts a layer of C channels 1/sqrt(C) as strong as
        usual; `ordinary` is sqrt(C) (of the layer, or of the widest layer when shared).
        bias_start, `random`, h of length about 1, or `zero` as in the official code. From zero the first gradient of h
        is alpha / 1e-6 times that of the bias: one step makes ||h|| so long that its direction hardly turns from then
        on.
    """

    scope: Literal["shared", "layer"] = "shared"
    magnitude: float | Literal["ordinary"] = 1.0
    bias_start: Literal["random", "zero"] = "random"

    def __post_init__(self) -> None:
        if self.scope not in ("shared", "layer"):
            raise CalibrationError(f"the scope of NBN's magnitude is shared or layer; got {self.scope!r}.")
        if self.magnitude != "ordinary" and not (isinstance(self.magnitude, int | float) and self.magnitude > 0):
            raise CalibrationError(f"NBN's magnitude is a positive number or ordinary; got {self.magnitude!r}.")
        if self.bias_start not in ("random", "zero"):
            raise CalibrationError(f"NBN's bias starts random or at zero; got {self.bias_start!r}.")


class UnitDirection(nn.Module):
    """A vector as magnitude times direction; the norm is taken in float32 whatever the precision around it."""

    def __init__(self, magnitude: nn.Parameter) -> None:
        super().__init__()
        self.magnitude = magnitude

    def forward(self, vector: Tensor) -> Tensor:
        return self.magnitude * vector / (vector.float().norm() + EPS)


def normalize_batchnorm(module: nn.Module, where: Where = "last-stage", config: NbnConfig = NbnConfig()) -> list[str]:
    """Turn BatchNorm layers of any network into NBN layers, in place.

    Args: where, `last-stage` as in the official code: of the last `layerN` of a residual network the last BatchNorm of
        every block and that of the shortcuts (of a plain network, its last BatchNorm); `all`; names of layers; or a
        function of name and layer.
    Returns: the names of the layers that were turned.
    Raises: NothingToNormalize.
    """
    layers = {name: layer for name, layer in module.named_modules() if _is_affine_batchnorm(layer)}
    chosen = _choose(where, layers)
    if not chosen:
        raise NothingToNormalize(
            f"NBN needs BatchNorm layers with weight and bias; none of {len(layers)} such layers of "
            f"{type(module).__name__} is meant by where={where!r}. Name the layers, or say all."
        )
    shared = _magnitude(config, max(layers[name].num_features for name in chosen))
    for name in chosen:
        layer = layers[name]
        magnitude = shared if config.scope == "shared" else _magnitude(config, layer.num_features)
        with torch.no_grad():
            if not layer.weight.any():  # timm zeroes the last BatchNorm of a block; a zero vector has no direction
                layer.weight.fill_(1.0)
        if config.bias_start == "random":
            nn.init.normal_(layer.bias, std=layer.num_features**-0.5)
        for vector in ("weight", "bias"):
            parametrize.register_parametrization(layer, vector, UnitDirection(magnitude))
    return chosen


def folded_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of the same network with ordinary BatchNorm in place of NBN: exactly the same outputs, for export."""
    layers = {name: layer for name, layer in module.named_modules() if parametrize.is_parametrized(layer)}
    inside = tuple(f"{name}.parametrizations." for name in layers)
    state = {name: value for name, value in module.state_dict().items() if not name.startswith(inside)}
    for name, layer in layers.items():
        state |= {f"{name}.{vector}": getattr(layer, vector).detach() for vector in ("weight", "bias")}
    return state


def _magnitude(config: NbnConfig, channels: int) -> nn.Parameter:
    start = channels**0.5 if config.magnitude == "ordinary" else config.magnitude
    return nn.Parameter(torch.tensor(float(start)))


def _is_affine_batchnorm(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine and not parametrize.is_parametrized(layer)
    )


def _choose(where: Where, layers: dict[str, nn.Module]) -> list[str]:
    if callable(where):
        return [name for name, layer in layers.items() if where(name, layer)]
    if where == "all":
        return list(layers)
    if where == "last-stage":
        return _last_stage(list(layers))
    names = list(where)
    unknown = [name for name in names if name not in layers]
    if unknown:
        raise NothingToNormalize(f"no affine BatchNorm layer is called {unknown[0]!r}. There are: {', '.join(layers)}.")
    return names


def _last_stage(names: list[str]) -> list[str]:
    """The official choice, by the names that torchvision, timm and this project give to residual networks."""
    stages = {int(found[1]) for name in names if (found := re.search(r"(?:^|\.)layer(\d+)\.", name))}
    if not stages:
        return names[-1:]
    inside = [name for name in names if re.search(rf"(?:^|\.)layer{max(stages)}\.", name)]
    shortcuts = {name for name in inside if re.search(r"\.(downsample|shortcut)\.", name)}
    last_of_block: dict[str, str] = {}
    for name in inside:
        if name not in shortcuts:
            last_of_block[name.rpartition(".")[0]] = name
    return [name for name in inside if name in shortcuts or name in last_of_block.values()]
