from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from training.data import load
from training.loop import InvalidConfig, TrainingDiverged, augment, batches, config_for, rate, train

SHORT = config_for(8, 8, epochs=2)


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def weights(classifier) -> np.ndarray:
    return torch.cat([value.flatten().double() for value in classifier.state_dict().values()]).numpy()


@pytest.mark.parametrize("loss", ["cross-entropy", "balanced-softmax"])
def test_a_seed_gives_the_same_weights_twice(digits, loss):
    first = weights(train(replace(SHORT, loss=loss), digits))
    torch.rand(3)  # what the caller draws in between changes nothing
    np.testing.assert_array_equal(first, weights(train(replace(SHORT, loss=loss), digits)))
    assert not np.array_equal(first, weights(train(replace(SHORT, loss=loss, seed=1), digits)))


def test_training_leaves_the_callers_random_numbers_and_threads_alone(digits):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(replace(SHORT, epochs=1), digits)
    torch.testing.assert_close(torch.rand(2), expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(before)
    assert threads == 2


def test_the_two_losses_train_different_networks(digits):
    assert not np.array_equal(
        weights(train(SHORT, digits)), weights(train(replace(SHORT, loss="balanced-softmax"), digits))
    )


def test_progress_is_told_after_each_epoch_and_the_loss_falls(digits):
    told = []
    train(replace(SHORT, epochs=4), digits, lambda *progress: told.append(progress))
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][2] < told[0][2]


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_likely_cause(digits):
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 20 .* learning rate 1e\+30"):
        train(replace(SHORT, learning_rate=1e30, warmup=0), digits)


@pytest.mark.parametrize(("items", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1])])
def test_every_image_is_seen_once_an_epoch_and_none_is_a_batch_alone(items, sizes):
    pieces = batches(items, 4, torch.Generator().manual_seed(0))
    assert [len(piece) for piece in pieces] == sizes
    assert sorted(torch.cat(pieces).tolist()) == list(range(items))


def test_the_learning_rate_rises_and_then_falls():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] < 0.01
    assert rate(0, 1, 0.0) == 1


def test_augmentation_shifts_whole_images_by_at_most_the_padding():
    images = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 4, 4, 1).expand(200, 4, 4, 3).contiguous()
    seen = {image.numpy().tobytes() for image in augment(images, 1, False, torch.Generator().manual_seed(0))}
    padded = np.pad(images[0].numpy(), ((1, 1), (1, 1), (0, 0)))
    assert seen == {padded[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)}


def test_augmentation_mirrors_left_and_right_only():
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3).repeat(50, 1, 1, 1)
    seen = {image.numpy().tobytes() for image in augment(images, 0, True, torch.Generator().manual_seed(0))}
    assert seen == {images[0].numpy().tobytes(), images[0].flip(1).contiguous().numpy().tobytes()}


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "hinge"},
        {"backbone": "resnet50"},
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"padding": -1},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"seed": -1},
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_with_the_field_and_the_value(change):
    (field, value), *_ = change.items()
    with pytest.raises(InvalidConfig, match=rf"^{field} .*got {value!r}"):
        config_for(8, 8, **change)


def test_the_image_size_decides_the_defaults():
    small, large = config_for(8, 8), config_for(32, 32)
    assert (small.backbone, small.padding, small.flip) == ("small", 1, False)
    assert (large.backbone, large.padding, large.flip) == ("resnet32", 4, True)
    assert config_for(32, 32, backbone="small").backbone == "small"
