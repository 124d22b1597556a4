import numpy as np
import pytest
import torch

from training.augment import Augmentation
from training.data import ImageSet
from training.feed import MemoryFeed, batches, generator_for

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3), dtype=np.uint8)
SET = ImageSet(images=IMAGES, labels=np.arange(20))
ROWS = list(torch.arange(20).split(5))


def feed(**augmentation) -> MemoryFeed:
    return MemoryFeed(SET, Augmentation(**augmentation), torch.device("cpu"))


def test_without_augmentation_the_images_come_as_they_are():
    seen = torch.cat([images[0] for images in feed().epoch(ROWS, seed=0, first_step=0)])
    np.testing.assert_array_equal(seen.numpy(), IMAGES)


@pytest.mark.parametrize(
    "augmentation",
    [{"padding": 2}, {"flip": True}, {"cutout": 4}, {"policy": "autoaugment"}, {"policy": "randaugment"}],
)
def test_images_on_another_device_are_augmented_there_by_the_same_draws(augmentation):
    # torch's meta device refuses, as a GPU does, to mix its tensors with the CPU's, and needs no hardware
    elsewhere = MemoryFeed(SET, Augmentation(**augmentation), torch.device("meta"))
    views = next(elsewhere.epoch(ROWS, seed=0, first_step=0, views=2))
    assert (views.device.type, views.shape) == ("meta", (2, 5, 8, 8, 3))


def test_two_views_differ_and_so_do_steps_and_seeds():
    one = next(feed(padding=2).epoch(ROWS, seed=0, first_step=0, views=2))
    assert one.shape == (2, 5, 8, 8, 3)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], next(feed(padding=2).epoch(ROWS, seed=0, first_step=1))[0])
    assert not torch.equal(one[0], next(feed(padding=2).epoch(ROWS, seed=1, first_step=0))[0])


def test_a_step_is_the_same_wherever_the_training_goes_on_from():
    whole = list(feed(padding=2, flip=True, policy="autoaugment", cutout=4).epoch(ROWS, seed=3, first_step=0))
    later = list(feed(padding=2, flip=True, policy="autoaugment", cutout=4).epoch(ROWS[2:], seed=3, first_step=2))
    for before, after in zip(whole[2:], later, strict=True):
        torch.testing.assert_close(before, after)


def test_rows_may_be_made_one_by_one():
    made = []

    def rows():
        for index in range(3):
            made.append(index)
            yield torch.tensor([index])

    for step, _ in enumerate(feed().epoch(rows(), seed=0, first_step=0)):
        assert made == list(range(step + 1))


def test_keys_decide_the_generator():
    assert (
        torch.rand(3, generator=generator_for(1, 2)).tolist() == torch.rand(3, generator=generator_for(1, 2)).tolist()
    )
    draws = {float(torch.rand((), generator=generator_for(a, b))) for a in range(20) for b in range(20)}
    assert len(draws) == 400


@pytest.mark.parametrize(("items", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_every_image_is_seen_once_an_epoch_and_none_is_a_batch_alone(items, sizes):
    pieces = batches(items, 4, torch.Generator().manual_seed(0))
    assert [len(piece) for piece in pieces] == sizes
    assert sorted(torch.cat(pieces).tolist()) == list(range(items))


def test_every_process_gets_two_images_of_every_batch():
    shuffled = torch.Generator().manual_seed(0)
    assert [len(piece) for piece in batches(47, 20, shuffled, processes=4)] == [20, 27]
    assert [len(piece) for piece in batches(48, 20, shuffled, processes=4)] == [20, 20, 8]
