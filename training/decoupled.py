"""The second stage of decoupled training: a fresh linear head on a frozen backbone, drawn from by the Meta Sampler."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from models.calibration.types import IntArray
from models.networks.classifier import Classifier
from models.networks.heads import LinearHead
from training.config import DecoupledConfig, TrainConfig
from training.feed import Feed, batches, generator_for
from training.loop import exact_arithmetic, mixed_precision, rate, seeded
from training.losses.balanced_softmax import check_counts
from training.sampling import ClassBalancedRows, LinearStep, MetaSampler, meta_gradient, softmax_residual

SAMPLED_SEED, META_SEED = 71, 72  # apart from each other and from the first stage


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SecondStage:
    """`rates (C,)`, the final relative rate at which an image of each class was drawn (ones without the Meta Sampler);
    `losses`, the mean Balanced Softmax loss of each step."""

    rates: Tensor
    losses: list[float]


def train_head(
    config: TrainConfig, classifier: Classifier, feed: Feed, labels: IntArray, class_counts: IntArray
) -> SecondStage:
    """Replace the classifier's linear head by one trained with Balanced Softmax on the frozen backbone, in place.

    The backbone stays in evaluation mode (the official code lets its batch statistics drift). Training and meta images
    come from the same rows and the same augmentation; the meta loss moves the sampler only.

    Raises: EmptyClass.
    """
    stage = config.decoupled
    assert stage is not None
    assert isinstance(classifier.head, LinearHead)  # InvalidConfig otherwise
    device = classifier.mean.device
    classifier.eval()
    targets, counts = torch.from_numpy(labels).to(device), torch.from_numpy(class_counts).to(device)
    check_counts(counts, len(counts))
    shift = counts.float().log()
    head = _fresh_head(classifier, config.seed).to(device)
    buffer = torch.zeros_like(head)
    sampler = None
    if stage.sampler == "meta":
        sampler = MetaSampler(counts, learning_rate=stage.meta_learning_rate, initial_power=stage.initial_power)
    draws = _Draws(stage, config.seed, targets.cpu(), len(counts), sampler)
    losses: list[Tensor] = []
    with exact_arithmetic(config):
        sampled = feed.epoch(draws.rows(), seed=config.seed + SAMPLED_SEED, first_step=0)
        for step, images in enumerate(sampled):
            features = _features(config, classifier, images)
            chosen = targets[draws.current.to(device)]
            linear_step = LinearStep(
                stage.learning_rate * rate(step, stage.steps, 0.0), config.momentum, config.weight_decay
            )
            if sampler is not None:
                assert draws.weights is not None
                meta_rows = draws.meta_rows(step)
                meta = next(feed.epoch([meta_rows], seed=config.seed + META_SEED, first_step=step))
                gradient = meta_gradient(
                    head,
                    buffer,
                    linear_step,
                    features=features,
                    targets=chosen,
                    shift=shift,
                    meta_features=_features(config, classifier, meta),
                    meta_targets=targets[meta_rows.to(device)],
                    draw_weights=draws.weights.detach(),
                )
                sampler.step(draws.weights, gradient)
            residual = softmax_residual(head, features, chosen, shift)
            buffer = linear_step.buffer(head, residual.T @ features / len(chosen), buffer)
            losses.append(_loss(head, features, chosen, shift))
            head = head - linear_step.learning_rate * buffer
    with torch.no_grad():
        classifier.head.weight.copy_(head[:, :-1])
        classifier.head.bias.copy_(head[:, -1])
    rates = sampler.rates.cpu() if sampler is not None else torch.ones(len(counts))
    return SecondStage(rates=rates, losses=torch.stack(losses).tolist())


class _Draws:
    """The rows of each training batch, made when the step before is done; `current` and `weights` are of the last."""

    def __init__(
        self, stage: DecoupledConfig, seed: int, targets: Tensor, num_classes: int, sampler: MetaSampler | None
    ) -> None:
        self.stage, self.seed, self.sampler = stage, seed, sampler
        self.num_items = len(targets)
        self.rows_of = [(targets == label).nonzero()[:, 0] for label in range(num_classes)]
        self.balanced = ClassBalancedRows(targets, num_classes, seed)
        self.current = torch.empty(0, dtype=torch.long)
        self.weights: Tensor | None = None

    def rows(self) -> Iterator[Tensor]:
        made = self._by_sampler() if self.sampler is not None else self._all_alike()
        for self.current in made:
            yield self.current

    def meta_rows(self, step: int) -> Tensor:
        size = self.stage.meta_batch_size or self.stage.batch_size
        return self.balanced.take(step * size, size)

    def _all_alike(self) -> Iterator[Tensor]:
        made, epoch = 0, 0
        while made < self.stage.steps:
            pieces = batches(self.num_items, self.stage.batch_size, generator_for(self.seed, SAMPLED_SEED, epoch))
            yield from pieces[: self.stage.steps - made]
            made, epoch = made + len(pieces), epoch + 1

    def _by_sampler(self) -> Iterator[Tensor]:
        assert self.sampler is not None
        for step in range(self.stage.steps):
            generator = generator_for(self.seed, SAMPLED_SEED, step)
            classes, self.weights = self.sampler.draw(self.stage.batch_size, generator)
            place = torch.rand(len(classes), generator=generator)
            rows = [self.rows_of[label] for label in classes.tolist()]
            yield torch.stack([of[int(at * len(of))] for of, at in zip(rows, place.tolist(), strict=True)])


def _fresh_head(classifier: Classifier, seed: int) -> Tensor:
    """`(C, D + 1)`, drawn anew: the head of the first stage is not the starting point."""
    with seeded(seed + SAMPLED_SEED):
        fresh = LinearHead(classifier.head.in_features, classifier.head.out_features)
    return torch.cat([fresh.weight.detach(), fresh.bias.detach()[:, None]], dim=1)


@torch.no_grad()
def _features(config: TrainConfig, classifier: Classifier, images: Tensor) -> Tensor:
    """`(N, D + 1)` features of a batch's first view with a last column of ones."""
    device = classifier.mean.device
    with mixed_precision(config, device):
        features = classifier.features(images[0].to(device))
    return torch.cat([features.float(), torch.ones(len(features), 1, device=device)], dim=1)


def _loss(head: Tensor, features: Tensor, targets: Tensor, shift: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(features @ head.T + shift, targets)
