"""The networks that are in memory: loaded when they are asked for, the least used put out under a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from models.calibration.apply import Float32Array
from models.calibration.errors import CalibrationError
from models.calibration.manifest import InputSize
from models.images import UInt8Array
from service.errors import ModelNotLoaded
from service.runtime.batches import NetworkLine
from service.runtime.onnx import OnnxRunner

ReadArtifact = Callable[[str], bytes]
Key = tuple[str, int, int, int]  # digest, number of classes, height and width of the input


class Networks:
    """Networks by the digest of their graph and the size of its input, so that versions with the same share one.

    Args: read, gives the bytes of a digest; limit_bytes, on the sum of the graphs' sizes, which is about what their
        weights take; one network is kept even when it alone is larger.
    """

    def __init__(self, read: ReadArtifact, *, limit_bytes: int) -> None:
        self._read = read
        self._limit = limit_bytes
        self._lock = threading.Lock()  # guards the two below; never held while a network is loaded
        self._loaded: OrderedDict[Key, tuple[NetworkLine, int]] = OrderedDict()
        self._loading: dict[Key, threading.Lock] = {}

    def get(self, digest: str, num_classes: int, size: InputSize, *, name: str = "") -> NetworkLine:
        """The network, loaded and tried on two images if it is not there. Whoever holds it can use it to the end.

        Args: name, of the model that metrics count its runs for. Raises: InvalidBundle, StorageUnavailable.
        """
        key = _key(digest, num_classes, size)
        found = self.find(key)
        if found is not None:
            return found
        with self._lock:
            turn = self._loading.setdefault(key, threading.Lock())
        with turn:  # one thread loads, the others wait for it
            found = self.find(key)
            if found is not None:
                return found
            data = self._read(digest)
            runner = OnnxRunner(data, num_classes=num_classes, input_size=size)
            line = NetworkLine(name, runner, size)
            self._keep(key, line, len(data))
        return line

    def drop(self, digest: str) -> None:
        """Put a network out. Runs that have begun end as they would have."""
        with self._lock:
            for key in [key for key in self._loaded if key[0] == digest]:
                del self._loaded[key]

    def has_room(self) -> bool:
        """Whether a further network, as large as the largest so far, can be loaded without putting one out."""
        with self._lock:
            sizes = [size for _, size in self._loaded.values()]
        return sum(sizes) + max(sizes, default=0) <= self._limit

    def digests(self) -> list[str]:
        """What is loaded, the least recently used first."""
        with self._lock:
            return [digest for digest, *_ in self._loaded]

    def find(self, key: Key) -> NetworkLine | None:
        """The network if it is in memory; it counts as used."""
        with self._lock:
            found = self._loaded.get(key)
            if found is None:
                return None
            self._loaded.move_to_end(key)
            return found[0]

    def _keep(self, key: Key, line: NetworkLine, size: int) -> None:
        with self._lock:
            self._loaded[key] = (line, size)
            self._loading.pop(key, None)
            while len(self._loaded) > 1 and sum(each for _, each in self._loaded.values()) > self._limit:
                self._loaded.popitem(last=False)


class StoredNetwork:
    """A runner of a network that may have to be loaded first."""

    def __init__(self, networks: Networks, digest: str, *, model: str, num_classes: int, size: InputSize) -> None:
        self.num_classes = num_classes
        self._networks = networks
        self._digest = digest
        self._model = model
        self._size = size
        self._key = _key(digest, num_classes, size)

    def load(self) -> NetworkLine:
        """Raises: InvalidBundle, StorageUnavailable."""
        return self._networks.get(self._digest, self.num_classes, self._size, name=self._model)

    def unload(self) -> None:
        """Take it out of memory, for all versions that share the graph; whoever asks next loads it again."""
        self._networks.drop(self._digest)

    def in_memory(self) -> NetworkLine | None:
        """For callers that must not wait; it counts as used."""
        return self._networks.find(self._key)

    def is_loaded(self) -> bool:
        return self._digest in self._networks.digests()

    def run(self, images: UInt8Array) -> Float32Array:
        """Raises: ModelNotLoaded."""
        return self.demanded().run(images)

    def demanded(self) -> NetworkLine:
        """Raises: ModelNotLoaded, with the reason, when it is not in memory and cannot be loaded."""
        try:
            return self.load()
        except CalibrationError as error:
            raise ModelNotLoaded(f"model {self._model!r} is registered but cannot be loaded: {error}") from error


def _key(digest: str, num_classes: int, size: InputSize) -> Key:
    return digest, num_classes, size.height, size.width
