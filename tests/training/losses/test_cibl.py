import pytest
import torch
import torch.nn.functional as F

from models.calibration.errors import CalibrationError, ShapeMismatch
from training.losses.balanced_softmax import LogitAdjustedLoss
from training.losses.cibl import CiblConfig, CiblLoss, instance_weights, supervised_contrastive

COUNTS = torch.tensor([100, 10, 1])
TARGETS = torch.tensor([0, 0, 1, 0, 0, 1, 2])  # class 2 is alone


def unit(num: int, size: int = 4, *, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return F.normalize(torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=1)


def loss_for(tau: float = 0.0, **config) -> CiblLoss:
    return CiblLoss(CiblConfig(projection=4, **config), LogitAdjustedLoss(COUNTS, tau))


def logits_for(num: int) -> torch.Tensor:
    return torch.randn(num, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_the_two_weights_sum_to_one_and_favour_contrast_for_common_classes():
    classify, contrast = instance_weights(torch.tensor([0.0, 1.0, 4.0]), 0.5)
    # alpha m = 0, 1/2, 2 -> contrast 0, 1/3, 2/3
    torch.testing.assert_close(contrast, torch.tensor([0, 1 / 3, 2 / 3]))
    torch.testing.assert_close(classify + contrast, torch.ones(3))


def test_without_normalising_classification_keeps_its_weight():
    classify, contrast = instance_weights(torch.tensor([0.0, 3.0]), 0.5, normalized=False)
    assert classify.tolist() == [1, 1]
    assert contrast.tolist() == [0, 1.5]


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_alpha_zero_is_the_classification_loss_alone(tau):
    logits = logits_for(7)
    plain = LogitAdjustedLoss(COUNTS, tau)(logits, TARGETS)
    torch.testing.assert_close(loss_for(tau, alpha=0.0)(logits, unit(7), TARGETS), plain)


def test_a_class_that_is_alone_gets_the_classification_loss_alone():
    logits, alone = logits_for(3), torch.tensor([0, 1, 2])
    torch.testing.assert_close(
        loss_for(alpha=5.0)(logits, unit(3), alone), F.cross_entropy(logits, alone), check_dtype=False
    )


def test_a_large_alpha_leaves_contrast_only_where_there_is_company():
    logits, features = logits_for(7), unit(7)
    contrast, others = supervised_contrastive(features, TARGETS, 0.1)
    expected = torch.where(others > 0, contrast, F.cross_entropy(logits, TARGETS, reduction="none")).mean()
    torch.testing.assert_close(
        loss_for(alpha=1e9)(logits, features, TARGETS).float(), expected.float(), atol=1e-4, rtol=1e-4
    )


def test_contrast_by_hand():
    # three unit vectors, the first two alike and of one class, the third opposite: similarities 1 and -1, temperature 1
    # anchor 0: -log(e / (e + 1/e)); anchor 2 has no company
    features, targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 0, 1])
    losses, others = supervised_contrastive(features, targets, 1.0)
    expected = -torch.log(torch.tensor(1.0).exp() / (torch.tensor(1.0).exp() + torch.tensor(-1.0).exp()))
    torch.testing.assert_close(losses, torch.stack([expected, expected, torch.tensor(0.0)]))
    assert others.tolist() == [1, 1, 0]


def test_the_order_of_the_batch_does_not_matter_and_the_views_may_change_places():
    logits, features = logits_for(7), unit(7)
    whole = loss_for(alpha=0.3)(logits, features, TARGETS)
    for order in (torch.tensor([6, 0, 5, 1, 4, 2, 3]), torch.arange(7).flip(0)):
        torch.testing.assert_close(loss_for(alpha=0.3)(logits[order], features[order], TARGETS[order]), whole)


def test_the_gradient_is_right():
    logits, features = logits_for(7).requires_grad_(), unit(7).requires_grad_()

    def whole(z, f):
        contrast, others = supervised_contrastive(F.normalize(f, dim=1), TARGETS, 0.5)
        by_label, by_contrast = instance_weights(others, 0.3)
        return (by_label * F.cross_entropy(z, TARGETS, reduction="none") + by_contrast * contrast).mean()

    # float32 similarities inside: the tolerance is that of their rounding
    assert torch.autograd.gradcheck(whole, (logits, features), eps=1e-2, atol=2e-2)


def test_extreme_logits_and_sharp_temperatures_stay_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0]]).repeat(7, 1).requires_grad_()
    features = unit(7, dtype=torch.float32).requires_grad_()
    loss = loss_for(alpha=0.3, temperature=1e-3)(logits, features, TARGETS)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(features.grad).all()


def test_a_queue_brings_company_from_earlier_steps_without_anchors_of_its_own():
    loss = loss_for(alpha=1e9, queue=2)
    first, second = unit(2, seed=1, dtype=torch.float32), unit(1, seed=2, dtype=torch.float32)
    loss(torch.zeros(2, 3), first, torch.tensor([2, 1]))
    assert loss.queue_targets.tolist() == [2, 1]
    expected, others = supervised_contrastive(
        second, torch.tensor([2]), 0.1, others=first, other_targets=torch.tensor([2, 1])
    )
    assert others.tolist() == [1]
    torch.testing.assert_close(loss(torch.zeros(1, 3), second, torch.tensor([2])), expected[0], atol=1e-5, rtol=1e-5)
    assert loss.queue_targets.tolist() == [2, 2]  # the newest first, as many as fit


def test_a_checkpoint_carries_the_queue():
    loss = loss_for(queue=3)
    loss(torch.zeros(2, 3), unit(2, dtype=torch.float32), torch.tensor([0, 1]))
    other = loss_for(queue=3)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other.queue, loss.queue)


def test_features_and_targets_of_different_number_are_refused():
    with pytest.raises(ShapeMismatch, match=r"targets must be \(3,\)"):
        supervised_contrastive(unit(3), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize("change", [{"alpha": -1.0}, {"temperature": 0.0}, {"projection": 0}, {"queue": -1}])
def test_a_configuration_out_of_range_is_refused(change):
    (field, value), *_ = change.items()
    with pytest.raises(CalibrationError, match=rf"CIBL's {field} .*got {value!r}"):
        CiblConfig(**change)
