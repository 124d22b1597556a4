import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from models.calibration.errors import ImageTooLarge, InvalidImage
from models.images import decode_image

PIXELS = np.random.default_rng(0).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]


def encoded(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data, height=8, width=8, **options):
    return decode_image(data, height=height, width=width, **options)


class TestPixels:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_an_image_of_the_input_size_is_not_touched(self, kind):
        np.testing.assert_array_equal(decode(encoded(PIXELS, kind)), PIXELS)

    def test_jpeg_is_what_the_usual_decoder_says(self):
        data = encoded(PIXELS, "JPEG", quality=90)
        np.testing.assert_array_equal(decode(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))

    def test_a_jpeg_many_times_larger_than_the_input_gives_nearly_the_pixels_of_the_whole_decoded(self):
        rows, columns = np.mgrid[0:1200, 0:1600]
        waves = np.stack([np.sin(rows / 37) + np.cos(columns / 53), np.sin(rows / 9), np.cos(columns / 17)], axis=-1)
        noise = np.random.default_rng(0).normal(size=waves.shape)
        data = encoded((waves * 50 + 128 + 8 * noise).clip(0, 255).astype(np.uint8), "JPEG", quality=90)
        whole = ImageOps.fit(Image.open(io.BytesIO(data)), (224, 224), method=Image.Resampling.BILINEAR)
        difference = np.abs(decode(data, 224, 224).astype(int) - np.asarray(whole, dtype=int))
        assert 0 < difference.mean() < 0.7  # 0 would be the whole decoded, which takes three times as long
        assert difference.max() <= 8

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_a_large_jpeg_lies_as_its_exif_says_and_keeps_its_centre(self, orientation):
        image = np.zeros((320, 640, 3), dtype=np.uint8)
        image[:, :320] = (250, 0, 0)
        image[:, 320:] = (0, 0, 250)
        exif = Image.Exif()
        exif[0x0112] = orientation
        pixels = decode(encoded(image, "JPEG", quality=95, exif=exif), 8, 8).astype(int)
        first, last = (pixels[:, 0], pixels[:, -1]) if orientation == 1 else (pixels[0], pixels[-1])
        assert (first[:, 0] > 200).all()
        assert (last[:, 2] > 200).all()

    def test_grey_is_repeated_over_the_channels(self):
        np.testing.assert_array_equal(decode(encoded(GREY)), np.repeat(GREY[..., None], 3, axis=2))

    def test_alpha_is_dropped(self):
        alpha = np.concatenate([PIXELS, np.full((8, 8, 1), 7, np.uint8)], axis=2)
        np.testing.assert_array_equal(decode(encoded(alpha)), PIXELS)

    @pytest.mark.parametrize("transparency", [None, 3, b"\x00\x80\xff"])
    def test_a_palette_becomes_rgb(self, transparency):
        palette = Image.fromarray(PIXELS).quantize(16)
        options = {} if transparency is None else {"transparency": transparency}
        np.testing.assert_array_equal(decode(encoded(palette, **options)), np.asarray(palette.convert("RGB")))

    def test_cmyk_becomes_rgb(self):
        red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        assert np.abs(decode(encoded(red, "JPEG")).astype(int) - [254, 0, 0]).max() <= 3

    def test_sixteen_bits_keep_their_high_byte(self):
        deep = GREY.astype(np.uint16) * 256 + 77
        np.testing.assert_array_equal(decode(encoded(deep))[..., 0], GREY)

    def test_exif_rotation_is_applied(self):
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
        np.testing.assert_array_equal(decode(encoded(PIXELS, exif=exif)), np.rot90(PIXELS, k=-1))


class TestSize:
    def test_the_shorter_side_is_scaled_and_the_centre_cropped(self):
        # three squares side by side, 24 x 8: the middle one is what is left
        wide = np.concatenate([np.zeros_like(PIXELS), PIXELS, np.zeros_like(PIXELS)], axis=1)
        np.testing.assert_array_equal(decode(encoded(wide)), PIXELS)

    def test_a_larger_image_is_averaged_and_not_sampled(self):
        checks = np.zeros((64, 64, 3), np.uint8)
        checks[::2, ::2] = checks[1::2, 1::2] = 255
        assert np.abs(decode(encoded(checks)).astype(int) - 127).max() <= 4

    def test_a_smaller_image_is_enlarged(self):
        assert decode(encoded(PIXELS), height=32, width=16).shape == (32, 16, 3)


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "data", [b"", b"this is a text, whatever its name says", b"%PDF-1.7", b"\x89PNG\r\n\x1a\n"]
    )
    def test_bytes_that_are_no_image(self, data):
        with pytest.raises(InvalidImage):
            decode(data)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF"])
    def test_a_damaged_image(self, kind):
        data = encoded(np.tile(PIXELS, (8, 8, 1)), kind)
        with pytest.raises(InvalidImage):
            decode(data[: len(data) // 2])

    @pytest.mark.filterwarnings("ignore")  # Pillow warns of some damages, then reads on
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"])
    def test_any_damage_is_an_image_or_a_clear_error(self, kind):
        rng = np.random.default_rng(1)
        whole = encoded(PIXELS, kind)
        for _ in range(300):
            damaged = bytearray(whole)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            damaged[rng.integers(len(whole))] = rng.integers(256)
            try:
                assert decode(bytes(damaged)).shape == (8, 8, 3)
            except (InvalidImage, ImageTooLarge) as error:
                assert str(error)  # noqa: PT017

    @pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_more_than_one_frame(self, kind):
        frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
        with pytest.raises(InvalidImage, match="2 frames"):
            decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))

    def test_a_hundred_megapixels_before_they_are_decoded(self):
        with pytest.raises(ImageTooLarge, match="50,000,000 pixels; got 10000 x 10000"):
            decode(encoded(Image.new("1", (10_000, 10_000))))

    def test_floating_point_pixels(self):
        with pytest.raises(InvalidImage, match="mode F"):
            decode(encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"))
