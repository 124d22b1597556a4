"""Balanced Softmax (Ren et al., NeurIPS 2020): the class counts enter the logits in training and only there."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.calibration.errors import EmptyClass


def balanced_softmax(logits: Tensor, targets: Tensor, class_counts: Tensor) -> Tensor:
    """Mean of -log(n_y exp z_y / sum_j n_j exp z_j): the cross-entropy of `z + log n`.

    Args: logits `(N, C)`, targets `(N,)` class indices, class_counts `(C,)` of the training set actually used.
    Raises: EmptyClass for a count that is not positive, whose logarithm would leave the class out for good.
    """
    if not bool((class_counts > 0).all()):
        empty = int((class_counts <= 0).nonzero()[0])
        raise EmptyClass(f"Balanced Softmax needs a training example of every class; class {empty} has none.")
    return F.cross_entropy(logits + class_counts.to(logits).log(), targets)


class BalancedSoftmaxLoss(nn.Module):
    """`balanced_softmax` with the counts held as a buffer."""

    def __init__(self, class_counts: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_counts", torch.as_tensor(class_counts))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return balanced_softmax(logits, targets, self.class_counts)
