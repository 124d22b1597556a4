import pytest

from models.networks.classifier import Architecture
from training.augment import Augmentation
from training.config import DecoupledConfig, InvalidConfig, config_for
from training.losses.cibl import CiblConfig


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "hinge"},
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"tau": 0.5},  # cross-entropy knows no tau
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"ema": 1.0},
        {"select": "test"},
        {"precision": "float16"},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused_with_the_field_and_the_value(change):
    (field, value), *_ = change.items()
    with pytest.raises(InvalidConfig, match=rf"^{field} .*got {value!r}"):
        config_for(8, 8, **change)


@pytest.mark.parametrize("change", [{"loss": "balanced-softmax"}, {"cibl": CiblConfig()}])
def test_a_second_stage_follows_plain_cross_entropy_only(change):
    with pytest.raises(InvalidConfig, match="first stage"):
        config_for(8, 8, decoupled=DecoupledConfig(), **change)


@pytest.mark.parametrize("parts", [{"head": "cosine"}, {"rectify": True}])
def test_a_second_stage_trains_a_plain_linear_head_only(parts):
    with pytest.raises(InvalidConfig, match=r"plain linear head; got (cosine|linear, rectified)\."):
        config_for(8, 8, decoupled=DecoupledConfig(), parts=parts)


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": "random"},
        {"steps": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"meta_batch_size": 0},
        {"meta_learning_rate": -1.0},
        {"initial_power": -0.5},
    ],
)
def test_a_second_stage_out_of_range_is_refused(change):
    (field, value), *_ = change.items()
    with pytest.raises(InvalidConfig, match=rf"^{field} .*got {value!r}"):
        DecoupledConfig(**change)


def test_the_image_size_decides_the_defaults():
    small, large = config_for(8, 8), config_for(32, 32)
    assert (small.architecture.backbone, small.augmentation) == ("small", Augmentation(padding=1))
    assert (large.architecture.backbone, large.augmentation) == ("resnet32", Augmentation(padding=4, flip=True))
    assert config_for(32, 32, architecture=Architecture(backbone="small")).epochs == small.epochs


def test_only_cibl_looks_at_each_image_twice():
    assert config_for(8, 8).views == 1
    assert config_for(8, 8, cibl=CiblConfig()).views == 2


def test_images_in_files_are_augmented_as_files_can_be_whatever_their_size():
    assert config_for(32, 32, in_files=True).augmentation == Augmentation(flip=True, jitter=True)
    assert config_for(8, 8, in_files=True).augmentation.jitter
    assert not config_for(100, 100, in_files=False).augmentation.jitter
    assert config_for(100, 100).augmentation.jitter
