"""From the bytes of an image file to the pixels that a classifier takes: one rule for training and for serving.

The rule: one still image (PNG, JPEG, WebP, BMP, GIF or TIFF); EXIF rotation is applied; grey is repeated over the three
channels, a palette and CMYK are converted to RGB, alpha is dropped (as the usual training loaders do), 16-bit channels
keep their high byte; 32-bit and floating-point images are refused. Then the shorter side is scaled to the input
(bilinear with antialiasing) and the centre is cropped; an image that already has the input size is not touched. A JPEG
that is many times larger is decoded at a half, a quarter or an eighth of its size, never below twice the input: a third
of the time for the photograph of a telephone, and pixels that differ by half a level of 255 in the mean.
"""

import io
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

from models.calibration.errors import ImageTooLarge, InvalidImage

UInt8Array = NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000
DRAFT_SCALE = 2  # of the input: what antialiasing needs to give nearly the same pixels; at 1 they differ by up to 26

Image.MAX_IMAGE_PIXELS = None  # Pillow only warns between its limit and twice that; `_open` refuses before decoding


def decode_image(data: bytes, *, height: int, width: int, max_pixels: int = MAX_PIXELS) -> UInt8Array:
    """`(height, width, 3)` uint8 RGB.

    Raises: InvalidImage for bytes that are not one still image, ImageTooLarge above `max_pixels`.
    """
    image = _open(data, max_pixels)
    _draft(image, max(height, width))
    return np.asarray(_fit(_decoded(image), height, width))


def decode_rgb(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole image in RGB, decoded and upright: the rule without its last step, the fit to the input.

    Raises: InvalidImage, ImageTooLarge.
    """
    return _decoded(_open(data, max_pixels))


def _decoded(image: ImageFile.ImageFile) -> Image.Image:
    try:
        _check_still(image)
        return _to_rgb(image)
    except InvalidImage:
        raise
    except Exception as error:  # what Pillow raises for a damaged file has no common base
        raise InvalidImage(f"the {image.format} image is damaged: {error}. Send a complete file.") from error


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    if not data:
        raise InvalidImage("an image file has at least one byte; got an empty body.")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # as above
        raise InvalidImage(
            f"the bytes are not an image of a known kind ({', '.join(FORMATS)}); they begin with {data[:8]!r}."
        ) from error
    if image.width * image.height > max_pixels:
        raise ImageTooLarge(
            f"an image has at most {max_pixels:,} pixels; got {image.width} x {image.height}. Scale it down first."
        )
    return image


def _draft(image: ImageFile.ImageFile, longer_side: int) -> None:
    """Let a JPEG be decoded smaller where it can; other formats know no such thing."""
    least = DRAFT_SCALE * longer_side / min(image.size)
    image.draft(None, (ceil(image.width * least), ceil(image.height * least)))


def _check_still(image: Image.Image) -> None:
    # An MPO is a JPEG followed by previews for other screens: phones write it, and its first frame is the picture.
    frames = getattr(image, "n_frames", 1)
    if image.format != "MPO" and frames > 1:
        raise InvalidImage(f"a still image is needed; this {image.format} has {frames} frames. Send one of them.")


def _to_rgb(image: Image.Image) -> Image.Image:
    ImageOps.exif_transpose(image, in_place=True)  # a copy costs as much as the small images of many requests
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise InvalidImage(f"images have 8 or 16 bits a channel; this one has 32 (mode {image.mode}). Convert it.")
    if image.mode in ("P", "PA"):
        return image.convert("RGBA").convert("RGB")  # by way of RGBA, because transparency may be stored as bytes
    return image.convert("RGB")


def _fit(image: Image.Image, height: int, width: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return ImageOps.fit(image, (width, height), method=Image.Resampling.BILINEAR)
