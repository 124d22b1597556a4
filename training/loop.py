"""The training loop: top to bottom in one file."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.calibration.errors import CalibrationError
from models.networks.backbones import BACKBONES, backbone_for
from models.networks.classifier import Classifier, channel_statistics
from training.data import DataSplits
from training.losses.balanced_softmax import BalancedSoftmaxLoss

Loss = Literal["cross-entropy", "balanced-softmax"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
Progress = Callable[[int, int, float], None]


class TrainingDiverged(CalibrationError):
    """The loss is no longer a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """SGD with Nesterov momentum; the learning rate rises linearly for `warmup` of the steps, then falls by a cosine.

    `padding` pixels bound the random shift of each image; `flip` mirrors half of them.
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
        if self.loss not in LOSSES:
            raise CalibrationError(f"the losses are {', '.join(LOSSES)}; got {self.loss!r}.")
        if self.backbone not in BACKBONES:
            raise CalibrationError(f"the backbones are {', '.join(BACKBONES)}; got {self.backbone!r}.")
        if min(self.epochs, self.batch_size) < 1:
            raise CalibrationError(f"epochs and batch size are at least 1; got {self.epochs} and {self.batch_size}.")
        if not 0 < self.learning_rate < math.inf:
            raise CalibrationError(f"the learning rate is a positive number; got {self.learning_rate}.")


def config_for(height: int, width: int, **changes: object) -> TrainConfig:
    """The configuration for an image size: small images get a small network and many epochs; `changes` by name."""
    small = {"epochs": 40, "batch_size": 32, "learning_rate": 0.05, "padding": 1, "flip": False}
    large = {"epochs": 60, "batch_size": 128, "learning_rate": 0.1, "padding": 4, "flip": True}
    backbone = str(changes.get("backbone") or backbone_for(height, width))
    return TrainConfig(**({"backbone": backbone} | (small if backbone == "small" else large) | changes))


def train(config: TrainConfig, data: DataSplits, progress: Progress | None = None) -> Classifier:
    """A trained classifier, on the device that it was trained on. The seed decides everything on one machine.

    Raises: TrainingDiverged with the step.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(config.seed)
    images, labels = torch.from_numpy(data.train.images), torch.from_numpy(data.train.labels)
    mean, std = channel_statistics(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        classifier = Classifier(config.backbone, len(data.class_names), mean=mean, std=std)
    classifier.to(device, memory_format=torch.channels_last).train()
    counts = torch.from_numpy(data.class_counts)
    loss_of = (BalancedSoftmaxLoss(counts) if config.loss == "balanced-softmax" else nn.CrossEntropyLoss()).to(device)
    optimizer = torch.optim.SGD(
        classifier.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    steps = math.ceil(len(labels) / config.batch_size) * config.epochs
    step = 0
    for epoch in range(config.epochs):
        total = 0.0
        for rows in _batches(len(labels), config.batch_size, generator):
            batch = augment(images[rows], config.padding, config.flip, generator).to(device)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate(step, steps, config.warmup)
            loss = loss_of(classifier(batch), labels[rows].to(device))
            if not torch.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss is {loss.item()} at step {step} of {steps} (epoch {epoch + 1}): the learning rate "
                    f"{config.learning_rate} is probably too high. Try a tenth of it."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item() * len(rows)
        if progress is not None:
            progress(epoch + 1, config.epochs, total / len(labels))
    return classifier.eval()


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the largest learning rate at a step: linear up, then half a cosine down to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def augment(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Each uint8 image `(N, H, W, 3)` shifted by up to `padding` pixels (black comes in) and perhaps mirrored."""
    num, height, width, _ = images.shape
    if padding:
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        down, right = torch.randint(0, 2 * padding + 1, (2, num, 1), generator=generator)
        rows, columns = down + torch.arange(height), right + torch.arange(width)
        images = padded[torch.arange(num)[:, None, None], rows[:, :, None], columns[:, None, :]]
    if flip:
        mirrored = torch.rand(num, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(2), images)
    return images


def _batches(num_items: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every item once, shuffled. The last batch joins the one before it where it would hold a single image, whose
    batch statistics would be empty."""
    order = torch.randperm(num_items, generator=generator)
    pieces = list(order.split(batch_size))
    if len(pieces) > 1 and len(pieces[-1]) == 1:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    yield from pieces
