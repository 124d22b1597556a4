import pytest
import torch

from models.calibration.errors import EmptyClass, ShapeMismatch
from models.networks.heads import CosineHead
from training.losses.balanced_softmax import LogitAdjustedLoss, balanced_softmax, logit_adjusted

COUNTS = torch.tensor([100, 10, 1])


def test_equal_counts_make_it_the_cross_entropy():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    expected = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(balanced_softmax(logits, targets, torch.full((3,), 7)), expected)


def test_two_classes_by_hand():
    # equal logits, counts 3:1 -> p(tail) = 1/4 -> loss = log 4
    loss = balanced_softmax(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([3, 1]))
    torch.testing.assert_close(loss, torch.tensor(4.0).log())


def test_only_the_ratios_of_the_counts_matter():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    torch.testing.assert_close(
        balanced_softmax(logits, targets, COUNTS), balanced_softmax(logits, targets, COUNTS * 1000)
    )


def test_the_gradient_is_right():
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda z: balanced_softmax(z, targets, COUNTS), logits)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = balanced_softmax(logits, torch.tensor([1, 1]), COUNTS)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("empty", [0, -1])
def test_a_class_without_examples_is_refused_by_its_index(empty):
    with pytest.raises(EmptyClass, match="class 1 has none"):
        balanced_softmax(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([5, empty, 5]))


@pytest.mark.parametrize("empty", [0, -1])
def test_the_loss_refuses_such_counts_when_it_is_made(empty):
    with pytest.raises(EmptyClass, match="class 1 has none"):
        LogitAdjustedLoss(torch.tensor([5, empty, 5]), 1.0)


def test_counts_of_another_number_of_classes_are_refused():
    with pytest.raises(ShapeMismatch, match=r"class_counts must be \(3,\) .* got \(2,\)"):
        balanced_softmax(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([5, 5]))


def test_tau_goes_from_cross_entropy_to_balanced_softmax():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    plain = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(logit_adjusted(logits, targets, COUNTS, 0.0), plain)
    torch.testing.assert_close(logit_adjusted(logits, targets, COUNTS, 1.0), balanced_softmax(logits, targets, COUNTS))


def test_half_of_tau_by_hand():
    # equal logits, counts 9:1, tau 1/2 -> odds 3:1 -> p(tail) = 1/4 -> loss = log 4
    loss = logit_adjusted(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([9, 1]), 0.5)
    torch.testing.assert_close(loss, torch.tensor(4.0).log())


def test_a_cosine_heads_scale_comes_before_log_n():
    head = CosineHead(2, 2, scale=10.0)
    head.weight.data = torch.eye(2)
    # features along class 0: logits (10, 0); counts e : e^4 -> the margin is 10 - 3 = 7
    loss = balanced_softmax(head(torch.tensor([[3.0, 0.0]])), torch.tensor([0]), torch.tensor([1.0, 4.0]).exp())
    torch.testing.assert_close(loss, torch.nn.functional.softplus(torch.tensor(-7.0)))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_the_module_is_the_function_and_carries_its_counts(tau):
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    module = LogitAdjustedLoss(COUNTS, tau)
    torch.testing.assert_close(module(logits, targets), logit_adjusted(logits, targets, COUNTS, tau))
    each = module(logits, targets, reduction="none")
    torch.testing.assert_close(each, logit_adjusted(logits, targets, COUNTS, tau, reduction="none"))
    assert each.shape == (4,)
    assert "class_counts" in module.state_dict()


def test_with_known_densities_the_raw_logits_of_the_best_network_are_those_of_balanced_classes():
    # One feature with four values; p(x|y) known. Free logits for each value, fitted to the long-tailed law p(x, y).
    given = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    prior = COUNTS.double() / COUNTS.sum()
    joint = prior[:, None] * given  # (C, X)
    logits = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    values, classes = torch.meshgrid(torch.arange(4), torch.arange(3), indexing="ij")

    def closure():
        optimizer.zero_grad()
        losses = balanced_softmax(logits[values.flatten()], classes.flatten(), COUNTS, reduction="none")
        loss = (losses * joint.T.flatten()).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    balanced_posterior = (given / given.sum(dim=0)).T
    torch.testing.assert_close(torch.softmax(logits.detach(), dim=1), balanced_posterior, atol=1e-4, rtol=0)
