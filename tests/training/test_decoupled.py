from dataclasses import replace

import numpy as np
import pytest
import torch

from models.networks.heads import LinearHead
from training.augment import Augmentation
from training.config import DecoupledConfig, config_for
from training.data import load
from training.decoupled import train_head
from training.feed import MemoryFeed
from training.loop import new_classifier, seeded

CPU = torch.device("cpu")
META = config_for(8, 8, decoupled=DecoupledConfig(steps=30, batch_size=40))


@pytest.fixture(scope="module")
def digits():
    return load("digits")


def second_stage(config, data):
    classifier = new_classifier(config, data)
    feed = MemoryFeed(data.train, config.augmentation, CPU)
    return classifier, train_head(config, classifier, feed, data.train.labels, data.class_counts)


def states(classifier, part: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in getattr(classifier, part).state_dict().items()}


@pytest.mark.parametrize("sampler", ["instance", "meta"])
def test_only_the_head_changes_and_its_loss_falls(digits, sampler):
    config = replace(META, decoupled=replace(META.decoupled, sampler=sampler))
    before = new_classifier(config, digits)
    after, stage = second_stage(config, digits)
    for name, value in states(before, "backbone").items():
        torch.testing.assert_close(value, states(after, "backbone")[name], atol=0, rtol=0, msg=name)
    assert not torch.equal(before.head.weight, after.head.weight)
    assert np.mean(stage.losses[-5:]) < np.mean(stage.losses[:5])


def test_the_first_stages_head_is_not_the_start(digits):
    other = new_classifier(META, digits)
    other.head.weight.data += 5
    feed = MemoryFeed(digits.train, META.augmentation, CPU)
    train_head(META, other, feed, digits.train.labels, digits.class_counts)
    torch.testing.assert_close(other.head.weight, second_stage(META, digits)[0].head.weight)


def test_a_seed_gives_the_same_head_and_rates_twice(digits):
    (first, one), (second, two) = second_stage(META, digits), second_stage(META, digits)
    torch.testing.assert_close(first.head.weight, second.head.weight, atol=0, rtol=0)
    torch.testing.assert_close(one.rates, two.rates, atol=0, rtol=0)
    third, _ = second_stage(replace(META, seed=1), digits)
    assert not torch.equal(first.head.weight, third.head.weight)


def test_the_rates_move_with_the_meta_loss_and_stay_where_they_are_without_the_sampler(digits):
    _, meta = second_stage(META, digits)
    assert float(meta.rates.std()) > 0
    config = replace(META, decoupled=replace(META.decoupled, sampler="instance"))
    assert second_stage(config, digits)[1].rates.tolist() == [1] * 10


def test_the_meta_images_move_the_sampler_and_never_the_head(digits):
    # with a sampler that cannot move, other meta images change nothing
    still = replace(META, decoupled=replace(META.decoupled, meta_learning_rate=1e-12))
    expected = second_stage(still, digits)[0].head.weight

    class OtherMeta(MemoryFeed):
        def epoch(self, rows, *, seed, first_step, views=1):
            for images in super().epoch(rows, seed=seed, first_step=first_step, views=views):
                yield 255 - images if seed == still.seed + 72 else images

    classifier = new_classifier(still, digits)
    feed = OtherMeta(digits.train, still.augmentation, CPU)
    train_head(still, classifier, feed, digits.train.labels, digits.class_counts)
    torch.testing.assert_close(classifier.head.weight, expected, atol=1e-6, rtol=1e-5)


def test_only_training_images_are_looked_at(digits):
    seen = []

    class Watched(MemoryFeed):
        def epoch(self, rows, *, seed, first_step, views=1):
            for images in super().epoch(rows, seed=seed, first_step=first_step, views=views):
                seen.extend(image.numpy().tobytes() for image in images[0])
                yield images

    config = replace(META, augmentation=Augmentation())
    feed = Watched(digits.train, config.augmentation, CPU)
    train_head(config, new_classifier(config, digits), feed, digits.train.labels, digits.class_counts)
    assert len(seen) == 2 * 30 * 40
    assert set(seen) <= {image.tobytes() for image in digits.train.images}


def test_the_real_step_is_that_of_torch_with_balanced_softmax(digits):
    # one step from the fresh head on one batch: SGD with momentum 0 buffer is head - rate * (gradient + decay * head)
    config = replace(
        META, augmentation=Augmentation(), decoupled=DecoupledConfig(sampler="instance", steps=1, batch_size=314)
    )
    classifier, _ = second_stage(config, digits)
    untouched = new_classifier(config, digits).eval()
    with seeded(config.seed + 71):
        head = LinearHead(64, 10)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=config.weight_decay)
    images, labels = torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)
    logits = head(untouched.features(images).detach()) + torch.from_numpy(digits.class_counts).log()
    torch.nn.functional.cross_entropy(logits, labels).backward()
    optimizer.step()
    torch.testing.assert_close(classifier.head.weight, head.weight, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(classifier.head.bias, head.bias, atol=1e-5, rtol=1e-4)


def test_the_sampler_may_have_batches_of_its_own_size(digits):
    sizes = []

    class Watched(MemoryFeed):
        def epoch(self, rows, **options):
            for images in super().epoch(rows, **options):
                sizes.append(images.shape[1])
                yield images

    config = replace(META, decoupled=replace(META.decoupled, steps=2, meta_batch_size=70))
    feed = Watched(digits.train, config.augmentation, CPU)
    train_head(config, new_classifier(config, digits), feed, digits.train.labels, digits.class_counts)
    assert sizes == [40, 70, 40, 70]
