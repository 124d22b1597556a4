import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from models.networks.classifier import Architecture
from training import checkpoint
from training.collect import accuracy_by_class
from training.config import InvalidConfig, TrainConfig, config_for
from training.data import ImageSet, load
from training.feed import MemoryFeed
from training.loop import TrainingDiverged, check_possible, exact_arithmetic, new_classifier, rate
from training.loop import train as train_classifier
from training.losses.cibl import CiblConfig
from training.run_folder import read_run

SHORT = config_for(8, 8, epochs=2)
CPU = torch.device("cpu")
KINDS = {
    "cross-entropy": SHORT,
    "Balanced Softmax": replace(SHORT, loss="balanced-softmax"),
    "NBN": replace(SHORT, architecture=Architecture(backbone="small", norm="nbn", rectify=True)),
    "CIBL": replace(SHORT, cibl=CiblConfig(queue=16), batch_size=16),
    "an average": replace(SHORT, ema=0.9),
}


def train(config: TrainConfig, data, progress=None, **options):
    classifier = new_classifier(config, data)
    train_classifier(
        config, data, MemoryFeed(data.train, config.augmentation, CPU), classifier, progress=progress, **options
    )
    return classifier


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def weights(classifier) -> np.ndarray:
    return torch.cat([value.flatten().double() for value in classifier.state_dict().values()]).numpy()


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_seed_gives_the_same_weights_twice(digits, config):
    first = weights(train(config, digits))
    torch.rand(3)  # what the caller draws in between changes nothing
    np.testing.assert_array_equal(first, weights(train(config, digits)))
    assert not np.array_equal(first, weights(train(replace(config, seed=1), digits)))


class Killed(Exception):
    """What a kill in the middle of an epoch looks like from inside."""


class DyingFeed(MemoryFeed):
    """Dies when the third epoch is under way."""

    def epoch(self, rows, *, seed, first_step, views=1):
        rows = list(rows)
        for made, images in enumerate(super().epoch(rows, seed=seed, first_step=first_step, views=views)):
            if first_step == 2 * len(rows) and made == 1:
                raise Killed
            yield images


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_killed_training_goes_on_to_the_same_weights_and_curves(digits, config, tmp_path):
    config = replace(config, epochs=4)
    whole = new_classifier(config, digits)
    curves = train_classifier(config, digits, MemoryFeed(digits.train, config.augmentation, CPU), whole)
    options = {"save_to": tmp_path / "training.pt", "identity": checkpoint.identity_of(config, digits)}
    dying = DyingFeed(digits.train, config.augmentation, CPU)
    with pytest.raises(Killed):
        train_classifier(config, digits, dying, new_classifier(config, digits), **options)
    went_on = new_classifier(config, digits)
    seen = []
    later = train_classifier(
        config,
        digits,
        MemoryFeed(digits.train, config.augmentation, CPU),
        went_on,
        progress=lambda epoch, *_: seen.append(epoch),
        **options,
    )
    assert seen == [3, 4]
    np.testing.assert_array_equal(weights(went_on), weights(whole))
    assert [row["loss"] for row in later] == [row["loss"] for row in curves]


def test_a_checkpoint_of_another_training_or_half_of_one_is_not_continued(digits, tmp_path):
    path = tmp_path / "training.pt"
    train(SHORT, digits, save_to=path, identity=checkpoint.identity_of(SHORT, digits))
    other = replace(SHORT, learning_rate=0.01)
    with pytest.raises(checkpoint.StaleCheckpoint, match="another configuration or other data"):
        train(other, digits, save_to=path, identity=checkpoint.identity_of(other, digits))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(checkpoint.StaleCheckpoint, match="cannot be read"):
        train(SHORT, digits, save_to=path, identity=checkpoint.identity_of(SHORT, digits))


def test_the_average_is_that_of_the_weights_after_each_step(digits):
    # with a decay close to 1 the average stays near the first step, with one close to 0 it is the last weights
    last, slow, fast = (weights(train(replace(SHORT, ema=ema), digits)) for ema in (None, 0.999999, 1e-9))
    assert np.abs(fast - last).max() < 1e-3
    assert np.abs(slow - last).max() > 0.1


def test_validation_images_choose_the_epoch_only_when_asked(digits):
    # labels that the network is not taught: which epoch has most of them right is chance, and is not the last
    images = digits.calibration.images
    shifted = ImageSet(images=images, labels=(digits.calibration.labels + 1) % 10)
    watched = replace(digits, validation=shifted, items={})
    config = replace(SHORT, epochs=6, learning_rate=0.2)
    last = train(config, watched)
    np.testing.assert_array_equal(weights(last), weights(train(config, digits)))
    chosen = new_classifier(config, watched)
    selecting = replace(config, select="validation")
    curves = train_classifier(selecting, watched, MemoryFeed(digits.train, config.augmentation, CPU), chosen)
    accuracies = [row["validation_accuracy"] for row in curves]
    assert max(accuracies) > accuracies[-1] + 0.01
    assert accuracy_by_class(chosen, shifted).mean() == pytest.approx(max(accuracies))


@pytest.mark.parametrize(
    ("changes", "processes", "rule"),
    [
        ({"select": "validation"}, 1, "needs validation images"),
        ({"batch_size": 4}, 3, "two images a process"),
        ({"cibl": CiblConfig(queue=16)}, 2, "queue is kept by one process"),
    ],
)
def test_what_the_data_or_the_processes_do_not_allow_is_refused(digits, changes, processes, rule):
    check_possible(SHORT, digits, processes)
    with pytest.raises(InvalidConfig, match=rule):
        check_possible(replace(SHORT, **changes), digits, processes)


def test_kernels_are_deterministic_and_still_those_of_cudnn():
    before = torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic
    with exact_arithmetic(SHORT):
        assert torch.backends.cudnn.deterministic
        assert torch.backends.cudnn.enabled == before[0]
    assert (torch.backends.cudnn.enabled, torch.backends.cudnn.deterministic) == before


def test_bfloat16_trains_float32_weights(digits):
    classifier = train(replace(SHORT, precision="bfloat16", epochs=4), digits)
    assert {value.dtype for value in classifier.parameters()} == {torch.float32}
    assert accuracy_by_class(classifier, digits.test).mean() > 0.3  # chance is 0.1


def test_two_processes_train_one_network(tmp_path):
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for name, value in first["parameters"].items():
        torch.testing.assert_close(value, second["parameters"][name], msg=name)
    assert first["loss"] == second["loss"]
    assert first["accuracy"] > 0.5
    assert read_run(tmp_path / "run").training["epochs"] == 2


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


def test_progress_is_told_after_each_epoch_and_the_loss_falls(digits):
    told = []
    train(replace(SHORT, epochs=4), digits, lambda *progress: told.append(progress))
    assert [(epoch, epochs) for epoch, epochs, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][2] < told[0][2]


def test_a_loss_that_is_no_number_stops_with_the_step_and_the_likely_cause(digits):
    with pytest.raises(TrainingDiverged, match=r"step \d+ of 20 .* learning rate 1e\+30"):
        train(replace(SHORT, learning_rate=1e30, warmup=0), digits)


def test_the_learning_rate_rises_and_then_falls():
    rates = [rate(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert rates[-1] < 0.01
    assert rate(0, 1, 0.0) == 1
