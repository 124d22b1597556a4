"""Running commands as a user does, and the files that they need."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.service.bundles import HEIGHT, WIDTH


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


def image_file(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, size=(height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path
