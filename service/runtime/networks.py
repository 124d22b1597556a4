"""The networks that are in memory: loaded when they are asked for, the least used put out under a bound."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from models.calibration.errors import CalibrationError
from models.calibration.manifest import InputSize
from models.calibration.types import FloatArray
from models.images import UInt8Array
from service.errors import ModelNotLoaded
from service.runtime.onnx import LogitRunner, OnnxRunner

ReadArtifact = Callable[[str], bytes]


class Networks:
    """Sessions by the digest of their graph, so that versions with the same graph share one.

    Args: read, gives the bytes of a digest; limit_bytes, on the sum of the graphs' sizes, which is about what their
        weights take; one network is kept even when it alone is larger; threads, runs of one network at the same time.
    """

    def __init__(self, read: ReadArtifact, *, limit_bytes: int, threads: int) -> None:
        self._read = read
        self._limit = limit_bytes
        self._threads = threads
        self._lock = threading.Lock()  # guards the two below; never held while a network is loaded
        self._loaded: OrderedDict[str, tuple[LogitRunner, int]] = OrderedDict()
        self._loading: dict[str, threading.Lock] = {}

    def get(self, digest: str, num_classes: int, size: InputSize) -> LogitRunner:
        """The network, loaded and tried on two images if it is not there. Whoever holds it can use it to the end.

        Raises: InvalidBundle, StorageUnavailable.
        """
        found = self._find(digest)
        if found is not None:
            return found
        with self._lock:
            turn = self._loading.setdefault(digest, threading.Lock())
        with turn:  # one thread loads, the others wait for it
            found = self._find(digest)
            if found is not None:
                return found
            data = self._read(digest)
            runner = OnnxRunner(data, num_classes=num_classes, input_size=size, threads=self._threads)
            self._keep(digest, runner, len(data))
        return runner

    def drop(self, digest: str) -> None:
        """Put a network out. Runs that have begun end as they would have."""
        with self._lock:
            self._loaded.pop(digest, None)

    def has_room(self) -> bool:
        """Whether a further network, as large as the largest so far, can be loaded without putting one out."""
        with self._lock:
            sizes = [size for _, size in self._loaded.values()]
        return sum(sizes) + max(sizes, default=0) <= self._limit

    def digests(self) -> list[str]:
        """What is loaded, the least recently used first."""
        with self._lock:
            return list(self._loaded)

    def _find(self, digest: str) -> LogitRunner | None:
        with self._lock:
            found = self._loaded.get(digest)
            if found is None:
                return None
            self._loaded.move_to_end(digest)
            return found[0]

    def _keep(self, digest: str, runner: LogitRunner, size: int) -> None:
        with self._lock:
            self._loaded[digest] = (runner, size)
            self._loading.pop(digest, None)
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

    def load(self) -> LogitRunner:
        """Raises: InvalidBundle, StorageUnavailable."""
        return self._networks.get(self._digest, self.num_classes, self._size)

    def unload(self) -> None:
        """Take it out of memory, for all versions that share the graph; whoever asks next loads it again."""
        self._networks.drop(self._digest)

    def is_loaded(self) -> bool:
        return self._digest in self._networks.digests()

    def run(self, images: UInt8Array) -> FloatArray:
        """Raises: ModelNotLoaded."""
        return self.demanded().run(images)

    def demanded(self) -> LogitRunner:
        """Raises: ModelNotLoaded, with the reason, when it is not in memory and cannot be loaded."""
        try:
            return self.load()
        except CalibrationError as error:
            raise ModelNotLoaded(f"model {self._model!r} is registered but cannot be loaded: {error}") from error
