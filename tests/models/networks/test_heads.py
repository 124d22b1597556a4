import pytest
import torch
import torch.nn.functional as F

from models.calibration.errors import CalibrationError
from models.networks.backbones import UnknownBackbone, build_backbone
from models.networks.classifier import Architecture
from models.networks.heads import CosineHead, LinearHead, ProjectionHead, RectifiedHead


def test_a_cosine_head_sees_directions_only():
    head = CosineHead(5, 3, scale=20.0)
    features = torch.randn(4, 5)
    logits = head(features)
    torch.testing.assert_close(head(features * 7), logits)
    head.weight.data *= torch.tensor([[2.0], [0.1], [30.0]])
    torch.testing.assert_close(head(features), logits, atol=1e-4, rtol=1e-4)
    assert logits.abs().max() <= 20


def test_a_cosine_head_by_hand():
    head = CosineHead(2, 2, scale=10.0)
    head.weight.data = torch.tensor([[5.0, 0.0], [0.0, 0.2]])
    # features (3, 4): cosines 3/5 and 4/5
    torch.testing.assert_close(head(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, 8.0]]))


def test_the_row_norms_of_a_cosine_head_are_its_scale():
    assert CosineHead(5, 3, scale=20.0).row_norms.tolist() == [20, 20, 20]


def test_rectified_logits_have_mean_zero_and_variance_one_for_each_class_of_a_training_batch():
    head = RectifiedHead(LinearHead(6, 4), 4).train()
    logits = head(torch.randn(200, 6) + 3)
    torch.testing.assert_close(logits.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.var(dim=0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)


def test_the_row_norms_of_a_rectified_head_are_those_of_the_plain_head_that_it_amounts_to():
    head = RectifiedHead(LinearHead(6, 4), 4).train()
    for _ in range(20):
        head(torch.randn(50, 6) * 2 + 1)
    head.eval()
    features = torch.randn(10, 6)
    torch.testing.assert_close(head.folded()(features), head(features), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(head.folded().row_norms, head.row_norms)


def test_the_projection_lands_on_the_unit_sphere():
    projected = ProjectionHead(6, 8)(torch.randn(10, 6))
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(10))
    assert F.cosine_similarity(projected[0], projected[1], dim=0).abs() < 1


@pytest.mark.parametrize("change", [{"norm": "gn"}, {"head": "mlp"}, {"cosine_scale": 0.0}])
def test_an_architecture_that_there_is_not_is_refused(change):
    (field, value), *_ = change.items()
    with pytest.raises(CalibrationError, match=rf"{field} is .*got {value!r}"):
        Architecture(backbone="small", **change)


@pytest.mark.parametrize("name", ["resnet50", "timm/resnet5000", ""])
def test_an_unknown_backbone_is_refused(name):
    with pytest.raises(UnknownBackbone, match=name or "timm/NAME"):
        build_backbone(name)


def test_our_own_backbones_take_no_foreign_weights():
    with pytest.raises(UnknownBackbone, match="trained from scratch"):
        build_backbone("resnet32", weights="pretrained")


def test_a_timm_backbone_takes_its_weights_from_a_file(tmp_path):
    source = build_backbone("timm/resnet18")
    state = source.state_dict() | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "resnet18.pt")
    loaded = build_backbone("timm/resnet18", weights=str(tmp_path / "resnet18.pt"))
    torch.testing.assert_close(loaded.conv1.weight, source.conv1.weight)
    assert loaded.num_features == 512
