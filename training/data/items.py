"""Which images of a source a split holds, in words that a person reads and a program checks: `0-479,500 of the digits`.

The index of an image is its position in the source, from 0; a range includes both ends.
"""

from collections.abc import Mapping

import numpy as np

from models.calibration.types import IntArray
from training.data.errors import InvalidData

NONE = "none"


def describe(rows: IntArray, source: str) -> str:
    """Positions `(N,)` in any order, as ascending ranges of the named source."""
    rows = np.sort(rows)
    if not rows.size:
        return f"{NONE} of {source}"
    runs = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    ranges = (str(run[0]) if run.size == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"{','.join(ranges)} of {source}"


def positions(text: str) -> tuple[IntArray, str]:
    """Ascending positions and the source: the inverse of `describe`. Raises: InvalidData."""
    ranges, _, source = text.partition(" of ")
    try:
        if not source:
            raise ValueError("no source")
        ends = [] if ranges == NONE else [[int(end) for end in part.split("-")] for part in ranges.split(",")]
        pieces = [np.arange(end[0], end[-1] + 1, dtype=np.int64) for end in ends]
    except ValueError as error:
        raise InvalidData(
            f"the images of a split are given as ranges of a source, like '0-479,500 of the digits'; got {text[:80]!r}."
        ) from error
    return np.concatenate([np.empty(0, dtype=np.int64), *pieces]), source


def check_items(items: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    """Every split described, with its size, and no image in two of them.

    Args: items and the number of images, both by the name of the split.
    Raises: InvalidData.
    """
    if set(items) != set(sizes):
        raise InvalidData(f"items must describe {', '.join(sizes)}; got {', '.join(items)}.")
    seen: dict[str, dict[str, IntArray]] = {}
    for split, text in items.items():
        rows, source = positions(text)
        if rows.size != sizes[split]:
            raise InvalidData(f"{split} has {sizes[split]} images, its items describe {rows.size}: {text[:80]!r}.")
        for other, others in seen.setdefault(source, {split: rows}).items():
            shared = np.intersect1d(rows, others)
            if other != split and shared.size:
                raise InvalidData(
                    f"no image may be in two splits; {other} and {split} share {shared.size} images of {source}, "
                    f"the first is image {shared[0]}."
                )
        seen[source][split] = rows
