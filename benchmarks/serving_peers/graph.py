"""The network as every server of the benchmark holds it. Nothing but NumPy and onnxruntime: peers have no more."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

SHAPE = (32, 32, 3)


def session(model: Path | str) -> Any:
    """A session with one thread a run that does not spin: what serves best on a machine that others use too."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def scores(network: Any, pixels: list[bytes]) -> list[list[float]]:
    """One row of scores `(100,)` an image of 3,072 bytes."""
    images = np.frombuffer(b"".join(pixels), dtype=np.uint8).reshape(-1, *SHAPE)
    (rows,) = network.run(["scores"], {"images": images})
    return list(rows.tolist())
