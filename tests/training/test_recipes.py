import math

import pytest

from models.calibration.errors import CalibrationError
from training.recipes import UnknownRecipe, recipe, recipes


def test_every_recipe_has_a_name_of_its_own():
    names = [each.name for each in recipes()]
    assert len(set(names)) == len(names)
    assert [recipe(name).name for name in names] == names


@pytest.mark.parametrize(
    ("name", "epochs"),
    [
        ("cifar10_lt_r100_ce", 520),
        ("cifar10_lt_r200_bs", 591),
        ("cifar100_lt_r100_balms", 591),
        ("cifar100_lt_r200_ce", 685),
    ],
)
def test_the_published_budget_on_cifar_is_13000_steps_of_512(name, epochs):
    config = recipe(name).config
    assert (config.epochs, config.batch_size, config.learning_rate) == (epochs, 512, 0.1)
    assert math.isclose(config.warmup * 13_000, 800)
    assert config.augmentation.policy == "autoaugment"
    assert config.augmentation.cutout == 16


def test_the_second_stage_of_balanced_meta_softmax_is_the_published_one():
    stage = recipe("cifar100_lt_r100_balms").config.decoupled
    assert (stage.sampler, stage.steps, stage.batch_size, stage.meta_learning_rate) == ("meta", 2000, 512, 0.01)


def test_all_short_recipes_see_the_same_number_of_views():
    views = {
        each.config.epochs * each.config.batch_size * each.config.views * (10_827 // each.config.batch_size)
        for each in recipes()
        if each.name.endswith("_short")
    }
    assert max(views) < 1.02 * min(views)


def test_only_what_was_run_is_called_tried():
    assert {each.data for each in recipes() if each.tried} == {"cifar100"}
    assert not any(each.tried for each in recipes() if "imagenet" in each.name)


def test_an_unknown_recipe_is_refused_with_its_neighbours():
    with pytest.raises(UnknownRecipe, match=r"'cifar100_lt_r7_ce'.*near: .*cifar100_lt_r100_ce"):
        recipe("cifar100_lt_r7_ce")
    assert issubclass(UnknownRecipe, CalibrationError)
