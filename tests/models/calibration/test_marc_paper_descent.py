"""The descent of MARC as published, on plain arrays; `test_marc_paper` has the fit around it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from models.calibration.marc_paper import (
    AS_PUBLISHED,
    PaperFit,
    batches,
    class_weights,
    descend,
    learning_rates,
    weighted_nll,
)

SHORT = PaperFit(steps=60, batch_size=64, warmup_steps=20)


class TestTheSchedule:
    def test_rises_over_800_steps_and_falls_to_zero_at_the_last(self):
        rates = learning_rates(AS_PUBLISHED)
        assert rates.shape == (2000,)
        # 1,200 steps of cosine: half of it after 600, at step 1,400
        np.testing.assert_allclose(rates[[0, 799, 1399, 1999]], [0.05, 0.1, 0.05, 0.0], atol=1e-15)
        np.testing.assert_allclose(np.diff(rates[:800]), 0.05 / 799)
        assert (np.diff(rates[800:]) < 0).all()

    @pytest.mark.parametrize(
        ("warmup_steps", "expected"),
        [(0, [0.75 * 0.1, 0.25 * 0.1, 0.0]), (1, [0.05, 0.05, 0.0]), (3, [0.05, 0.075, 0.1])],
    )
    def test_may_be_all_fall_or_all_rise(self, warmup_steps, expected):
        # three steps of cosine: (1 + cos 60)/2, (1 + cos 120)/2, (1 + cos 180)/2 of .1
        rates = learning_rates(PaperFit(steps=3, warmup_steps=warmup_steps))
        np.testing.assert_allclose(rates, expected, atol=1e-15)


class TestTheBatches:
    def test_show_no_row_twice_in_an_epoch_and_reshuffle_for_the_next(self):
        # three batches of six an epoch, two rows sit it out
        drawn = list(batches(20, PaperFit(batch_size=6, steps=6, warmup_steps=0)))
        epochs = np.concatenate(drawn[:3]), np.concatenate(drawn[3:])
        for epoch in epochs:
            assert np.unique(epoch).size == epoch.size == 18
        assert not np.array_equal(*epochs)

    def test_are_all_the_rows_where_they_do_not_fill_one(self):
        for batch in batches(5, replace(SHORT, steps=3, warmup_steps=0)):
            assert sorted(batch) == [0, 1, 2, 3, 4]

    def test_follow_the_seed(self):
        first, same, other = (next(batches(500, replace(SHORT, seed=seed))) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, same)
        assert not np.array_equal(first, other)


@pytest.fixture
def problem(simulate):
    """Logits, labels and class weights; the descent cannot tell a training row from another."""

    def build(confidence: float = 1.0):
        sample = simulate(per_class=250, confidence=confidence)
        return sample.logit_set.logits, sample.logit_set.labels, class_weights(sample.ledger.class_counts)

    return build


def descend_in_torch(logits, labels, weights, norms, config):
    """The module and the optimiser of the official code, on the batches and the rates of ours."""
    z, y, norm = torch.tensor(logits), torch.tensor(labels), torch.tensor(norms)
    omega = torch.ones((1, z.shape[1]), dtype=torch.float64, requires_grad=True)
    beta = torch.zeros((1, z.shape[1]), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))
    optimizer = torch.optim.SGD([omega, beta], lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay)
    for rows, rate in zip(batches(labels.size, config), learning_rates(config), strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss(omega * z[rows] + beta * norm, y[rows]).backward()
        optimizer.step()
    return omega.detach().numpy()[0], beta.detach().numpy()[0]


class TestTheDescent:
    @pytest.mark.parametrize("config", [AS_PUBLISHED, SHORT, replace(SHORT, batch_size=100_000, weight_decay=0.1)])
    def test_is_that_of_torch_on_uncentred_logits(self, problem, config):
        logits, labels, weights = problem(confidence=2.0)
        rng = np.random.default_rng(2)
        logits = logits + rng.normal(2.0, 3.0, size=(labels.size, 1))  # as a head gives them
        arrays = logits, labels, weights, np.linspace(0.5, 3.0, 10)
        # the same batches in float64, so that nothing differs but the order of the sums
        np.testing.assert_allclose(descend(*arrays, config), descend_in_torch(*arrays, config), atol=1e-6, rtol=0)

    def test_one_step_by_hand(self):
        # z = (log 3, 0), class 1, norms (1, 2). At omega 1 and beta 0 q = (3/4, 1/4), and the weight of the only row
        # cancels. d omega = (3/4 log 3, 0), d beta = (3/4, 2 (1/4 - 1)); decay .1 of omega; the rate is .05
        config = PaperFit(steps=1, warmup_steps=1, weight_decay=0.1)
        omega, beta = descend(
            np.array([[np.log(3), 0.0]]), np.array([1]), np.array([0.4, 1.6]), np.array([1.0, 2.0]), config
        )
        np.testing.assert_allclose(omega, [1 - 0.05 * (0.75 * np.log(3) + 0.1), 1 - 0.05 * 0.1])
        np.testing.assert_allclose(beta, [-0.05 * 0.75, 0.05 * 1.5])

    def test_the_weights_of_a_batch_are_divided_by_their_own_sum(self, problem):
        # so that weights ten times as large change nothing; the paper's 1 / B would step ten times as far
        logits, labels, weights = problem()
        one, ten = (descend(logits, labels, factor * weights, np.ones(10), SHORT) for factor in (1, 10))
        np.testing.assert_allclose(one, ten, atol=1e-12)

    def test_without_decay_it_ends_at_the_optimum_that_any_start_leads_to(self, problem):
        z, labels, weights = problem()

        def objective(theta):
            return weighted_nll(theta[:10] * z + theta[10:], labels, weights)

        rng = np.random.default_rng(4)
        restarts = [minimize(objective, rng.normal(size=20), method="L-BFGS-B").fun for _ in range(2)]
        config = PaperFit(steps=2000, batch_size=labels.size, peak_learning_rate=1.0, weight_decay=0.0)
        omega, beta = descend(z, labels, weights, np.ones(10), config)
        reached = objective(np.concatenate([omega, beta]))
        assert restarts == pytest.approx([reached, reached], abs=1e-4)
        assert reached < objective(np.repeat([1.0, 0.0], 10)) - 0.02

    def test_survives_logits_of_ten_thousand(self):
        rng = np.random.default_rng(0)
        logits, labels = 1e4 * rng.normal(size=(90, 3)), np.repeat(np.arange(3), 30)
        assert np.isfinite(descend(logits, labels, np.ones(3), np.ones(3), SHORT)).all()
