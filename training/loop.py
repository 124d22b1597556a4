"""The training loop: top to bottom in one file."""

import atexit
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from models.calibration.errors import CalibrationError
from models.networks.backbones import SMALL
from models.networks.classifier import Classifier, channel_statistics
from models.networks.heads import ProjectionHead
from training import checkpoint
from training.collect import accuracy_by_class, some_images
from training.config import InvalidConfig, TrainConfig
from training.data import DataSplits, ImageSet
from training.feed import Feed, batches, check_augmentation, generator_for
from training.losses.balanced_softmax import LogitAdjustedLoss
from training.losses.cibl import CiblLoss

Progress = Callable[[int, int, float], None]  # (epoch from 1, epochs, mean loss of the epoch)
SAMPLE = 2000  # image files that the mean and deviation of the pixels are taken from
CHECK_EVERY = 50  # steps between two looks at the losses: each look waits for the device


class TrainingDiverged(CalibrationError):
    """The loss is no longer a number."""


class Network(nn.Module):
    """The classifier and what only training needs: CIBL's projection head."""

    def __init__(self, classifier: Classifier, projection: ProjectionHead | None) -> None:
        super().__init__()
        self.classifier = classifier
        self.projection = projection

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.classifier.features(images)
        logits = self.classifier.head(features)
        return logits, None if self.projection is None else self.projection(features)


@dataclass(slots=True)
class Training:
    """A training at the end of an epoch: what a checkpoint holds."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: LogitAdjustedLoss | CiblLoss
    epoch: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    average: dict[str, Tensor] | None = None  # the moving average of the weights
    best: dict[str, Any] | None = None  # the epoch that the validation images prefer

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss": self.loss.state_dict(),
            "epoch": self.epoch,
            "curves": self.curves,
            "average": self.average,
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["loss"])
        self.epoch, self.curves = state["epoch"], state["curves"]
        self.average, self.best = state["average"], state["best"]

    def result(self) -> dict[str, Tensor]:
        """The weights that count: those of the chosen epoch, averaged where the configuration says so."""
        if self.best is not None:
            return dict(self.best["weights"])
        return self.average if self.average is not None else self.network.state_dict()


def train(
    config: TrainConfig,
    data: DataSplits,
    feed: Feed,
    classifier: Classifier,
    *,
    progress: Progress | None = None,
    save_to: Path | None = None,
    identity: str = "",
) -> list[dict[str, float]]:
    """Train the classifier in place; it stays on the training device, in evaluation mode.

    The same configuration and data give the same weights again on the same machine, also when a killed training went on
    from its checkpoint `save_to`, which is written after every epoch. With several processes (torchrun) each sees its
    share of every batch, and batch statistics and CIBL's contrast are taken within the share.

    Returns: the curves, one row an epoch.
    Raises: TrainingDiverged with the step, StaleCheckpoint, InvalidConfig for what these data or so many processes do
        not allow.
    """
    accelerator = new_accelerator()
    check_possible(config, data, accelerator.num_processes)
    training = _new_training(config, data, classifier, accelerator.device)
    if save_to is not None and (state := checkpoint.load(save_to, identity=identity, device=accelerator.device)):
        training.restore(state)
    wrapped, optimizer = accelerator.prepare(training.network, training.optimizer)
    labels = torch.from_numpy(data.train.labels).to(accelerator.device)
    with exact_arithmetic(config):
        while training.epoch < config.epochs:
            _train_epoch(config, training, wrapped, optimizer, feed, labels, accelerator)
            if data.validation is not None:
                _validate(config, training, data)
            if save_to is not None and accelerator.is_main_process:
                checkpoint.save(save_to, training.state(), identity=identity)
            if progress is not None and accelerator.is_main_process:
                progress(training.epoch, config.epochs, training.curves[-1]["loss"])
    accelerator.wait_for_everyone()
    training.network.load_state_dict(training.result())
    classifier.eval()
    return training.curves


def check_possible(config: TrainConfig, data: DataSplits, processes: int) -> None:
    """Raises: InvalidConfig and InvalidAugmentation for what these data, or so many processes, do not allow."""
    check_augmentation(data.train, config.augmentation)
    if config.select == "validation" and data.validation is None:
        raise InvalidConfig(
            "select validation needs validation images, and these data have none. Add x_validation and y_validation, a "
            "folder validation/ or a validation list, or keep the last epoch."
        )
    if config.batch_size < 2 * processes:
        raise InvalidConfig(
            f"a batch holds at least two images a process; got {config.batch_size} for {processes} processes. Choose "
            "a larger batch or fewer processes."
        )
    if processes > 1 and config.cibl is not None and config.cibl.queue:
        raise InvalidConfig(
            f"CIBL's queue is kept by one process; got {processes}. Train in one process, or without the queue."
        )


def new_classifier(config: TrainConfig, data: DataSplits) -> Classifier:
    """The classifier with the first weights that the seed decides."""
    in_memory = isinstance(data.train, ImageSet)
    mean, std = channel_statistics(torch.from_numpy(some_images(data.train, len(data.train) if in_memory else SAMPLE)))
    with seeded(config.seed):
        return Classifier(config.architecture, len(data.class_names), mean=mean, std=std, weights=config.weights)


def new_accelerator() -> Accelerator:
    """Device and processes; on the CPU also where several processes were started without a GPU."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if accelerator.num_processes > 1:
        _leave_group_at_exit()
    return accelerator


@cache
def _leave_group_at_exit() -> None:
    """A process that ends while its group is still connected may abort, and torchrun then ends the others."""
    atexit.register(lambda: torch.distributed.destroy_process_group() if torch.distributed.is_initialized() else None)


def _new_training(config: TrainConfig, data: DataSplits, classifier: Classifier, device: torch.device) -> Training:
    projection = None
    if config.cibl is not None:
        with seeded(config.seed + 1):
            projection = ProjectionHead(classifier.backbone.num_features, config.cibl.projection)
    network = Network(classifier, projection)
    network.to(device, memory_format=torch.channels_last)  # as the images come: NHWC
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=True,
    )
    tau = 0.0 if config.loss == "cross-entropy" else config.tau
    loss: LogitAdjustedLoss | CiblLoss = LogitAdjustedLoss(torch.from_numpy(data.class_counts), tau)
    if config.cibl is not None:
        loss = CiblLoss(config.cibl, loss)
    return Training(network=network, optimizer=optimizer, loss=loss.to(device))


def _train_epoch(
    config: TrainConfig,
    training: Training,
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    feed: Feed,
    labels: Tensor,
    accelerator: Accelerator,
) -> None:
    training.network.train()
    world, rank = accelerator.num_processes, accelerator.process_index
    order = generator_for(config.seed, training.epoch)
    pieces = batches(len(labels), config.batch_size, order, processes=world)
    per_epoch, first = len(pieces), training.epoch * len(pieces)
    mine = [piece.tensor_split(world)[rank] for piece in pieces]
    losses: list[Tensor] = []
    began = time.perf_counter()
    views = feed.epoch(mine, seed=config.seed + 1_000_003 * rank, first_step=first, views=config.views)
    for step, (rows, images) in enumerate(zip(mine, views, strict=True), first):
        learning_rate = config.learning_rate * rate(step, config.epochs * per_epoch, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        with mixed_precision(config, accelerator.device):
            logits, projected = wrapped(images.flatten(0, 1).to(accelerator.device, non_blocking=True))
        targets = labels[rows.to(labels.device)].repeat(config.views)
        loss = training.loss(logits, targets) if projected is None else training.loss(logits, projected, targets)
        optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes: an uneven share weighs as much as its images
        accelerator.backward(loss * (len(rows) * world / len(pieces[step - first])))
        optimizer.step()
        _average(config, training)
        losses.append(loss.detach())
        if len(losses) % CHECK_EVERY == 0 or len(losses) == per_epoch:
            _require_finite(losses, first, config, per_epoch)
    training.epoch += 1
    sizes = torch.tensor([float(len(rows)) for rows in mine])
    totals = torch.stack([torch.stack(losses).float().cpu() @ sizes, sizes.sum()]).to(accelerator.device)
    total, images_seen = accelerator.reduce(totals, "sum").tolist()
    training.curves.append(
        {
            "epoch": training.epoch,
            "loss": total / images_seen,
            "learning_rate": learning_rate,
            "seconds": time.perf_counter() - began,
        }
    )


def _require_finite(losses: list[Tensor], first: int, config: TrainConfig, per_epoch: int) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if bool(finite.all()):
        return
    index = int(torch.argmin(finite.int()))
    step = first + index
    raise TrainingDiverged(
        f"the loss became {losses[index].item()} at step {step + 1} of {config.epochs * per_epoch} (epoch "
        f"{step // per_epoch + 1}): the learning rate {config.learning_rate:g} is probably too high. Try a tenth of it."
    )


def _average(config: TrainConfig, training: Training) -> None:
    if config.ema is None:
        return
    weights = training.network.state_dict()
    if training.average is None:
        training.average = {name: value.detach().clone() for name, value in weights.items()}
        return
    for name, value in weights.items():
        if value.is_floating_point():
            training.average[name].lerp_(value.detach(), 1 - config.ema)
        else:
            training.average[name].copy_(value)


def _validate(config: TrainConfig, training: Training, data: DataSplits) -> None:
    """Class-balanced accuracy on the validation images; with `select` the best epoch's weights are kept."""
    assert data.validation is not None
    current = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.network.load_state_dict(training.average if training.average is not None else current)
    accuracy = float(accuracy_by_class(training.network.classifier, data.validation).mean())
    if config.select == "validation" and (training.best is None or accuracy > training.best["accuracy"]):
        kept = {name: value.clone() for name, value in training.network.state_dict().items()}
        training.best = {"accuracy": accuracy, "epoch": training.epoch, "weights": kept}
    training.network.load_state_dict(current)
    training.curves[-1]["validation_accuracy"] = accuracy


def mixed_precision(config: TrainConfig, device: torch.device) -> torch.autocast:
    """The network's passes in bfloat16 where the configuration says so; losses are taken in float32 outside of it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=config.precision == "bfloat16")


@contextmanager
def exact_arithmetic(config: TrainConfig) -> Iterator[None]:
    """Deterministic kernels, and one thread for the small network: a second gains nothing there (1.3 s either way for
    40 epochs of digits, two cores), and waits at every one of its tiny steps where other processes use the cores (40 s
    and more against 12 s)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if config.architecture.backbone == SMALL else threads)
    try:
        cudnn = torch.backends.cudnn
        with cudnn.flags(enabled=cudnn.enabled, deterministic=True, benchmark=False):
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random first weights that the seed decides; the caller's random numbers stay what they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def rate(step: int, steps: int, warmup: float) -> float:
    """Share of the largest learning rate at a step from 0: linear up to 1, then half a cosine down towards 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
