import pytest
import torch
import torchvision
from torch import nn

from models.calibration.errors import CalibrationError
from models.networks.backbones import ResNet32, SmallNet, build_backbone
from models.networks.classifier import Architecture, Classifier, folded
from models.networks.nbn import NbnConfig, NothingToNormalize, folded_state, normalize_batchnorm

MIDDLE = torch.full((3,), 0.5)


def images(num: int = 8, size: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained_a_little(module: nn.Module, steps: int = 3, size: int = 32) -> nn.Module:
    """Weights and statistics that are not those of the start."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        out = module(images(size=size))
        (out * torch.linspace(-1, 1, out.shape[1])).sum(dim=1).square().mean().backward()
        optimizer.step()
    return module


def test_the_official_choice_in_resnet32_is_the_last_norm_of_each_block_of_the_last_stage():
    assert normalize_batchnorm(ResNet32()) == [f"layer3.{block}.bn2" for block in range(5)]


@pytest.mark.parametrize("make", [torchvision.models.resnet50, lambda: build_backbone("timm/resnet50")])
def test_in_a_bottleneck_network_it_is_bn3_and_the_shortcuts_norm(make):
    network = make()
    names = normalize_batchnorm(network)
    assert names == ["layer4.0.bn3", "layer4.0.downsample.1", "layer4.1.bn3", "layer4.2.bn3"]
    assert [dict(network.named_modules())[name].num_features for name in names] == [2048] * 4


def test_a_basic_block_network_of_timm_takes_bn2():
    assert normalize_batchnorm(build_backbone("timm/resnet18")) == [
        "layer4.0.bn2",
        "layer4.0.downsample.1",
        "layer4.1.bn2",
    ]


def test_a_block_that_starts_silent_gets_a_direction():
    # timm starts the last weight of a block at 0, which has none
    network = build_backbone("timm/resnet18")
    names = normalize_batchnorm(network, config=NbnConfig(scope="layer"))
    for name in names:
        weight = dict(network.named_modules())[name].weight
        assert float(weight.detach().norm()) == pytest.approx(1.0, rel=1e-4)
        assert weight.detach().std() < 1e-6


def test_a_plain_network_takes_its_last_norm():
    assert normalize_batchnorm(SmallNet()) == ["layers.7"]


def test_everything_names_and_functions_can_be_asked_for():
    assert len(normalize_batchnorm(ResNet32(), "all")) == 31
    assert normalize_batchnorm(ResNet32(), ["bn1"]) == ["bn1"]
    assert normalize_batchnorm(ResNet32(), lambda name, layer: layer.num_features == 32 and "bn1" in name) == [
        f"layer2.{block}.bn1" for block in range(5)
    ]


def test_other_layers_stay_what_they_were():
    network = ResNet32()
    before = {name for name, _ in network.named_parameters()}
    normalize_batchnorm(network)
    changed = before - {name for name, _ in network.named_parameters()}
    assert changed == {f"layer3.{block}.bn2.{vector}" for block in range(5) for vector in ("weight", "bias")}


@pytest.mark.parametrize("start", ["random", "zero"])
def test_weight_and_bias_have_the_magnitude_as_their_length_whatever_they_are(start):
    network = SmallNet()
    normalize_batchnorm(network, config=NbnConfig(magnitude=1.7, bias_start=start))
    layer = network.layers[7]
    layer.parametrizations.weight.original.data = torch.randn(64) * 100
    layer.parametrizations.bias.original.data = torch.randn(64) * 0.01
    torch.testing.assert_close(layer.weight.norm(), torch.tensor(1.7), atol=2e-4, rtol=0)  # 1e-6 in the denominator
    torch.testing.assert_close(layer.bias.norm(), torch.tensor(1.7), atol=2e-4, rtol=0)


def test_stretching_the_weight_changes_nothing():
    network = SmallNet().eval()
    normalize_batchnorm(network)
    before = network(images(size=8))
    network.layers[7].parametrizations.weight.original.data *= 50
    torch.testing.assert_close(network(images(size=8)), before, atol=1e-5, rtol=1e-4)


def test_by_hand():
    # g = (3, 4) has length 5; alpha 10 -> weight (6, 8)
    layer = nn.Sequential(nn.BatchNorm2d(2))
    layer[0].weight.data = torch.tensor([3.0, 4.0])
    normalize_batchnorm(layer, config=NbnConfig(magnitude=10.0, bias_start="zero"))
    torch.testing.assert_close(layer[0].weight, torch.tensor([6.0, 8.0]), atol=1e-4, rtol=0)
    assert layer[0].bias.tolist() == [0, 0]


def test_one_magnitude_is_shared_as_in_the_official_code_or_each_layer_has_its_own():
    def magnitudes(scope: str) -> list[nn.Parameter]:
        network = ResNet32()
        normalize_batchnorm(network, config=NbnConfig(scope=scope))
        return [value for name, value in network.named_parameters() if name.endswith("magnitude")]

    assert len(magnitudes("shared")) == 1
    assert len(magnitudes("layer")) == 5


def test_the_ordinary_magnitude_starts_where_batchnorm_starts():
    network = ResNet32().eval()
    expected = network(images())
    normalize_batchnorm(network, config=NbnConfig(magnitude="ordinary", bias_start="zero"))
    torch.testing.assert_close(network(images()), expected, atol=1e-4, rtol=1e-4)


def test_from_zero_the_first_step_makes_the_bias_huge_and_from_a_random_start_it_does_not():
    def longest_bias(start: str) -> float:
        network = SmallNet()
        normalize_batchnorm(network, config=NbnConfig(bias_start=start))
        trained_a_little(network, steps=1, size=8)
        assert all(torch.isfinite(value).all() for value in network.parameters())
        return float(network.layers[7].parametrizations.bias.original.detach().norm())

    assert longest_bias("zero") > 1e3
    assert longest_bias("random") < 10


@pytest.mark.parametrize("start", ["random", "zero"])
def test_under_mixed_precision_the_first_steps_are_finite(start):
    network = SmallNet()
    normalize_batchnorm(network, config=NbnConfig(bias_start=start))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = network(images(size=8))
    out.float().square().sum().backward()
    for name, value in network.named_parameters():
        assert value.dtype == torch.float32, name
        assert torch.isfinite(value.grad).all(), name


def test_folding_gives_ordinary_batchnorm_with_the_same_outputs():
    network = ResNet32()
    normalize_batchnorm(network)
    trained_a_little(network).eval()
    ordinary = ResNet32().eval()
    ordinary.load_state_dict(folded_state(network))
    torch.testing.assert_close(ordinary(images()), network(images()), atol=0, rtol=0)


@pytest.mark.parametrize("head", ["linear", "cosine"])
def test_a_folded_classifier_gives_the_same_logits_and_leaves_the_trained_one_alone(head):
    network = Classifier(
        Architecture(backbone="small", norm="nbn", head=head, rectify=True), 4, mean=MIDDLE, std=MIDDLE
    )
    pixels = torch.randint(0, 256, (16, 8, 8, 3), dtype=torch.uint8)
    for _ in range(5):
        network(pixels)  # moves the statistics of the logits
    network.eval()
    expected = network(pixels)
    plain = folded(network)
    torch.testing.assert_close(plain(pixels), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(network(pixels), expected, atol=0, rtol=0)
    assert not any("parametrizations" in name for name, _ in plain.named_parameters())
    assert any("parametrizations" in name for name, _ in network.named_parameters())
    if head == "linear":
        torch.testing.assert_close(plain.head.row_norms, network.head.row_norms)


def test_a_network_without_such_layers_and_an_unknown_name_are_refused():
    with pytest.raises(NothingToNormalize, match="none of 0 such layers"):
        normalize_batchnorm(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)))
    with pytest.raises(NothingToNormalize, match="'bn9'"):
        normalize_batchnorm(ResNet32(), ["bn9"])


@pytest.mark.parametrize("change", [{"scope": "net"}, {"magnitude": 0.0}, {"magnitude": "big"}, {"bias_start": "one"}])
def test_a_configuration_out_of_range_is_refused(change):
    with pytest.raises(CalibrationError, match=repr(next(iter(change.values())))):
        NbnConfig(**change)
