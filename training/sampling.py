"""The Meta Sampler of Balanced Meta-Softmax (Ren et al., NeurIPS 2020): how often each class is drawn is learned.

psi `(C,)` gives a class the rate r = sigmoid(psi) of each of its images, so its mass is proportional to n r. The rates
follow the gradient of a class-balanced meta loss through one virtual step of the linear head. The head being linear,
that gradient has a closed form, and no library for higher-order gradients is needed. Classes are drawn instead of
images: the same law for the batch, C numbers instead of N in the softmax.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.feed import generator_for
from training.losses.balanced_softmax import check_counts


class MetaSampler:
    """psi, its Adam, and the draws.

    Args: class_counts `(C,)`, initial_power as in `initial_psi`.
    """

    def __init__(self, class_counts: Tensor, *, learning_rate: float, initial_power: float = 0.0) -> None:
        check_counts(class_counts, class_counts.numel())
        self.class_counts = class_counts
        self.psi = initial_psi(class_counts, initial_power).requires_grad_()
        self.optimizer = torch.optim.Adam([self.psi], lr=learning_rate)

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Classes of a batch `(num,)`, and the straight-through weight of each draw `(num,)`: 1, with the gradient of
        the relaxed draw (Gumbel-softmax, temperature 1) towards psi."""
        log_mass = log_class_mass(self.psi, self.class_counts)
        noise = gumbel_noise((num, len(self.psi)), generator).to(log_mass)
        relaxed = torch.softmax(log_mass + noise, dim=1)
        classes = relaxed.argmax(dim=1).detach()
        share = relaxed.gather(1, classes[:, None])[:, 0]
        return classes, 1 + share - share.detach()

    def step(self, draw_weights: Tensor, gradient: Tensor) -> None:
        """One step of Adam on psi, from the gradient of the meta loss towards the draw weights `(num,)`."""
        self.optimizer.zero_grad(set_to_none=True)
        draw_weights.backward(gradient)
        self.optimizer.step()

    @property
    def rates(self) -> Tensor:
        """sigmoid(psi) `(C,)`, the relative rate at which an image of each class is drawn."""
        return torch.sigmoid(self.psi.detach())


def initial_psi(class_counts: Tensor, power: float) -> Tensor:
    """The logit of a = n^-power, scaled so that its smallest and largest entries lie symmetric around one half."""
    rates = class_counts.double() ** -power
    return torch.logit(rates / (rates.min() + rates.max())).float()


def log_class_mass(psi: Tensor, class_counts: Tensor) -> Tensor:
    """log(n sigmoid(psi)) `(C,)`, up to a constant the log law of the drawn classes."""
    return class_counts.to(psi).log() + F.logsigmoid(psi)


def gumbel_noise(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    uniform = torch.rand(shape, generator=generator).clamp(1e-10, 1 - 1e-7)
    return -torch.log(-torch.log(uniform))


@dataclass(frozen=True, slots=True)
class LinearStep:
    """One step of SGD with momentum on a linear head `(C, D + 1)`, the bias being its last column."""

    learning_rate: float
    momentum: float
    weight_decay: float

    def buffer(self, head: Tensor, gradient: Tensor, buffer: Tensor) -> Tensor:
        return self.momentum * buffer + gradient + self.weight_decay * head


def softmax_residual(head: Tensor, features: Tensor, targets: Tensor, shift: Tensor | float = 0.0) -> Tensor:
    """d loss_i / d logits_i of cross-entropy on `logits + shift`, `(N, C)`."""
    logits = features @ head.T + shift
    return torch.softmax(logits, dim=1) - F.one_hot(targets, len(head)).to(logits)


def meta_gradient(
    head: Tensor,
    buffer: Tensor,
    step: LinearStep,
    *,
    features: Tensor,
    targets: Tensor,
    shift: Tensor,
    meta_features: Tensor,
    meta_targets: Tensor,
    draw_weights: Tensor,
) -> Tensor:
    """Gradient `(N,)` of the meta loss after a virtual step towards the weights of the drawn items.

    The virtual step descends mean_i w_i BalancedSoftmax_i; the meta loss is plain cross-entropy. With the head linear,
    d meta / d w_i = -learning rate <gradient of the meta loss, gradient of loss_i> / N.

    Args: head and buffer `(C, D + 1)`; features `(N, D + 1)` and meta_features `(M, D + 1)` with a last column of ones;
        shift, log n, `(C,)`.
    """
    residual = softmax_residual(head, features, targets, shift)
    inner = (residual * draw_weights[:, None]).T @ features / len(targets)
    moved = head - step.learning_rate * step.buffer(head, inner, buffer)
    outer = softmax_residual(moved, meta_features, meta_targets).T @ meta_features / len(meta_targets)
    return -step.learning_rate / len(targets) * ((residual @ outer) * features).sum(dim=1)


class ClassBalancedRows:
    """Rows of the meta set: the classes in turn, shuffled anew each round, and each class's images in turn likewise.

    What comes at a place is decided by the seed and the place alone.
    """

    def __init__(self, labels: Tensor, num_classes: int, seed: int) -> None:
        self.rows = [(labels == label).nonzero()[:, 0] for label in range(num_classes)]
        self.seed = seed

    def take(self, start: int, num: int) -> Tensor:
        """Rows at the places start, ..., start + num - 1."""
        taken = []
        for place in range(start, start + num):
            turn, at = divmod(place, len(self.rows))
            label = int(self._shuffled(len(self.rows), 0, turn)[at])
            lap, index = divmod(turn, len(self.rows[label]))
            taken.append(self.rows[label][self._shuffled(len(self.rows[label]), 1 + label, lap)[index]])
        return torch.stack(taken)

    def _shuffled(self, length: int, *key: int) -> Tensor:
        return torch.randperm(length, generator=generator_for(self.seed, *key))
