"""What the benchmark of label shift draws from: labelled outputs split in two, and simulated classes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from models.calibration.prior import Ledger
from models.calibration.types import FloatArray, IntArray, LogitSet

Draw = Callable[[np.random.Generator, FloatArray, int], tuple[FloatArray, IntArray]]  # (rng, law, N) -> logits, labels
PER_CLASS = 20  # calibration images of the long-tailed networks
Source = tuple[str, FloatArray, IntArray, Ledger, int]  # name, raw logits, labels, ledger, calibration items a class


def sources(probs: Path, logits: Path) -> Iterator[Source]:
    """Softmax outputs of networks with balanced training, half of them for calibration, and our long-tailed logits."""
    for path in sorted(probs.glob("*.npz")):
        arrays = np.load(path)
        raw, labels = np.log(arrays["probs"].astype(np.float64)), arrays["labels"].astype(np.int64)
        ledger = Ledger.by_rule("balanced-sampling", np.full(raw.shape[1], 100))
        yield path.stem, raw, labels, ledger, labels.size // raw.shape[1] // 2
    counts = np.loadtxt(logits / "cifar100_lt_ir100.csv", delimiter=",", skiprows=1, usecols=(0, 1), dtype=np.int64)
    for name, rule in (("ce", "cross-entropy"), ("bs", "balanced-softmax")):
        parts = [np.load(logits / f"{name}_{part}.npz") for part in ("calibration", "test")]
        raw = np.concatenate([part["logits"] for part in parts]).astype(np.float64)
        labels = np.concatenate([part["labels"] for part in parts]).astype(np.int64)
        yield f"cifar100_lt_resnet32_{rule}", raw, labels, Ledger.by_rule(rule, counts[:, 1]), PER_CLASS


def laws(num_classes: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    tail = np.geomspace(1.0, 0.01, num_classes)
    tail /= tail.sum()
    return {
        "long-tailed": tail,
        "uniform": np.full(num_classes, 1.0 / num_classes),
        "reversed": tail[::-1],
        "Dirichlet(0.5)": rng.dirichlet(np.full(num_classes, 0.5)),
    }


def split(logits: FloatArray, labels: IntArray, per_class: int, seed: int) -> tuple[LogitSet, Draw]:
    """A calibration set, and draws with replacement from the rest."""
    rng = np.random.default_rng(1000 + seed)
    by_class = [rng.permutation(np.flatnonzero(labels == index)) for index in range(logits.shape[1])]
    chosen = np.concatenate([rows[:per_class] for rows in by_class])
    calibration_set = LogitSet(logits=logits[chosen], labels=labels[chosen], split="calibration")

    def draw(rng: np.random.Generator, law: FloatArray, size: int) -> tuple[FloatArray, IntArray]:
        counts = rng.multinomial(size, law)
        rows = np.concatenate([rng.choice(by_class[c][per_class:], n) for c, n in enumerate(counts)])
        return logits[rows], labels[rows]

    return calibration_set, draw


def simulated(
    num_classes: int, per_class: int | IntArray, seed: int, *, spread: float = 0.9, dimensions: int = 24
) -> tuple[LogitSet, Ledger, Draw]:
    """Gaussian classes under the Bayes classifier of a long tail, its logits 1.3 times too large."""
    rng = np.random.default_rng(2000 + seed)
    centres = rng.normal(size=(num_classes, dimensions)) * spread
    counts = np.maximum((1280 * 256.0 ** (-np.arange(num_classes) / (num_classes - 1))).astype(int), 1)

    def logits(rng: np.random.Generator, labels: IntArray) -> FloatArray:
        points = centres[labels] + rng.normal(size=(labels.size, dimensions))
        return 1.3 * (points @ centres.T - 0.5 * (centres**2).sum(axis=1) + np.log(counts))

    labels = np.repeat(np.arange(num_classes), per_class)
    calibration_set = LogitSet(logits=logits(rng, labels), labels=labels, split="calibration", drawn="simulated")

    def draw(rng: np.random.Generator, law: FloatArray, size: int) -> tuple[FloatArray, IntArray]:
        labels = rng.choice(num_classes, size, p=law)
        return logits(rng, labels), labels

    return calibration_set, Ledger.by_rule("cross-entropy", counts), draw
