"""The class laws that requests ask for, as a live model keeps them."""

import numpy as np
import pytest

from service.runtime.laws import KEPT, LONGEST_KEPT, law_of
from service.runtime.live import LiveModel
from tests.service.conftest import Service


@pytest.fixture
def live(service: Service) -> LiveModel:
    return service.app.state.follower.registry.get("pets")


def test_what_is_asked_for_again_is_not_made_again(live: LiveModel) -> None:
    for asked in ({}, {"prior": "uniform"}, {"prior": "[1, 2, 3, 4]"}, {"kappa": 0.5}):
        assert law_of(live, **asked) is law_of(live, **asked)
    assert law_of(live, kappa=0.5) is not law_of(live, kappa=0.25)
    assert law_of(live, prior="none") is not law_of(live)


def test_a_prior_given_as_numbers_or_at_length_is_not_kept(live: LiveModel) -> None:
    law_of(live, prior=[1, 2, 3, 4])
    law_of(live, prior="[1, 2, 3, 4" + " " * LONGEST_KEPT + "]")
    assert live.laws == {}


def test_clients_cannot_fill_the_memory_with_priors(live: LiveModel) -> None:
    for number in range(3 * KEPT):
        law_of(live, kappa=number / 3 / KEPT)
        assert len(live.laws) <= KEPT


def test_both_maps_of_a_law_give_the_same_scores(live: LiveModel) -> None:
    logits = np.random.default_rng(0).normal(size=(20, 4))
    for asked in ({}, {"prior": "none"}, {"prior": "[0, 2, 3, 4]"}):
        law = law_of(live, **asked)
        exact = law.on_float64(logits)
        np.testing.assert_allclose(law.on_float32(logits.astype(np.float32)), exact, atol=1e-6)
        assert exact.dtype == np.float64
