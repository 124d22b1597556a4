"""The training loop: top to bottom in one file."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.calibration.errors import CalibrationError
from models.networks.backbones import BACKBONES, SMALL, backbone_for
from models.networks.classifier import Classifier, channel_statistics
from training.data import DataSplits
from training.losses.balanced_softmax import BalancedSoftmaxLoss

Loss = Literal["cross-entropy", "balanced-softmax"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Progress = Callable[[int, int, float], None]  # (epoch from 1, epochs, mean loss of the epoch)


class InvalidConfig(CalibrationError):
    """A training configuration that cannot be run."""


class TrainingDiverged(CalibrationError):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """SGD with Nesterov momentum; the learning rate rises linearly over the first `warmup` of all steps, then falls by
    a cosine to 0.

    `padding` pixels bound the random shift of each training image; `flip` mirrors half of them. The seed decides the
    first weights, the order of the images and their augmentation.
    """

    loss: Loss
    backbone: str
    epochs: int
    batch_size: int
    learning_rate: float
    padding: int
    flip: bool
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            f"loss is one of {', '.join(LOSSES)}": self.loss in LOSSES,
            f"backbone is one of {', '.join(BACKBONES)}": self.backbone in BACKBONES,
            "epochs is at least 1": self.epochs >= 1,
            "batch_size is at least 2 (batch normalisation needs two images)": self.batch_size >= 2,
            "learning_rate is positive and finite": 0 < self.learning_rate < math.inf,
            "padding is at least 0": self.padding >= 0,
            "momentum lies in (0, 1)": 0 < self.momentum < 1,  # Nesterov's step is not defined without momentum
            "weight_decay is at least 0 and finite": 0 <= self.weight_decay < math.inf,
            "warmup is a fraction of the steps in [0, 1)": 0 <= self.warmup < 1,
            "seed is at least 0": self.seed >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise InvalidConfig(f"{rule}; got {getattr(self, rule.split()[0])!r}.")


def config_for(height: int, width: int, **changes: Any) -> TrainConfig:
    """The defaults for an image size, with `changes` by name: small images get a small network."""
    small = {"epochs": 40, "batch_size": 32, "learning_rate": 0.05, "padding": 1, "flip": False}
    large = {"epochs": 60, "batch_size": 128, "learning_rate": 0.1, "padding": 4, "flip": True}
    backbone = changes.get("backbone") or backbone_for(height, width)
    defaults = small if backbone == SMALL else large
    return TrainConfig(**{"loss": "cross-entropy", **defaults, **changes, "backbone": backbone})


def train(config: TrainConfig, data: DataSplits, progress: Progress | None = None) -> Classifier:
    """A trained classifier in evaluation mode, on the device that trained it: CUDA where there is one.

    The same configuration and data give the same weights again on the same machine.

    Raises: TrainingDiverged with the step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(config.seed)
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    classifier = _new_classifier(config, images, len(data.class_names))
    classifier.to(device, memory_format=torch.channels_last)  # as the images come: NHWC
    loss_function = _loss_function(config, data).to(device)
    optimizer = _optimizer(config, classifier)
    steps = config.epochs * len(batches(len(labels), config.batch_size, torch.Generator()))
    step = 0
    with _threads_for(config.backbone), torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        for epoch in range(1, config.epochs + 1):
            classifier.train()
            total = 0.0
            for rows in batches(len(labels), config.batch_size, generator):
                batch = augment(images[rows], config.padding, config.flip, generator).to(device)
                _set_learning_rate(optimizer, config.learning_rate * rate(step, steps, config.warmup))
                loss = loss_function(classifier(batch), labels[rows].to(device))
                if not torch.isfinite(loss):
                    raise TrainingDiverged(
                        f"the loss became {loss.item()} at step {step + 1} of {steps} (epoch {epoch}): the learning "
                        f"rate {config.learning_rate:g} is probably too high. Try a tenth of it."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                step += 1
                total += loss.item() * len(rows)
            if progress is not None:
                progress(epoch, config.epochs, total / len(labels))
    return classifier.eval()


@contextmanager
def _threads_for(backbone: str) -> Iterator[None]:
    """One thread for the small network. A second gains nothing (1.3 s either way for 40 epochs of digits, two cores),
    and waits at every one of its tiny steps where other processes use the cores (40 s and more against 12 s)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if backbone == SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _new_classifier(config: TrainConfig, images: Tensor, num_classes: int) -> Classifier:
    mean, std = channel_statistics(images)
    with torch.random.fork_rng():  # the caller's random numbers stay what they were
        torch.manual_seed(config.seed)
        return Classifier(config.backbone, num_classes, mean=mean, std=std)


def _loss_function(config: TrainConfig, data: DataSplits) -> nn.Module:
    if config.loss == "balanced-softmax":
        return BalancedSoftmaxLoss(torch.from_numpy(data.class_counts))
    return nn.CrossEntropyLoss()


def _optimizer(config: TrainConfig, classifier: Classifier) -> torch.optim.SGD:
    return torch.optim.SGD(
        classifier.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )


def _set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = value


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the largest learning rate at a step from 0: linear up to 1, then half a cosine down towards 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def augment(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each uint8 image `(N, H, W, 3)` shifted by up to so many pixels (black comes in) and, with `flip`, half of them
    mirrored: the crop of a padded image, for a whole batch at once."""
    num, height, width, _ = images.shape
    if padding:
        padded = F.pad(images, (0, 0, *4 * (padding,)))
        down, right = torch.randint(0, 2 * padding + 1, (2, num, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        images = padded[torch.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if flip:
        mirrored = torch.rand(num, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    return images


def batches(num_items: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Every item once, shuffled. A last batch of one image, which has no batch statistics, joins the one before it."""
    pieces = list(torch.randperm(num_items, generator=generator).split(batch_size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces
