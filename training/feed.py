"""Augmented training batches from images in memory."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from training.augment import Augmentation, InvalidAugmentation, augment
from training.data import ImageFiles, ImageSet
from training.data.feed import FileFeed
from training.data.files import MAX_SIDE


class Feed(Protocol):
    """Where augmented training images come from.

    Every random draw depends on seed, step, view and the place in the batch alone, so that a training that goes on from
    a checkpoint sees what it would have seen. `rows` may be made one by one, each after the step before it.
    """

    def epoch(self, rows: Iterable[Tensor], *, seed: int, first_step: int, views: int = 1) -> Iterator[Tensor]:
        """uint8 `(views, N, H, W, 3)` for each tensor of image indices `(N,)`."""
        ...


class MemoryFeed:
    """Images that live on the training device and are augmented there, a whole batch at a time."""

    def __init__(self, images: ImageSet, augmentation: Augmentation, device: torch.device) -> None:
        self.images = torch.from_numpy(images.images).to(device)
        self.augmentation = augmentation

    def epoch(self, rows: Iterable[Tensor], *, seed: int, first_step: int, views: int = 1) -> Iterator[Tensor]:
        for step, chosen in enumerate(rows, first_step):
            images = self.images[chosen.to(self.images.device)]
            draws = (generator_for(seed, step, view) for view in range(views))
            yield torch.stack([augment(images, self.augmentation, draw) for draw in draws])


def feed_for(
    images: ImageSet | ImageFiles, augmentation: Augmentation, device: torch.device, *, workers: int = 0
) -> Feed:
    """The feed for a training set.

    Args: workers, processes that decode image files; none of them may run ahead of a sampler that learns.
    Raises: InvalidAugmentation for one that the images cannot take.
    """
    check_augmentation(images, augmentation)
    if isinstance(images, ImageSet):
        return MemoryFeed(images, augmentation, device)
    return FileFeed(images, flip=augmentation.flip, jitter=augmentation.jitter, workers=workers)


def check_augmentation(images: ImageSet | ImageFiles, augmentation: Augmentation) -> None:
    """Raises: InvalidAugmentation for one that the images cannot take."""
    if isinstance(images, ImageSet) and augmentation.jitter:
        raise InvalidAugmentation(
            "jitter is for images that stay in files; those in memory take a policy instead. A recipe with jitter "
            f"needs an image size above {MAX_SIDE}."
        )
    if isinstance(images, ImageFiles) and (
        augmentation.padding or augmentation.policy != "none" or augmentation.cutout
    ):
        raise InvalidAugmentation(
            "images that stay in files are cropped and scaled at random and take flip and jitter only; padding, policy "
            f"and cutout are for images in memory. A recipe with them needs an image size of at most {MAX_SIDE}."
        )


def generator_for(*key: int) -> torch.Generator:
    """A random generator on the CPU that these numbers decide, and nothing that was drawn before."""
    mixed = 0
    for number in key:
        mixed = (mixed * 6_364_136_223_846_793_005 + number + 1_442_695_040_888_963_407) % 2**63
    return torch.Generator().manual_seed(mixed)


def batches(num_items: int, batch_size: int, generator: torch.Generator, *, processes: int = 1) -> list[Tensor]:
    """Every item once, shuffled. A last batch too small to give every process the two images that batch statistics
    need joins the one before it."""
    pieces = list(torch.randperm(num_items, generator=generator).split(batch_size))
    if len(pieces) > 1 and len(pieces[-1]) < 2 * processes:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces
