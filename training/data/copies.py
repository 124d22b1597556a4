"""Images that are there twice."""

import warnings
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from training.data.errors import SameImages, first_few


def copied(contents: Sequence[bytes]) -> NDArray[np.bool_]:
    """Which of these hashes are there more than once, `(N,)`."""
    _, which, times = np.unique(np.array(contents, dtype=object), return_inverse=True, return_counts=True)
    return np.asarray(times[which] > 1)


def warn_of_same_images(contents: dict[str, Sequence[bytes]], names: dict[str, Sequence[str]]) -> None:
    """Warns (SameImages) of images that are in two splits.

    Args: by the name of the split: contents, a hash of each image, empty for one to pass over; names of the images.
    """
    for first, second in combinations(contents, 2):
        known = {content: name for content, name in zip(contents[first], names[first], strict=True) if content}
        same = [
            f"{name} is {known[content]}"
            for content, name in zip(contents[second], names[second], strict=True)
            if content in known
        ]
        if same:
            warnings.warn(
                f"{len(same)} images of {second} are also images of {first}, which makes results look better than they "
                f"are: {first_few(same)}.",
                SameImages,
                stacklevel=2,
            )
