"""What decides a training run, checked when built."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from models.calibration.errors import CalibrationError
from models.networks.backbones import LARGE_ABOVE, SMALL, backbone_for
from models.networks.classifier import Architecture
from training.augment import Augmentation
from training.losses.cibl import CiblConfig

Loss = Literal["cross-entropy", "balanced-softmax", "logit-adjusted"]
LOSSES: tuple[Loss, ...] = get_args(Loss)


class InvalidConfig(CalibrationError):
    """A training configuration that cannot be run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoupledConfig:
    """A second stage: the backbone is frozen in evaluation mode, a fresh linear head is trained with Balanced Softmax.

    Args: sampler, `instance`, every image alike, or `meta`, the Meta Sampler of Balanced Meta-Softmax (Ren et al.,
        NeurIPS 2020). steps; batch_size; learning_rate, largest, falling by a cosine; meta_batch_size, of the
        class-balanced batches that move the sampler, as large as the others without it; meta_learning_rate, of Adam on
        the sampler; initial_power, psi starts at the logit of n^-power, scaled to be symmetric around one half (0:
        every class alike).
    """

    sampler: Literal["instance", "meta"] = "meta"
    steps: int = 2000
    batch_size: int = 512
    learning_rate: float = 0.1
    meta_batch_size: int | None = None
    meta_learning_rate: float = 0.01
    initial_power: float = 0.0

    def __post_init__(self) -> None:
        _check(
            self,
            {
                "sampler is instance or meta": self.sampler in ("instance", "meta"),
                "steps is at least 1": self.steps >= 1,
                "batch_size is at least 1": self.batch_size >= 1,
                "meta_batch_size is at least 1": self.meta_batch_size is None or self.meta_batch_size >= 1,
                "learning_rate is positive and finite": 0 < self.learning_rate < math.inf,
                "meta_learning_rate is positive and finite": 0 < self.meta_learning_rate < math.inf,
                "initial_power is at least 0 and finite": 0 <= self.initial_power < math.inf,
            },
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """SGD with Nesterov momentum; the learning rate rises linearly over the first `warmup` of all steps, then falls by
    a cosine to 0.

    Args: tau, for the logit-adjusted loss only. cibl, the contrastive part, with two views of each image. batch_size,
        images a step (with CIBL each is seen twice). ema, decay of the weights' moving average, which then is the
        result. select, the `last` epoch or the one with the best class-balanced accuracy on the `validation` images;
        never the test images. precision of the network's passes; weights stay float32. decoupled, a second stage.
        weights for a timm backbone. seed decides the first weights, the order of the images and their augmentation.
    """

    architecture: Architecture
    loss: Loss
    epochs: int
    batch_size: int
    learning_rate: float
    augmentation: Augmentation = field(default_factory=Augmentation)
    tau: float = 1.0
    cibl: CiblConfig | None = None
    decoupled: DecoupledConfig | None = None
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    ema: float | None = None
    select: Literal["last", "validation"] = "last"
    precision: Literal["float32", "bfloat16"] = "float32"
    weights: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            self,
            {
                f"loss is one of {', '.join(LOSSES)}": self.loss in LOSSES,
                "epochs is at least 1": self.epochs >= 1,
                "batch_size is at least 2 (batch normalisation needs two images)": self.batch_size >= 2,
                "learning_rate is positive and finite": 0 < self.learning_rate < math.inf,
                "tau is a finite number, and 1 unless the loss is logit-adjusted": math.isfinite(self.tau)
                and (self.tau == 1.0 or self.loss == "logit-adjusted"),
                "momentum lies in (0, 1)": 0 < self.momentum < 1,  # Nesterov's step is not defined without momentum
                "weight_decay is at least 0 and finite": 0 <= self.weight_decay < math.inf,
                "warmup is a fraction of the steps in [0, 1)": 0 <= self.warmup < 1,
                "ema is a decay in (0, 1), or none": self.ema is None or 0 < self.ema < 1,
                "select is last or validation": self.select in ("last", "validation"),
                "precision is float32 or bfloat16": self.precision in ("float32", "bfloat16"),
                "seed lies in [0, 2^32)": 0 <= self.seed < 2**32,
            },
        )
        if self.decoupled is not None:
            self._check_stages()

    def _check_stages(self) -> None:
        if self.loss != "cross-entropy" or self.cibl is not None:
            raise InvalidConfig(
                "the first stage of a decoupled training is cross-entropy without CIBL; got "
                f"{self.loss}{' with CIBL' if self.cibl is not None else ''}. Leave that out, or the second stage."
            )
        if self.architecture.head != "linear" or self.architecture.rectify:
            raise InvalidConfig(
                "the second stage trains a plain linear head; got "
                f"{self.architecture.head}{', rectified' if self.architecture.rectify else ''}. Choose head linear "
                "without rectification, or a recipe of one stage."
            )

    @property
    def views(self) -> int:
        return 1 if self.cibl is None else 2


def config_for(
    height: int,
    width: int,
    *,
    base: TrainConfig | None = None,
    parts: Mapping[str, Any] | None = None,
    cibl_alpha: float | None = None,
    in_files: bool | None = None,
    **changes: Any,
) -> TrainConfig:
    """A configuration with `changes` by name: of `base`, or of the defaults for an image size (small images get a small
    network).

    Args: parts, fields of Architecture that differ. cibl_alpha, train with CIBL at this trade-off. in_files, whether
        the images stay in files, which decides their augmentation; by the image size without it.
    """
    if cibl_alpha is not None:
        changes["cibl"] = replace(base.cibl if base and base.cibl else CiblConfig(), alpha=cibl_alpha)
    if base is not None:
        return replace(base, architecture=replace(base.architecture, **(parts or {})), **changes)
    architecture = changes.pop("architecture", None) or Architecture(
        **{"backbone": backbone_for(height, width), **(parts or {})}
    )
    small = {"epochs": 40, "batch_size": 32, "learning_rate": 0.05, "augmentation": Augmentation(padding=1)}
    large = {"epochs": 60, "batch_size": 128, "learning_rate": 0.1, "augmentation": Augmentation(padding=4, flip=True)}
    huge = {"epochs": 90, "batch_size": 128, "learning_rate": 0.05, "augmentation": large["augmentation"]}
    defaults = small if architecture.backbone == SMALL else large if min(height, width) <= LARGE_ABOVE else huge
    if in_files or (in_files is None and min(height, width) > LARGE_ABOVE):
        defaults = defaults | {"augmentation": Augmentation(flip=True, jitter=True)}
    return TrainConfig(**{"loss": "cross-entropy", **defaults, **changes, "architecture": architecture})


def _check(config: object, rules: dict[str, bool]) -> None:
    for rule, kept in rules.items():
        if not kept:
            raise InvalidConfig(f"{rule}; got {getattr(config, rule.split()[0])!r}.")
