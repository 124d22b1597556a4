"""Image files become images in memory, or checked references: every file is read and decoded once when data are loaded.

Files that are no images stop the load (`corrupt="stop"`) or are left out and named (`"skip"`). A file that is not there
at all always stops it.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from models.calibration.errors import ImageTooLarge, InvalidImage
from models.calibration.types import IntArray
from models.images import UInt8Array, decode_image
from training.data.copies import warn_of_same_images
from training.data.errors import InvalidData, LeftOut, first_few
from training.data.splits import ImageFiles, Images, ImageSet

Corrupt = Literal["stop", "skip"]

MAX_SIDE = 64  # pixels; images of at most this size are kept in memory
MAX_BYTES = 2 * 1024**3  # if all of them together take no more than this
CHUNK = 4096  # files that wait for a thread at a time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Listing:
    """The files of one split: `paths` relative to a root folder, with `/`, and labels `(N,)`; `source` in words."""

    paths: tuple[str, ...]
    labels: IntArray
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ReadFiles:
    """By the name of the split, the images and their positions in the listing; and the files that were left out."""

    parts: dict[str, Images]
    positions: dict[str, IntArray]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _File:
    """What reading one file showed: hashes of path and content, of the content alone, and what is wrong with it."""

    fingerprint: bytes = b""
    content: bytes = b""
    problem: str = ""
    missing: bool = False


def read_files(listings: dict[str, Listing], root: Path, *, image_size: tuple[int, int], corrupt: Corrupt) -> ReadFiles:
    """Read every file once, in threads.

    Images of at most 64 x 64 pixels are kept in memory when all splits together take at most 2 GiB; other images stay
    in their files. Warns (SameImages) when two splits share a file's bytes under two names, and (LeftOut) of files that
    are skipped.

    Raises: InvalidData for files that are missing, given twice or, unless they are skipped, no images.
    """
    check_given_once(listings)
    total = sum(len(listing.paths) for listing in listings.values())
    in_memory = max(image_size) <= MAX_SIDE and total * image_size[0] * image_size[1] * 3 <= MAX_BYTES
    files: dict[str, list[_File]] = {}
    pixels: dict[str, UInt8Array] = {}
    with ThreadPoolExecutor() as pool:
        for split, listing in listings.items():
            kept = np.empty((len(listing.paths) if in_memory else 0, *image_size, 3), dtype=np.uint8)
            files[split] = list(_read_all(pool, root, listing.paths, image_size, kept if in_memory else None))
            pixels[split] = kept
    skipped = _check_readable(listings, files, root, corrupt)
    contents = {split: [file.content for file in read] for split, read in files.items()}
    warn_of_same_images(contents, {split: listing.paths for split, listing in listings.items()})
    parts: dict[str, Images] = {}
    positions: dict[str, IntArray] = {}
    for split, listing in listings.items():
        good = np.array([not file.problem for file in files[split]], dtype=bool)
        whole: Images = ImageFiles(
            root=root,
            paths=listing.paths,
            labels=listing.labels,
            image_size=image_size,
            fingerprints=_as_rows(file.fingerprint for file in files[split]),
            hashes=_as_rows(contents[split]),
        )
        if in_memory:
            whole = ImageSet(images=pixels.pop(split), labels=listing.labels)
        positions[split] = np.flatnonzero(good)
        parts[split] = whole if good.all() else whole.subset(positions[split])
    return ReadFiles(parts=parts, positions=positions, skipped=skipped)


def check_given_once(listings: dict[str, Listing]) -> None:
    """Raises: InvalidData with the path of a file that is listed twice, in one split or in two."""
    seen: dict[str, str] = {}
    twice: list[str] = []
    for split, listing in listings.items():
        for path in listing.paths:
            if path in seen:
                where = f"twice in {split}" if seen[path] == split else f"in {seen[path]} and in {split}"
                twice.append(f"{path} ({where})")
            seen[path] = split
    if twice:
        raise InvalidData(
            f"every file may be given once, in one split; {len(twice)} are given again: {first_few(twice)}. An image "
            "that is in training and in a test measures memory. Take it out of one of them."
        )


def _read_all(
    pool: ThreadPoolExecutor, root: Path, paths: tuple[str, ...], size: tuple[int, int], kept: UInt8Array | None
) -> Iterator[_File]:
    def read(index: int) -> _File:
        return _read_one(root, paths[index], size, None if kept is None else kept[index])

    for start in range(0, len(paths), CHUNK):  # map alone would queue all files at once
        yield from pool.map(read, range(start, min(start + CHUNK, len(paths))))


def _read_one(root: Path, path: str, size: tuple[int, int], kept: UInt8Array | None) -> _File:
    """Decode one file, into `kept` where it is given."""
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        return _File(problem=error.strerror or str(error), missing=True)
    try:
        image = decode_image(data, height=size[0], width=size[1])
    except (InvalidImage, ImageTooLarge) as error:
        return _File(problem=str(error))
    if kept is not None:
        kept[...] = image
    content = hashlib.sha256(data).digest()
    name = path.encode("utf-8", "surrogateescape")  # file names on Linux need not be text
    return _File(hashlib.sha256(b"%b\0%d\0%b" % (name, len(data), content)).digest(), content)


def _check_readable(
    listings: dict[str, Listing], files: dict[str, list[_File]], root: Path, corrupt: Corrupt
) -> tuple[str, ...]:
    """The files to leave out. Raises: InvalidData for those that cannot be left out."""
    bad = [
        (path, file)
        for split, listing in listings.items()
        for path, file in zip(listing.paths, files[split], strict=True)
        if file.problem
    ]
    total = sum(map(len, files.values()))
    missing = [f"{path} ({file.problem})" for path, file in bad if file.missing]
    if missing:
        raise InvalidData(
            f"every listed image must be a file that can be read; {len(missing)} of {total} cannot: "
            f"{first_few(missing)}. Paths are looked up in {root}; check that folder."
        )
    if bad and corrupt == "stop":
        raise InvalidData(
            f"every file must hold one image; {len(bad)} of {total} do not: {first_few([path for path, _ in bad])}. "
            f"The first: {bad[0][1].problem} Repair or remove them, or train without them (--corrupt skip)."
        )
    # names on Linux need not be text, and what is written down has to be
    skipped = tuple(path.encode("utf-8", "backslashreplace").decode() for path, _ in bad)
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {total} files are no images and are left out: {first_few(skipped)}.",
            LeftOut,
            stacklevel=3,
        )
    return skipped


def _as_rows(hashes: Iterable[bytes]) -> UInt8Array:
    return np.frombuffer(b"".join(each or bytes(32) for each in hashes), dtype=np.uint8).reshape(-1, 32)
