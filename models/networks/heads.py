"""Classification heads `(N, D)` -> `(N, C)`, the last layer: raw logits come out."""

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
