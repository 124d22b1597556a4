"""From the bytes of a file, the service says what the training side says: no skew between the two."""

import io

import numpy as np
import pytest
from PIL import Image

from models.calibration.types import ClassPrior, RawLogits
from models.images import decode_image
from service.runtime.offline import score_files
from training import runs
from training.collect import raw_logits
from training.data import load


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A trained run and its bundle."""
    folder = tmp_path_factory.mktemp("skew")
    runs.train_run("digits", out=folder / "run", epochs=2)
    runs.fit_run(folder / "run")
    runs.export_run(folder / "run", folder / "bundle", name="digits")
    return folder


def encoded(pixels, kind, size=None):
    image = Image.fromarray(pixels)
    if size is not None:
        image = image.resize(size, Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [None, (8, 8), (37, 23), (100, 300), (5, 5)])
def test_scores_of_a_file_equal_the_evaluation_in_training(exported, kind, size):
    files = [encoded(pixels, kind, size) for pixels in load("digits").test.images[::40]]
    classifier = runs.read_classifier(runs.read_run(exported / "run"))
    calibration = runs.read_calibration(exported / "run")
    pixels = np.stack([decode_image(data, height=8, width=8) for data in files])
    logits = RawLogits(raw_logits(classifier, pixels))
    expected = calibration.debias(logits).adjust(ClassPrior.uniform(10)).scores()
    served = [result["scores"] for result in score_files(exported / "bundle", files)]
    np.testing.assert_allclose(served, expected, atol=1e-3)


def test_a_png_of_the_input_size_scores_as_its_pixels_do(exported):
    # no decoder in between: the very arrays that `equipoise evaluate` used
    images = load("digits").test.images[::40]
    served = [result["scores"] for result in score_files(exported / "bundle", [encoded(i, "PNG") for i in images])]
    test_set, calibration = runs.read_run(exported / "run").test_set, runs.read_calibration(exported / "run")
    expected = calibration.debias(test_set.raw).adjust(ClassPrior.uniform(10)).scores()[::40]
    np.testing.assert_allclose(served, expected, atol=1e-3)
