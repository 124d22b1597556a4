"""Every combination of norm, loss and head on a problem with known densities: the ledger must say the prior that the
trained network's logits really imply.

The images are grey, one shade each; a class is a bell curve of shades. So p(x | y) is known, and so is what the best
classifier of balanced classes gets right.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from models.calibration.implied_prior import measure_implied_prior
from models.calibration.marc import fit_held_out
from models.calibration.prior import Ledger, total_variation
from models.calibration.temperature import fit_closed_form
from models.calibration.types import ClassPrior
from models.networks.classifier import Architecture
from models.networks.nbn import NbnConfig
from training.collect import collect
from training.config import DecoupledConfig, TrainConfig, config_for
from training.data import DataSplits, ImageSet
from training.decoupled import train_head
from training.feed import MemoryFeed
from training.loop import new_classifier, train
from training.losses.cibl import CiblConfig
from training.runs import ledger_of

SHADES, WIDTH = np.array([90.0, 130.0, 170.0]), 22.0
COUNTS = (1200, 300, 75)
NBN = NbnConfig(magnitude="ordinary")  # the start that needs no long training


def drawn(counts: tuple[int, ...], seed: int) -> ImageSet:
    labels = np.repeat(np.arange(3), counts)
    shade = np.random.default_rng(seed).normal(SHADES[labels], WIDTH).clip(0, 255).astype(np.uint8)
    images = np.broadcast_to(shade[:, None, None, None], (labels.size, 4, 4, 3)).copy()
    return ImageSet(images=images, labels=labels.astype(np.int64))


@pytest.fixture(scope="module")
def grey() -> DataSplits:
    return DataSplits(
        name="grey",
        class_names=("dark", "middle", "light"),
        train=drawn(COUNTS, 1),
        calibration=drawn((200, 200, 200), 2),
        test=drawn((2000, 2000, 2000), 3),
        drawn="200 of each class",
        imbalance_ratio=16.0,
    )


def best_accuracy(test: ImageSet) -> float:
    """Of the Bayes classifier for balanced classes: the nearest shade."""
    shade = test.images[:, 0, 0, 0].astype(float)
    return float((np.abs(shade[:, None] - SHADES).argmin(axis=1) == test.labels).mean())


def trained(config: TrainConfig, data: DataSplits):
    """The ledger that training writes down, and the test logits."""
    classifier = new_classifier(config, data)
    feed = MemoryFeed(data.train, config.augmentation, torch.device("cpu"))
    train(config, data, feed, classifier)
    rates = None
    if config.decoupled is not None:
        rates = train_head(config, classifier, feed, data.train.labels, data.class_counts).rates
    calibration_set = collect(classifier, data.calibration, split="calibration", drawn=data.drawn)
    ledger = ledger_of(config, data, rates, calibration_set)
    return ledger, calibration_set, collect(classifier, data.test, split="test", drawn="")


def require_right_ledger(config: TrainConfig, data: DataSplits, fit=fit_closed_form) -> None:
    ledger, calibration_set, test_set = trained(config, data)
    really = measure_implied_prior(test_set)
    assert total_variation(ledger.implied_prior, really) < 0.12
    calibration, _ = fit(calibration_set, ledger)
    debiased = calibration.debias(test_set.raw).adjust(ClassPrior.uniform(3)).values
    assert (debiased.argmax(axis=1) == test_set.labels).mean() > best_accuracy(data.test) - 0.03


def config(norm: str, loss: str, head: str, cibl: bool, rectify: bool = False) -> TrainConfig:
    architecture = Architecture(backbone="small", norm=norm, nbn=NBN, head=head, cosine_scale=10.0, rectify=rectify)
    made = config_for(4, 4, architecture=architecture, loss=loss, epochs=12, batch_size=64, learning_rate=0.05)
    return replace(made, cibl=CiblConfig(alpha=0.02, temperature=0.5), batch_size=32, epochs=8) if cibl else made


@pytest.mark.parametrize(
    ("norm", "loss", "head", "cibl"),
    list(product(("bn", "nbn"), ("cross-entropy", "balanced-softmax"), ("linear", "cosine"), (False, True))),
)
def test_the_ledger_is_right_and_the_debiased_logits_are_nearly_the_best_there_are(grey, norm, loss, head, cibl):
    require_right_ledger(config(norm, loss, head, cibl), grey)


@pytest.mark.parametrize("loss", ["cross-entropy", "balanced-softmax"])
def test_so_it_is_with_logit_rectification(grey, loss):
    # it gives the logits of every class one spread, so that a scale for each class (MARC) is needed afterwards
    require_right_ledger(config("nbn", loss, "linear", False, rectify=True), grey, fit_held_out)


def test_so_it_is_with_the_logit_adjusted_loss_between_the_two(grey):
    base = config("bn", "cross-entropy", "linear", False)
    require_right_ledger(replace(base, loss="logit-adjusted", tau=0.5), grey)


@pytest.mark.parametrize("sampler", ["instance", "meta"])
def test_so_it_is_after_a_second_stage(grey, sampler):
    base = config("bn", "cross-entropy", "linear", False)
    stage = DecoupledConfig(sampler=sampler, steps=150, batch_size=128, meta_learning_rate=0.05)
    require_right_ledger(replace(base, decoupled=stage), grey)


def test_the_ledger_of_another_loss_would_be_told_apart(grey):
    _, _, test_set = trained(config("bn", "balanced-softmax", "linear", False), grey)
    wrong = Ledger.by_rule("cross-entropy", grey.class_counts)
    assert total_variation(wrong.implied_prior, measure_implied_prior(test_set)) > 0.3


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        ({}, "rule"),
        ({"loss": "balanced-softmax"}, "rule"),
        ({"architecture": Architecture(backbone="small", norm="nbn")}, "rule"),
        ({"architecture": Architecture(backbone="small", head="cosine")}, "measured"),
        ({"architecture": Architecture(backbone="small", rectify=True)}, "measured"),
        ({"cibl": CiblConfig()}, "measured"),
    ],
)
def test_the_rule_is_used_where_it_holds_and_r_is_measured_elsewhere(grey, changes, source):
    made = config_for(4, 4, **changes)
    logits = collect(new_classifier(made, grey), grey.calibration, split="calibration", drawn="")
    assert ledger_of(made, grey, None, logits).source == source
    few = logits.subset(np.flatnonzero(logits.labels < 2))  # nothing to measure the last class on
    assert ledger_of(made, grey, None, few).source == ("rule" if source == "rule" else "approximate")
