"""Images a second of our training step beside the loop that the published codes use, in one run.

Plain: a DataLoader with worker processes that augments PIL images one by one, float32, channels first. Ours: the loop
of training/loop.py on images in memory, augmented as batches, bfloat16, channels last. Same network, same batch size,
same augmentation (crop, flip, AutoAugment, Cutout), the same optimiser; each in a process of its own, by turns.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms as T
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import AutoAugmentPolicy

from models.networks.classifier import Architecture, Classifier
from training.augment import Augmentation
from training.config import TrainConfig
from training.data import load
from training.feed import MemoryFeed
from training.loop import new_classifier, train

ROOT = Path(__file__).parent.parent
ROUNDS = 3
WARM_UP = 5  # steps before the clock starts
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def measure_speed(data: Path) -> None:
    """Print a table: median and range over the rounds, the ratio of each round, peak memory."""
    on_gpu = torch.cuda.is_available()
    batch, steps = (512, 200) if on_gpu else (128, 30)
    found: dict[str, list[dict[str, float]]] = {"plain": [], "ours": []}
    for _ in range(ROUNDS):
        for name in found:
            command = [
                sys.executable,
                "-m",
                "benchmarks.training_speed",
                name,
                str(data.resolve()),
                str(batch),
                str(steps),
            ]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, found[name][-1], flush=True)
    ratios = [
        ours["images_a_second"] / plain["images_a_second"]
        for ours, plain in zip(found["ours"], found["plain"], strict=True)
    ]
    print(f"batch {batch}, {steps} steps a round, {os.cpu_count()} cores, torch {torch.__version__}")
    for name, rounds in found.items():
        speeds = [each["images_a_second"] for each in rounds]
        memory = max(each["peak_gb"] for each in rounds)
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        print(f"{name}: {statistics.median(speeds):.0f} images/s ({spread}), peak {memory:.2f} GB")
    print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


class Cutout:
    """One black square of 16 pixels on a tensor `(3, H, W)`."""

    def __call__(self, image: Tensor) -> Tensor:
        down, right = (int(torch.randint(0, side, ())) for side in image.shape[1:])
        image[:, max(0, down - 8) : down + 8, max(0, right - 8) : right + 8] = 0
        return image


class PilImages(Dataset):
    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels
        self.transform = T.Compose(
            [
                T.ToPILImage(),
                T.RandomCrop(32, padding=4),
                T.RandomHorizontalFlip(),
                T.AutoAugment(AutoAugmentPolicy.CIFAR10, fill=[128, 128, 128]),
                T.ToTensor(),
                Cutout(),
                T.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def plain(data: Path, batch: int, steps: int) -> float:
    """Seconds for so many steps of the published loop."""
    splits = load(str(data))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = Classifier(Architecture(backbone="resnet32"), 100, mean=torch.zeros(3), std=torch.ones(3))
    network = nn.Sequential(classifier.backbone, classifier.head).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = PilImages(splits.train.images, splits.train.labels)
    workers = min(os.cpu_count() or 1, 8)
    loader = DataLoader(images, batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True)
    done, began = 0, 0.0
    while True:
        for pixels, labels in loader:
            loss = nn.functional.cross_entropy(network(pixels.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done == WARM_UP:
                _wait()
                began = time.perf_counter()
            if done == WARM_UP + steps:
                _wait()
                return time.perf_counter() - began


class Clocked(MemoryFeed):
    """Starts the clock after the warm-up steps and stops it at the last."""

    began = ended = 0.0

    def epoch(self, rows, *, seed, first_step, views=1):
        rows = list(rows)
        for step, images in enumerate(super().epoch(rows, seed=seed, first_step=first_step, views=views)):
            if step == WARM_UP:
                _wait()
                self.began = time.perf_counter()
            yield images
        _wait()
        self.ended = time.perf_counter()


def ours(data: Path, batch: int, steps: int) -> float:
    """Seconds for so many steps of our loop: one epoch over as many images as they take."""
    splits = load(str(data))
    _, first_of_class = np.unique(splits.train.labels, return_index=True)
    wanted = (WARM_UP + steps) * batch - len(first_of_class)
    rows = np.concatenate([first_of_class, np.random.default_rng(0).integers(0, len(splits.train.labels), wanted)])
    config = TrainConfig(
        architecture=Architecture(backbone="resnet32"),
        loss="cross-entropy",
        epochs=1,
        batch_size=batch,
        learning_rate=0.1,
        augmentation=Augmentation(padding=4, flip=True, policy="autoaugment", cutout=16),
        precision="bfloat16",
    )
    object.__setattr__(splits, "train", splits.train.subset(rows))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    feed = Clocked(splits.train, config.augmentation, device)
    train(config, splits, feed, new_classifier(config, splits))
    return feed.ended - feed.began


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + children) / 1e6


if __name__ == "__main__":
    kind, path, batch, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    seconds = {"plain": plain, "ours": ours}[kind](path, batch, steps)
    print(json.dumps({"images_a_second": round(batch * steps / seconds, 1), "peak_gb": round(_peak_gb(), 2)}))
