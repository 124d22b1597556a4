"""Labelled images in memory or in files, and the splits of a data set."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.calibration.errors import EmptyClass
from models.calibration.types import IntArray
from models.images import UInt8Array
from training.data.items import check_items


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageSet:
    """uint8 RGB images `(N, H, W, 3)` and labels `(N,)`, in memory."""

    images: UInt8Array
    labels: IntArray

    def __len__(self) -> int:
        return int(self.labels.size)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[1], self.images.shape[2]

    def subset(self, rows: NDArray[np.int64]) -> "ImageSet":
        return ImageSet(images=self.images[rows], labels=self.labels[rows])

    @property
    def contents(self) -> list[bytes]:
        """One hash an image, of its pixels."""
        return [hashlib.sha256(np.ascontiguousarray(image)).digest() for image in self.images]

    def update(self, digest: "hashlib._Hash") -> None:
        """All pixels and labels into the digest."""
        digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageFiles:
    """Images that stay in files and are decoded when they are needed.

    Args: root, the folder that `paths` (N of them, with `/`) are relative to. labels `(N,)`. image_size, height and
        width in pixels that the network takes. fingerprints and hashes `(N, 32)` uint8: SHA-256 of each file's path,
        size and content, and of its content alone, taken when the files were read for the first time.
    """

    root: Path
    paths: tuple[str, ...]
    labels: IntArray
    image_size: tuple[int, int]
    fingerprints: UInt8Array
    hashes: UInt8Array

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, rows: NDArray[np.int64]) -> "ImageFiles":
        return ImageFiles(
            root=self.root,
            paths=tuple(self.paths[row] for row in rows),
            labels=self.labels[rows],
            image_size=self.image_size,
            fingerprints=self.fingerprints[rows],
            hashes=self.hashes[rows],
        )

    @property
    def contents(self) -> list[bytes]:
        """One hash an image, of its file."""
        return [row.tobytes() for row in self.hashes]

    def update(self, digest: "hashlib._Hash") -> None:
        """Size, all fingerprints and labels into the digest; no file is read."""
        digest.update(repr(self.image_size).encode())
        digest.update(np.ascontiguousarray(self.fingerprints))
        digest.update(np.ascontiguousarray(self.labels))


Images = ImageSet | ImageFiles


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DataSplits:
    """Sets without a common image.

    Args: train; calibration, for the fits; test, for the report; validation, for the choice of an epoch, where there is
        one. drawn says how the calibration set was drawn. imbalance_ratio, that the training images were cut to, or
        None for data as they came. skipped, unreadable files that were left out. items, for each split which images of
        the source it holds (see `training.data.items`).
    Raises: EmptyClass for a class without a training image, InvalidData for splits that share an image.
    """

    name: str
    class_names: tuple[str, ...]
    train: Images
    calibration: Images
    test: Images
    drawn: str
    imbalance_ratio: float | None
    validation: Images | None = None
    skipped: tuple[str, ...] = ()
    items: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = self.class_counts
        if not counts.all():
            empty = int(counts.argmin())
            raise EmptyClass(
                f"every class needs a training image; class {self.class_names[empty]!r} (index {empty}) has none. "
                "Add some, or take the class out of the data."
            )
        if self.items:
            check_items(self.items, {name: len(part) for name, part in self.parts.items()})

    @property
    def parts(self) -> dict[str, Images]:
        """The splits that there are, by name."""
        parts = {"train": self.train, "calibration": self.calibration, "test": self.test}
        return parts if self.validation is None else parts | {"validation": self.validation}

    @property
    def class_counts(self) -> IntArray:
        """Training images a class, `(C,)`."""
        return np.bincount(self.train.labels, minlength=len(self.class_names)).astype(np.int64)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train.image_size

    @property
    def digest(self) -> str:
        """SHA-256 of all images and labels: of the pixels in memory, of the fingerprints of files."""
        total = hashlib.sha256()
        for part in self.parts.values():
            part.update(total)
        return total.hexdigest()

    @property
    def test_digest(self) -> str:
        """SHA-256 of the test images: results on the same ones can be compared image by image."""
        total = hashlib.sha256()
        self.test.update(total)
        return total.hexdigest()
