import torch

from models.networks.classifier import Architecture, Classifier, channel_statistics
from models.networks.heads import LinearHead


def test_row_norms_leave_the_bias_out():
    head = LinearHead(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        head.bias.fill_(7.0)
    torch.testing.assert_close(head.row_norms, torch.tensor([5.0, 1.0]))


def test_normalisation_is_part_of_the_classifier():
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 2.0])
    classifier = Classifier(Architecture(backbone="small"), 4, mean=mean, std=std).eval()
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    pixels = torch.stack([(images[..., c] / 255 - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(classifier(images), classifier.head(classifier.backbone(pixels)))


def test_the_state_carries_the_normalisation():
    first = Classifier(Architecture(backbone="small"), 4, mean=torch.full((3,), 0.5), std=torch.full((3,), 0.2)).eval()
    second = Classifier(Architecture(backbone="small"), 4, mean=torch.zeros(3), std=torch.ones(3)).eval()
    second.load_state_dict(first.state_dict())
    images = torch.randint(0, 256, (3, 8, 8, 3), dtype=torch.uint8)
    torch.testing.assert_close(second(images), first(images))


def test_channel_statistics_by_hand():
    images = torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    images[0, 0, 1] = torch.tensor([255, 51, 0])  # with 0 beside them: means 0.5, 0.1, 0
    mean, std = channel_statistics(images)
    torch.testing.assert_close(mean, torch.tensor([0.5, 0.1, 0.0], dtype=torch.float64))
    # a channel that never changes cannot be scaled to 1, and must not divide by 0
    torch.testing.assert_close(std, torch.tensor([0.5**0.5, 0.2 * 0.5**0.5, 1.0], dtype=torch.float64))
    for level in range(256):
        assert channel_statistics(torch.full((3, 7, 5, 3), level, dtype=torch.uint8))[1].tolist() == [1.0, 1.0, 1.0]
