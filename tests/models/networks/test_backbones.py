import pytest
import torch
from torch import nn

from models.networks.backbones import BasicBlock, ResNet32, SmallNet, backbone_for, build_backbone


def test_resnet32_is_the_published_network():
    network = ResNet32()
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    head = 64 * 10 + 10
    assert len(convolutions) == 31  # with the classifier 32 layers
    assert all(layer.kernel_size == (3, 3) for layer in convolutions)  # no shortcut has weights
    # 3x3x(3x16 + 10x16x16 + 16x32 + 9x32x32 + 32x64 + 9x64x64) weights, and two numbers for each of the 1,136 channels
    assert sum(p.numel() for p in network.parameters()) + head == 464_154
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 64)


def test_a_halving_shortcut_takes_every_second_pixel_and_pads_with_empty_channels():
    block = BasicBlock(2, 4, stride=2).eval()
    nn.init.zeros_(block.conv2.weight)  # the shortcut alone is left
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    torch.testing.assert_close(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3]].any()


def test_the_small_network_takes_images_of_eight_pixels():
    assert SmallNet()(torch.zeros(2, 3, 8, 8)).shape == (2, SmallNet.num_features)


def test_the_image_size_decides_the_backbone():
    assert [backbone_for(size, size) for size in (8, 15, 16, 32)] == ["small", "small", "resnet32", "resnet32"]
    assert backbone_for(32, 8) == "small"


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "resnet18", "vit_tiny_patch16_224"])
def test_any_network_of_timm_says_how_many_features_it_gives(name):
    network = build_backbone(f"timm/{name}").eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 224, 224)).shape == (1, network.num_features)
