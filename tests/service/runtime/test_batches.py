"""A network as a line of work: what is run together comes back apart."""

import numpy as np
import pytest

from models.calibration.apply import ScoreMap
from models.calibration.errors import InvalidImage, InvalidLogits
from models.calibration.manifest import InputSize
from models.calibration.types import Calibration, ClassPrior
from service.runtime.batches import HEAVY_BYTES, Examples, Files, NetworkLine, pieces_of
from service.runtime.onnx import MAX_BATCH, OnnxRunner
from tests.service.bundles import HEIGHT, WIDTH, linear_graph
from tests.service.conftest import png

RNG = np.random.default_rng(0)
SIZE = InputSize(height=HEIGHT, width=WIDTH)
WEIGHT = RNG.normal(size=(HEIGHT * WIDTH * 3, 4)).astype(np.float32)
PIXELS = RNG.integers(0, 256, size=(20, HEIGHT, WIDTH, 3), dtype=np.uint8)
CALIBRATION = Calibration.identity(ClassPrior.from_weights([4, 3, 2, 1]))
ONE, OTHER = (ScoreMap.of(CALIBRATION, ClassPrior.from_weights(law)) for law in ([1, 1, 1, 1], [1, 2, 3, 4]))


@pytest.fixture(scope="module")
def line() -> NetworkLine:
    graph = linear_graph(WEIGHT, np.zeros(4)).SerializeToString()
    return NetworkLine("pets", OnnxRunner(graph, num_classes=4, input_size=SIZE), SIZE)


def files(*images: np.ndarray) -> Files:
    return Files([png(each) for each in images], max_pixels=10**6)


def test_each_gets_its_own_rows_under_its_own_map_beside_files_that_are_no_images(line: NetworkLine) -> None:
    asked = [
        Examples(PIXELS[:1], ONE),
        Examples(files(PIXELS[1], PIXELS[2]), OTHER),
        Examples(Files([b"no image"], max_pixels=10**6), ONE),
        Examples(PIXELS[3:6], None),
        Examples(PIXELS[6:7], ONE),
    ]
    first, second, spoilt, raw, last = line.do(asked)
    logits = line.run(PIXELS)
    assert isinstance(spoilt, InvalidImage)
    for got, expected in ((first, ONE(logits[:1])), (second, OTHER(logits[1:3])), (raw, logits[3:6])):
        np.testing.assert_allclose(got, expected, atol=1e-5)
    np.testing.assert_allclose(last, ONE(logits[6:7]), atol=1e-5)


def test_files_alone_that_are_no_images_are_not_sent_to_the_network(line: NetworkLine) -> None:
    (spoilt,) = line.do([Examples(Files([b"no image"], max_pixels=10**6), ONE)])
    assert isinstance(spoilt, InvalidImage)


def test_an_image_whose_logits_are_not_finite_harms_no_neighbour() -> None:
    weight = np.full_like(WEIGHT, 1e38)
    weight[:, 1] = 0
    runner = OnnxRunner(linear_graph(weight / 300, np.zeros(4)).SerializeToString(), num_classes=4, input_size=SIZE)
    line = NetworkLine("pets", runner, SIZE)

    def too_large(images: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # infinity for an image that is white; a real network that gives it is refused
            return runner.run(images) * np.float32(10)

    line.run = too_large
    white, black = np.full_like(PIXELS[:1], 255), np.zeros_like(PIXELS[:1])
    spoilt, sound = line.do([Examples(white, ONE), Examples(black, ONE)])
    assert isinstance(spoilt, InvalidLogits)
    np.testing.assert_allclose(sound, ONE(np.zeros((1, 4), dtype=np.float32)), atol=1e-6)


@pytest.mark.parametrize("count", [1, MAX_BATCH, MAX_BATCH + 1, 3 * MAX_BATCH + 2])
def test_a_request_is_cut_into_batches_in_its_order(count: int) -> None:
    pixels = RNG.integers(0, 256, size=(count, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pieces = pieces_of(pixels, ONE)
    np.testing.assert_array_equal(np.concatenate([each.payload.pixels for each in pieces]), pixels)
    of_files = pieces_of(
        Files([bytes([number]) for number in range(count)], 10**6, [str(n) for n in range(count)]), ONE
    )
    for parts in (pieces, of_files):
        assert sum(each.examples for each in parts) == count
        assert max(each.examples for each in parts) <= MAX_BATCH
    names = [name for each in of_files for name in each.payload.pixels.names]
    assert names == [str(number) for number in range(count)]
    assert [each.payload.pixels.first for each in of_files] == list(range(1, count + 1, MAX_BATCH))


def test_a_large_file_is_a_batch_of_its_own() -> None:
    noise = png(RNG.integers(0, 256, size=(200, 200, 3), dtype=np.uint8))
    assert len(noise) > HEAVY_BYTES
    small, large = (pieces_of(Files([data], 10**6), ONE)[0] for data in (png(PIXELS[0]), noise))
    assert (small.alone, large.alone) == (False, True)
