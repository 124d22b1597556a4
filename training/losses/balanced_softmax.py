"""Cross-entropy, the logit-adjusted loss and Balanced Softmax: one form, `CE(logits + tau log n, y)`, tau 0, tau, 1."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.calibration.errors import EmptyClass, ShapeMismatch

Reduction = Literal["mean", "none"]


def logit_adjusted(
    logits: Tensor, targets: Tensor, class_counts: Tensor, tau: float, *, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of `logits + tau log n`: training then leaves raw logits that imply the class law n^(1 - tau).

    The logits come first and complete: a cosine head's scale is inside them before log n is added.

    Args: logits `(N, C)`, targets `(N,)`, class_counts `(C,)`, all at least 1; only their ratios matter.
    Returns: a scalar in nats, or `(N,)` with reduction `none`.
    Raises: EmptyClass for a class without training examples, ShapeMismatch for another number of counts. Menon et al.,
        ICLR 2021, eq. 10.
    """
    check_counts(class_counts, logits.shape[1])
    shift = tau * class_counts.to(logits).log()  # only in training: makes the plain softmax right for balanced data
    return F.cross_entropy(logits + shift, targets, reduction=reduction)


def balanced_softmax(logits: Tensor, targets: Tensor, class_counts: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """Cross-entropy of `logits + log n`: training then leaves raw logits that imply a uniform class law.

    Args, Returns, Raises: as `logit_adjusted`, which this is with tau 1. Ren et al., NeurIPS 2020, eq. 4.
    """
    return logit_adjusted(logits, targets, class_counts, 1.0, reduction=reduction)


def check_counts(class_counts: Tensor, num_classes: int) -> None:
    """Raises: ShapeMismatch, EmptyClass."""
    if class_counts.shape != (num_classes,):
        raise ShapeMismatch(
            f"class_counts must be ({num_classes},) like the logits; got {tuple(class_counts.shape)}. "
            "Count the training images of each class of this network."
        )
    if bool((class_counts < 1).any()):
        raise EmptyClass(
            f"Balanced Softmax needs a training example of every class; class {int(class_counts.argmin())} has none."
        )


class LogitAdjustedLoss(nn.Module):
    """`logit_adjusted` with its class counts `(C,)` as a buffer; tau 0 is cross-entropy, tau 1 Balanced Softmax.

    The counts are checked once, here.
    """

    def __init__(self, class_counts: Tensor, tau: float) -> None:
        super().__init__()
        check_counts(class_counts, class_counts.numel())
        self.register_buffer("class_counts", class_counts)
        self.register_buffer("shift", tau * class_counts.double().log().float())
        self.tau = tau

    def forward(self, logits: Tensor, targets: Tensor, *, reduction: Reduction = "mean") -> Tensor:
        return F.cross_entropy(logits.float() + self.shift, targets, reduction=reduction)
