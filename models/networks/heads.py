"""Classification heads `(N, D)` -> `(N, C)`, the last layer: raw logits come out."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHead(nn.Linear):
    """`W x + b`, Kaiming-normal weights and no bias at the start."""

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)

    @property
    def row_norms(self) -> Tensor:
        """||W_j|| without the bias, `(C,)`: the unit of MARC's beta."""
        return self.weight.detach().norm(dim=1)


class CosineHead(nn.Module):
    """`scale * cos(x, W_j)`: logits in [-scale, scale], no bias. The scale is fixed and part of the raw logits, so
    that whatever a loss adds (log n) comes after it.

    Source: the normalised classifiers of OLTR (Liu et al., CVPR 2019) and BCL (Zhu et al., CVPR 2022; scale 30).
    """

    def __init__(self, num_features: int, num_classes: int, *, scale: float = 30.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, num_features))
        self.scale = scale
        nn.init.kaiming_normal_(self.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    @property
    def row_norms(self) -> Tensor:
        """The norm of the rows that are multiplied, `(C,)`: the scale for every class."""
        return torch.full((self.weight.shape[0],), self.scale)


class RectifiedHead(nn.Module):
    """Logit rectification: a head followed by BatchNorm over the logits without affine parameters, which takes out each
    class's average logit and equalises their spread (NBN's official code; the paper's formula was not available).

    Its logits imply no class prior by formula: measure it.
    """

    def __init__(self, head: LinearHead | CosineHead, num_classes: int) -> None:
        super().__init__()
        self.head = head
        self.rectify = nn.BatchNorm1d(num_classes, affine=False)

    def forward(self, features: Tensor) -> Tensor:
        return self.rectify(self.head(features))

    @property
    def row_norms(self) -> Tensor:
        """||W_j|| of the folded head, `(C,)`."""
        return self.head.row_norms.to(self._spread.device) / self._spread

    @property
    def _spread(self) -> Tensor:
        assert self.rectify.running_var is not None
        return (self.rectify.running_var + self.rectify.eps).sqrt()

    def folded(self) -> LinearHead:
        """The plain linear head that gives the same logits in evaluation mode; for a linear head only."""
        assert isinstance(self.head, LinearHead)
        plain = LinearHead(self.head.in_features, self.head.out_features).to(self.head.weight.device)
        with torch.no_grad():
            plain.weight.copy_(self.head.weight / self._spread[:, None])
            plain.bias.copy_((self.head.bias - self.rectify.running_mean) / self._spread)
        return plain


class ProjectionHead(nn.Sequential):
    """Features to the unit sphere where the contrastive loss compares them; only training uses it. Two layers with
    BatchNorm, 32 outputs, as in PaCo's code (Cui et al., ICCV 2021)."""

    def __init__(self, num_features: int, num_outputs: int = 32) -> None:
        super().__init__(
            nn.Linear(num_features, num_features, bias=False),
            nn.BatchNorm1d(num_features),
            nn.ReLU(inplace=True),
            nn.Linear(num_features, num_outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(N, D)` -> `(N, num_outputs)`, rows of length 1."""
        return F.normalize(super().forward(features), dim=1)
