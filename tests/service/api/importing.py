"""What a client sends to import the linear classifier of `tests.models.onnx_graph.networks`."""

import io
from typing import Any

import httpx
import numpy as np

from models.calibration.types import LogitSet
from tests.models.onnx_graph.networks import CLASSES, COUNTS, MEAN, STD
from tests.service.conftest import Service

IMPORT = "/v1/models/birds/import"
BIRDS = "/v1/models/birds"
TOLD = {
    "trained_with": "cross-entropy",
    "mean": ",".join(map(str, MEAN)),
    "std": ",".join(map(str, STD)),
}
FILES = {
    "counts": "".join(f"{name},{count}\n" for name, count in zip(CLASSES, COUNTS, strict=True)).encode(),
    "classes": "".join(f"{name}\n" for name in CLASSES).encode(),
}


def npz(examples: LogitSet, **changed: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **({"logits": examples.logits, "labels": examples.labels} | changed))
    return buffer.getvalue()


def serialised(model: Any) -> bytes:
    return model if isinstance(model, bytes) else bytes(model.SerializeToString())


def send(
    service: Service, model: Any = None, *, url: str = IMPORT, params: dict | None = None, **parts: Any
) -> httpx.Response:
    """Args: model, ONNX or the bytes of a file; parts, bytes for files, texts for the rest, None to leave one out."""
    told = TOLD | FILES | ({} if model is None else {"model": serialised(model)}) | parts
    texts = {name: value for name, value in told.items() if isinstance(value, str)}
    files = {name: (f"{name}.bin", value) for name, value in told.items() if isinstance(value, bytes)}
    return service.post(url, data=texts, files=files, params=params)
