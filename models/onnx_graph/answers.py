"""What a classifier made elsewhere answers: logits or probabilities. Never guessed, but a mix-up shows."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.onnx_graph.errors import InvalidModel

OutputKind = Literal["logits", "probabilities"]
FLOOR = 1e-30  # of a probability before its logarithm: a softmax in float32 may underflow to 0


def as_logits(rows: NDArray[Any], source: str, kind: OutputKind) -> NDArray[Any]:
    """Rows `(N, C)` as logits, if they are what they are said to be.

    What is no array of rows of numbers is given back as it is, for `LogitSet` to refuse.

    Args: source, what the message calls the rows.
    Raises: InvalidModel for logits that are probabilities, and for probabilities that are none.
    """
    if rows.ndim != 2 or not rows.size or rows.dtype.kind not in "iuf":
        return rows
    rows = rows.astype(np.float64)
    furthest = float(np.abs(rows.sum(axis=1) - 1).max()) if (rows >= 0).all() else np.inf
    if kind == "logits" and furthest < 1e-3:
        raise InvalidModel(
            f"the rows of {source} are not negative and sum to 1: they are probabilities, whose logarithms are the "
            "logits. Say output_kind=probabilities."
        )
    if kind == "probabilities" and furthest > 1e-2:
        raise InvalidModel(
            f"probabilities are not negative and sum to 1 in every row; those of {source} do not. "
            "Say output_kind=logits."
        )
    return rows if kind == "logits" else np.log(np.maximum(rows, FLOOR))
