"""Image files for the tests to load: each differs from the others, so that one seen twice can be told."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def write_image(tmp_path) -> Callable[[str], str]:
    """Write an image that its path decides, 20 x 16 pixels or so large as asked; returns the path below tmp_path."""

    def write(path: str, size: tuple[int, int] = (20, 16)) -> str:
        draw = np.random.default_rng(zlib.crc32(path.encode()))
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(file)
        return path

    return write


@pytest.fixture
def image_folder(tmp_path, write_image) -> Callable[..., Path]:
    """A folder with so many images of each class in each split."""

    def make(**splits: Mapping[str, int]) -> Path:
        for split, classes in splits.items():
            for name, count in classes.items():
                (tmp_path / "birds" / split / name).mkdir(parents=True)
                for number in range(count):
                    write_image(f"birds/{split}/{name}/{number:03}.png")
        return tmp_path / "birds"

    return make


@pytest.fixture
def write_list(tmp_path, write_image) -> Callable[..., Path]:
    """A list file in tmp_path with so many images of each label, written below tmp_path as well."""

    def write(name: str, counts: Mapping[int, int], folder: str = "{label}") -> Path:
        stem = name.removesuffix(".txt")
        lines = [
            f"{write_image(f'{stem}/{folder.format(label=label)}/{number}.png')} {label}"
            for label, count in counts.items()
            for number in range(count)
        ]
        (tmp_path / name).write_text("\n".join(lines) + "\n")
        return tmp_path / name

    return write
