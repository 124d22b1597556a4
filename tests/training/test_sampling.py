import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.calibration.errors import EmptyClass
from training.sampling import (
    ClassBalancedRows,
    LinearStep,
    MetaSampler,
    gumbel_noise,
    initial_psi,
    log_class_mass,
    meta_gradient,
)

COUNTS = torch.tensor([60, 30, 10])
STEP = LinearStep(0.3, 0.9, 1e-2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(dtype=torch.float64) -> dict[str, torch.Tensor]:
    """A linear head over 4 features and a bias, a batch of 6, a meta batch of 5."""
    draw = generator(3)

    def ones_beside(num: int) -> torch.Tensor:
        return torch.cat([torch.randn(num, 4, generator=draw, dtype=dtype), torch.ones(num, 1, dtype=dtype)], dim=1)

    return {
        "head": torch.randn(3, 5, generator=draw, dtype=dtype),
        "buffer": torch.randn(3, 5, generator=draw, dtype=dtype),
        "features": ones_beside(6),
        "targets": torch.tensor([0, 0, 1, 0, 2, 1]),
        "shift": COUNTS.to(dtype).log(),
        "meta_features": ones_beside(5),
        "meta_targets": torch.tensor([2, 1, 0, 2, 1]),
    }


def meta_loss(made: dict[str, torch.Tensor], draw_weights: torch.Tensor) -> torch.Tensor:
    """The same by automatic differentiation through a real step: the twin."""
    head = made["head"].clone().requires_grad_()
    each = F.cross_entropy(made["features"] @ head.T + made["shift"], made["targets"], reduction="none")
    (gradient,) = torch.autograd.grad((each * draw_weights).mean(), head, create_graph=True)
    moved = head - STEP.learning_rate * (STEP.momentum * made["buffer"] + gradient + STEP.weight_decay * head)
    return F.cross_entropy(made["meta_features"] @ moved.T, made["meta_targets"])


def test_the_closed_form_is_the_gradient_through_the_virtual_step():
    made = problem()
    weights = torch.tensor([1.0, 0.4, 1.0, 0.7, 1.0, 0.1], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(meta_loss(made, weights), weights)
    torch.testing.assert_close(meta_gradient(step=STEP, draw_weights=weights.detach(), **made), expected)
    assert expected.abs().min() > 1e-6


def test_the_gradient_towards_psi_agrees_with_finite_differences_of_the_relaxed_draw():
    made, counts = problem(), COUNTS.double()
    noise = gumbel_noise((6, 3), generator()).double()

    def relaxed(psi: torch.Tensor) -> torch.Tensor:
        share = torch.softmax(log_class_mass(psi, counts) + noise, dim=1)
        return share.gather(1, made["targets"][:, None])[:, 0]

    psi = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    weights = relaxed(psi)
    weights.backward(meta_gradient(step=STEP, draw_weights=weights.detach(), **made))
    for index in range(3):
        nudge = torch.zeros(3, dtype=torch.float64)
        nudge[index] = 1e-6
        rise = meta_loss(made, relaxed(psi.detach() + nudge)) - meta_loss(made, relaxed(psi.detach() - nudge))
        torch.testing.assert_close(psi.grad[index], (rise / 2e-6).detach(), atol=1e-7, rtol=1e-4)


def test_a_draw_weighs_one_and_carries_a_gradient_to_psi():
    sampler = MetaSampler(COUNTS, learning_rate=0.01)
    classes, weights = sampler.draw(50, generator())
    torch.testing.assert_close(weights.detach(), torch.ones(50))
    (gradient,) = torch.autograd.grad(weights[classes == 2].sum(), sampler.psi)
    assert gradient[2] > 0 > gradient[0]


def frequencies(sampler: MetaSampler, num: int = 60_000) -> np.ndarray:
    classes, _ = sampler.draw(num, generator(1))
    return np.bincount(classes.numpy(), minlength=3) / num


def test_psi_zero_draws_images_alike():
    np.testing.assert_allclose(frequencies(MetaSampler(COUNTS, learning_rate=0.01)), [0.6, 0.3, 0.1], atol=0.006)


def test_class_mass_is_count_times_rate():
    sampler = MetaSampler(COUNTS, learning_rate=0.01)
    sampler.psi.data = torch.logit(torch.tensor([0.1, 0.4, 0.9]))
    # 60 x 0.1 : 30 x 0.4 : 10 x 0.9 = 6 : 12 : 9
    np.testing.assert_allclose(frequencies(sampler), np.array([6, 12, 9]) / 27, atol=0.006)
    before = frequencies(sampler)[2]
    sampler.psi.data[2] += 1
    assert frequencies(sampler)[2] > before


def test_a_class_whose_draws_help_is_drawn_more_often():
    sampler = MetaSampler(COUNTS, learning_rate=0.05)
    for seed in range(20):
        classes, weights = sampler.draw(64, generator(seed))
        sampler.step(weights, torch.where(classes == 2, -1.0, 1.0))
    assert sampler.rates[2] > 0.6 > 0.5 > sampler.rates[0]


def test_the_start_is_symmetric_around_one_half():
    assert initial_psi(COUNTS, 0.0).tolist() == [0, 0, 0]
    rates = torch.sigmoid(initial_psi(COUNTS, 0.5))
    torch.testing.assert_close(rates.min() + rates.max(), torch.tensor(1.0))
    # n^-1/2 of 60 and 10 stand 1 : sqrt 6
    torch.testing.assert_close(rates[2] / rates[0], torch.tensor(6.0).sqrt())


def test_an_empty_class_is_refused():
    with pytest.raises(EmptyClass, match="class 1"):
        MetaSampler(torch.tensor([5, 0, 2]), learning_rate=0.01)


def test_the_meta_rows_take_classes_in_turn_and_the_images_of_a_class_in_turn():
    labels = torch.tensor([0] * 5 + [1] * 3 + [2])
    rows = ClassBalancedRows(labels, 3, seed=0).take(0, 45)
    drawn = labels[rows].reshape(15, 3)
    assert all(sorted(turn) == [0, 1, 2] for turn in drawn.tolist())
    assert len({tuple(turn) for turn in drawn.tolist()}) > 1  # shuffled anew
    assert torch.bincount(rows, minlength=9).tolist() == [3] * 5 + [5] * 3 + [15]


def test_the_meta_rows_of_a_place_do_not_depend_on_what_was_taken_before():
    rows = ClassBalancedRows(torch.tensor([0, 0, 1, 2, 2, 2]), 3, seed=4)
    torch.testing.assert_close(rows.take(7, 9), rows.take(0, 16)[7:])
