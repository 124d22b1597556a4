"""A network as a line of work: examples of many requests, decoded, run and mapped to scores together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.calibration.apply import LogitArray, ScoreMap
from models.calibration.errors import CalibrationError, InvalidLogits
from models.calibration.manifest import InputSize
from models.images import UInt8Array
from service.runtime.onnx import MAX_BATCH, OnnxRunner
from service.runtime.pool import Line, Piece
from service.runtime.scoring import pixels_of

HEAVY_BYTES = (
    64 << 10
)  # files of this size are decoded in a batch of their own, so that small ones do not wait for them


@dataclass(slots=True, eq=False)
class Examples:
    """What a request, or a piece of it, sends to a network.

    Args: pixels `(N, H, W, 3)`, or what image files give it; scores, the map to apply to the logits, None for the raw
        logits.
    """

    pixels: UInt8Array | Files
    scores: ScoreMap | None


@dataclass(frozen=True, slots=True, eq=False)
class Files:
    """Image files, with what the client calls them, if anything; `first` is the number of the first among all."""

    data: Sequence[bytes]
    max_pixels: int
    names: Sequence[str] = ()
    first: int = 1

    def __len__(self) -> int:
        return len(self.data)


class NetworkLine(Line):
    """Examples of one network. A file that is no image fails its request, and none of its neighbours."""

    def __init__(self, name: str, runner: OnnxRunner, size: InputSize) -> None:
        super().__init__(name, most=MAX_BATCH)
        self.num_classes = runner.num_classes
        self.run = runner.run
        self._size = size

    def do(self, payloads: Sequence[Examples]) -> list[LogitArray | CalibrationError]:
        """Scores or logits `(N, C)` for each."""
        results: list[LogitArray | CalibrationError] = [self._pixels(each.pixels) for each in payloads]
        good = [(index, each) for index, each in enumerate(results) if isinstance(each, np.ndarray)]
        if not good:
            return results
        logits = self.run(_together([each for _, each in good]))
        scores = _at_once(logits, {payloads[index].scores for index, _ in good})
        start = 0
        for index, each in good:
            own, start = slice(start, start + len(each)), start + len(each)
            results[index] = _scored(logits[own], payloads[index].scores) if scores is None else scores[own]
        return results

    def _pixels(self, pixels: UInt8Array | Files) -> UInt8Array | CalibrationError:
        if not isinstance(pixels, Files):
            return pixels
        try:
            return pixels_of(
                pixels.data, self._size, max_pixels=pixels.max_pixels, names=pixels.names, first=pixels.first
            )
        except CalibrationError as error:
            return error


def _together(parts: Sequence[UInt8Array]) -> UInt8Array:
    """Not by NumPy, which lets go of the interpreter for each part, and waits until it gets it back."""
    if len(parts) == 1:
        return parts[0]
    return np.frombuffer(b"".join([part.data for part in parts]), dtype=np.uint8).reshape(-1, *parts[0].shape[1:])


def _at_once(logits: LogitArray, maps: set[ScoreMap | None]) -> LogitArray | None:
    """The scores of all, where all ask for the same map and all logits are sound."""
    shared = maps.pop() if len(maps) == 1 else None
    if shared is None:
        return None
    try:
        return shared(logits)
    except InvalidLogits:
        return None


def _scored(logits: LogitArray, scores: ScoreMap | None) -> LogitArray | CalibrationError:
    try:
        if scores is not None:
            return scores(logits)
        if np.isfinite(logits).all():
            return logits
    except InvalidLogits:
        pass
    return InvalidLogits("logits must be finite numbers; the network gave others for an image. Look at the images.")


def pieces_of(pixels: UInt8Array | Files, scores: ScoreMap | None) -> list[Piece]:
    """A request in pieces that fit a batch, so that one with many examples does not hold a thread for long."""
    if isinstance(pixels, Files):
        return _pieces_of_files(pixels, scores)
    if len(pixels) <= MAX_BATCH:
        return [Piece(Examples(pixels, scores), len(pixels))]
    starts = range(0, len(pixels), MAX_BATCH)
    parts = [pixels[start : start + MAX_BATCH] for start in starts]
    return [Piece(Examples(part, scores), len(part)) for part in parts]


def _pieces_of_files(files: Files, scores: ScoreMap | None) -> list[Piece]:
    found: list[Piece] = []
    for start in range(0, len(files.data), MAX_BATCH):
        end = start + MAX_BATCH
        part = Files(files.data[start:end], files.max_pixels, files.names[start:end], files.first + start)
        alone = sum(map(len, part.data)) > HEAVY_BYTES
        found.append(Piece(Examples(part, scores), len(part.data), alone=alone))
    return found
