"""CIBL, class instance balanced learning (Lavoie and Waslander, arXiv 2307.05322): a reconstruction.

The abstract says that cross-entropy and a contrastive loss are weighted against each other by how many instances of the
class the training batch holds, with a trade-off parameter, the contrastive loss being favoured for common classes. The
published formula, its hyper-parameters and its code were not available to us. What stands here is *inferred* from the
abstract and from PaCo (Cui et al., ICCV 2021), whose softmax over classes and samples weights the two the same way:

    w_contrast(i) = alpha m_i / (1 + alpha m_i),   w_classify(i) = 1 / (1 + alpha m_i)
    L = mean_i w_classify(i) L_classify(i) + w_contrast(i) L_contrast(i)

with m_i the number of other items of the class of i that i is compared with.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.calibration.errors import CalibrationError, ShapeMismatch


@dataclass(frozen=True, slots=True, kw_only=True)
class CiblConfig:
    """The trade-off and the contrast; the defaults come from neighbours (PaCo), not from CIBL.

    Args: alpha, at least 0 (0 is the classification loss alone). temperature of the similarities. projection,
        outputs of the projection head. queue, how many projected features of earlier steps are compared with as well.
        normalized, whether the two weights sum to 1; if not, w_classify is 1 and w_contrast is alpha m_i.
    """

    alpha: float = 0.05
    temperature: float = 0.1
    projection: int = 32
    queue: int = 0
    normalized: bool = True

    def __post_init__(self) -> None:
        rules = {
            "alpha is at least 0 and finite": 0 <= self.alpha < float("inf"),
            "temperature is positive and finite": 0 < self.temperature < float("inf"),
            "projection is at least 1": self.projection >= 1,
            "queue is at least 0": self.queue >= 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise CalibrationError(f"CIBL's {rule}; got {getattr(self, rule.split()[0])!r}.")


def instance_weights(num_others: Tensor, alpha: float, *, normalized: bool = True) -> tuple[Tensor, Tensor]:
    """Weights of the classification and of the contrastive loss for each anchor, from the number of other items of its
    class `(N,)`. No gradient flows into them: counts are constants."""
    pull = alpha * num_others
    if normalized:
        return 1 / (1 + pull), pull / (1 + pull)
    return torch.ones_like(pull), pull


def supervised_contrastive(
    features: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    others: Tensor | None = None,
    other_targets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Each item against all others: mean negative log share of the items of its class (Khosla et al., NeurIPS 2020,
    eq. 2, `out`).

    Args: features `(N, D)` of length 1, targets `(N,)`; others `(Q, D)` and other_targets `(Q,)`, more to compare with
        that are no anchors.
    Returns: losses `(N,)` in nats, 0 where no other item has the class, and the number of those items `(N,)`.
    """
    if targets.shape != features.shape[:1]:
        raise ShapeMismatch(f"targets must be ({features.shape[0]},) like the features; got {tuple(targets.shape)}.")
    candidates, classes = features, targets
    if others is not None and other_targets is not None:
        candidates, classes = torch.cat([features, others]), torch.cat([targets, other_targets])
    similarity = (features.float() @ candidates.float().T) / temperature
    itself = torch.eye(len(features), len(candidates), dtype=torch.bool, device=features.device)
    log_share = torch.log_softmax(similarity.masked_fill(itself, -torch.inf), dim=1)
    positive = (targets[:, None] == classes) & ~itself
    count = positive.sum(dim=1).to(log_share.dtype)
    pulled = log_share.masked_fill(~positive, 0.0).sum(dim=1)
    return -pulled / count.clamp(min=1), count


class CiblLoss(nn.Module):
    """Mean over the batch of both losses, weighted for each item by `instance_weights`.

    Args: classify, `(logits, targets, reduction="none") -> (N,)`: cross-entropy or Balanced Softmax.
    """

    def __init__(self, config: CiblConfig, classify: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.classify = classify
        self.register_buffer("queue", torch.zeros(config.queue, config.projection))
        self.register_buffer("queue_targets", torch.full((config.queue,), -1))  # no class: compared with, never pulled

    def forward(self, logits: Tensor, projected: Tensor, targets: Tensor) -> Tensor:
        """Logits `(N, C)`, projected features `(N, D)` of length 1, targets `(N,)`, the views of a step one after the
        other. Returns: a scalar in nats."""
        filled = self.queue_targets >= 0
        contrast, num_others = supervised_contrastive(
            projected,
            targets,
            self.config.temperature,
            others=self.queue[filled],
            other_targets=self.queue_targets[filled],
        )
        classify = self.classify(logits, targets, reduction="none")
        by_label, by_contrast = instance_weights(num_others, self.config.alpha, normalized=self.config.normalized)
        if self.config.queue:
            self._remember(projected.detach(), targets)
        return (by_label * classify + by_contrast * contrast).mean()

    def _remember(self, projected: Tensor, targets: Tensor) -> None:
        self.queue = torch.cat([projected.float(), self.queue])[: self.config.queue]
        self.queue_targets = torch.cat([targets, self.queue_targets])[: self.config.queue]
