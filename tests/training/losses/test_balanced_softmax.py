import pytest
import torch

from models.calibration.errors import EmptyClass
from training.losses.balanced_softmax import BalancedSoftmaxLoss, balanced_softmax

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


def test_the_module_is_the_function_and_carries_its_counts():
    logits, targets = torch.randn(4, 3), torch.tensor([0, 1, 2, 2])
    module = BalancedSoftmaxLoss(COUNTS)
    torch.testing.assert_close(module(logits, targets), balanced_softmax(logits, targets, COUNTS))
    assert "class_counts" in module.state_dict()
