"""A model as the Open Inference Protocol sees it: the tensors that it takes and gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from models.calibration.apply import LogitArray
from models.calibration.manifest import InputSize
from models.calibration.types import FloatArray
from models.images import UInt8Array
from service.errors import InvalidRequest
from service.runtime.batches import Files
from service.runtime.live import LiveModel
from service.runtime.networks import StoredNetwork
from service.runtime.scoring import Scored
from service.runtime.tensors import BYTES, Tensor, array_of, bytes_of, elements_of, float32

IMAGES, IMAGE, LOGITS = "images", "image", "logits"
SCORES, RAW, DEBIASED = "scores", "logits", "debiased"
MAX_FILES = 1000  # a file of 70 bytes may become an input of 150 kB; a form of /v1 has the same bound
ANY = -1  # the number of examples, in metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A tensor that a model takes or gives; the first datatype is the one that metadata names."""

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...]

    def shown(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatypes[0], "shape": list(self.shape)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An output that a request asks for; `classification` is how many of the best classes, None for all numbers."""

    name: str
    binary: bool
    classification: int | None = None


def inputs(live: LiveModel) -> list[Port]:
    """What a request sends exactly one of: pixels, image files, or logits."""
    return list(_inputs(len(live.class_names), live.input_size).values())


@lru_cache(maxsize=256)
def _inputs(num_classes: int, size: InputSize | None) -> dict[str, Port]:
    logits = Port(name=LOGITS, datatypes=("FP32", "FP64"), shape=(ANY, num_classes))
    if size is None:
        return {LOGITS: logits}
    pixels = Port(name=IMAGES, datatypes=("UINT8",), shape=(ANY, size.height, size.width, 3))
    return {IMAGES: pixels, IMAGE: Port(name=IMAGE, datatypes=(BYTES,), shape=(ANY,)), LOGITS: logits}


def outputs(live: LiveModel) -> list[Port]:
    shape = (ANY, len(live.class_names))
    return [Port(name=name, datatypes=("FP32",), shape=shape) for name in (SCORES, RAW, DEBIASED)]


def pixels_of(tensor: Tensor, *, max_pixels: int) -> UInt8Array | Files:
    """What the network is to see, of a tensor that was checked. Raises: InvalidRequest."""
    if tensor.name == IMAGES:
        return array_of(tensor)
    if tensor.size > MAX_FILES:
        raise InvalidRequest(f"{IMAGE!r} holds at most {MAX_FILES} files; got {tensor.size}. Send several requests.")
    names = [f"element {index} of {IMAGE!r}" for index in range(tensor.size)]
    return Files(elements_of(tensor), max_pixels, names)


def logits_of(tensor: Tensor) -> FloatArray:
    """`(N, C)`, of a tensor that was checked. Raises: InvalidRequest."""
    return array_of(tensor).astype(np.float64)


def check(live: LiveModel, tensor: Tensor) -> None:
    """Name, datatype and shape, before the data is looked at. Raises: InvalidRequest."""
    ports = _inputs(len(live.class_names), live.input_size)
    port = ports.get(tensor.name)
    if port is None:
        raise InvalidRequest(
            f"model {live.name!r} takes one input, named {' or '.join(ports)}; got {tensor.name[:80]!r}. "
            f"GET /v2/models/{live.name} describes them."
        )
    if tensor.datatype not in port.datatypes:
        raise InvalidRequest(f"input {port.name!r} is {' or '.join(port.datatypes)}; got {tensor.datatype}.")
    fits = len(tensor.shape) == len(port.shape) and all(
        wants in (ANY, has) for has, wants in zip(tensor.shape, port.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"input {port.name!r} has shape {list(port.shape)}, where -1 is any number; got {list(tensor.shape)}."
        )


def values_of(scored: Scored) -> dict[str, FloatArray]:
    """The outputs `(N, C)` by name."""
    return {SCORES: scored.scores, RAW: scored.raw.values, DEBIASED: scored.debiased.values}


def encoded(
    class_names: Sequence[str], outputs: Mapping[str, LogitArray], asked: Sequence[Asked]
) -> tuple[list[dict[str, Any]], bytes]:
    """The outputs as the JSON of the answer says them, and the binary data that follows it, in the same order.

    Args: outputs `(N, C)` by name, those that are asked for at least. Raises: InvalidRequest for a `classification` of
    more classes than there are.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for each in asked:
        values = outputs[each.name]
        if each.classification is None:
            described.append({"name": each.name, "datatype": "FP32", "shape": list(values.shape)})
            data: Any = float32(values).ravel()
        else:
            data = _classification(class_names, values, each.classification)
            described.append({"name": each.name, "datatype": BYTES, "shape": [len(values), each.classification]})
        if each.binary:
            binary.append(bytes_of(data))
            described[-1]["parameters"] = {"binary_data_size": len(binary[-1])}
        else:
            described[-1]["data"] = data
    return described, b"".join(binary)


def _classification(class_names: Sequence[str], values: LogitArray, count: int) -> list[str]:
    """The best classes of each row, best first, as "value:index:name"."""
    if not 1 <= count <= len(class_names):
        raise InvalidRequest(f"classification is 1 to {len(class_names)}, the number of classes; got {count}.")
    best = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return [
        f"{np.float32(row[index]):.9g}:{index}:{class_names[index]}"
        for row, order in zip(values, best, strict=True)
        for index in order
    ]


def load(live: LiveModel) -> None:
    """Bring the network into memory where it is not. Raises: ModelNotLoaded."""
    network = network_of(live)
    if network is not None:
        network.demanded()


def network_of(live: LiveModel) -> StoredNetwork | None:
    """The network that may have to be loaded; None for a model that takes logits only."""
    return live.runner if isinstance(live.runner, StoredNetwork) else None
