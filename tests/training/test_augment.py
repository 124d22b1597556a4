import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from training.augment import (
    AUTOAUGMENT_CIFAR10,
    RANDAUGMENT_OPERATIONS,
    Augmentation,
    InvalidAugmentation,
    augment,
    magnitude_of,
)
from training.augment_operations import OPERATIONS, apply_operation

AUTO = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=128)
# ours: torchvision's
NAMES = {
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}
# float32 products that round to the other side of a whole number, where torchvision multiplies in another order
ROUNDING = {"brightness", "color", "contrast", "sharpness", "autocontrast"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(num: int = 12, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (num, height, width, 3), generator=generator(9), dtype=torch.uint8)


def smooth(num: int = 12, height: int = 32, width: int = 32) -> torch.Tensor:
    """Images with a narrow range of values, as photographs have."""
    ramp = torch.linspace(40, 200, height)[:, None, None] + torch.linspace(-30, 30, width)[None, :, None]
    shift = torch.linspace(-20, 20, num * 3).reshape(num, 1, 1, 3)
    return (ramp + shift).clamp(0, 255).to(torch.uint8)


def by_torchvision(name: str, images: torch.Tensor, level: int, bins: int, sign: float) -> torch.Tensor:
    magnitudes, _ = AUTO._AUGMENTATION_SPACE[NAMES[name]]
    strengths = magnitudes(bins, images.shape[1], images.shape[2])
    strength = 0.0 if strengths is None else sign * float(strengths[level])
    made = [
        AUTO._apply_image_or_video_transform(
            image, NAMES[name], strength, interpolation=InterpolationMode.NEAREST, fill=AUTO._fill
        )
        for image in images.permute(0, 3, 1, 2)
    ]
    return torch.stack(made).permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (8, 8), (32, 48)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_torchvisions_at_every_bin(name, size):
    for images in (noise(4, *size), smooth(4, *size)):
        for level in range(10):
            for sign in (1.0, -1.0) if OPERATIONS[name].signed else (1.0,):
                strength = sign * magnitude_of(name, torch.full((4,), level), 10, *size)
                ours = apply_operation(name, images, strength).int()
                # a place halfway between two pixels may be rounded to either: a touch more or less strength decides
                nudges = (1.0, 0.999, 1.001) if name in {"shear-x", "shear-y", "rotate"} else (1.0,)
                expected = [by_torchvision(name, images, level, 10, sign * nudge).int() for nudge in nudges]
                gaps = torch.stack([(ours - each).abs().amax(dim=-1) for each in expected])
                assert gaps.amin(dim=0).max() <= (1 if name in ROUNDING else 0)


def test_each_image_of_a_batch_has_its_own_strength():
    images = noise(10)
    for name in OPERATIONS:
        strength = magnitude_of(name, torch.arange(10), 10, 32, 32)
        together = apply_operation(name, images, strength)
        for index in range(10):
            alone = apply_operation(name, images[index : index + 1], strength[index : index + 1])
            torch.testing.assert_close(together[index : index + 1], alone, atol=0, rtol=0)


def test_the_policy_is_that_of_the_paper_as_torchvision_has_it():
    theirs = AUTO._get_policies(v2.AutoAugmentPolicy.CIFAR10)
    ours = [tuple((NAMES[name], chance, level) for name, chance, level in row) for row in AUTOAUGMENT_CIFAR10]
    assert ours == [tuple((name, chance, level or 0) for name, chance, level in row) for row in theirs]


def test_randaugment_draws_from_torchvisions_operations():
    theirs = set(v2.RandAugment._AUGMENTATION_SPACE)
    assert {"Identity" if name == "identity" else NAMES[name] for name in RANDAUGMENT_OPERATIONS} == theirs


def test_the_signed_operations_go_both_ways():
    space = {NAMES[name]: operation.signed for name, operation in OPERATIONS.items()}
    assert space == {name: signed for name, (_, signed) in AUTO._AUGMENTATION_SPACE.items()}


def recorded(monkeypatch, images: torch.Tensor, policy: str) -> list[tuple[str, int]]:
    """Which operations were applied, to how many images, in one call."""
    seen = []

    def record(name, chosen, strength):
        seen.append((name, len(chosen)))
        return apply_operation(name, chosen, strength)

    monkeypatch.setattr("training.augment.apply_operation", record)
    augment(images, Augmentation(policy=policy), generator())
    return seen


def test_each_operation_of_the_policy_is_applied_with_its_probability(monkeypatch):
    num = 20_000
    seen = recorded(monkeypatch, noise(1, 4, 4).expand(num, -1, -1, -1), "autoaugment")
    for name in OPERATIONS:
        expected = sum(chance for row in AUTOAUGMENT_CIFAR10 for each, chance, _ in row if each == name) / 25
        share = sum(count for each, count in seen if each == name) / num
        assert share == pytest.approx(expected, abs=0.02), name


def test_randaugment_applies_two_operations_all_alike(monkeypatch):
    num = 20_000
    seen = recorded(monkeypatch, noise(1, 4, 4).expand(num, -1, -1, -1), "randaugment")
    for name in OPERATIONS:
        share = sum(count for each, count in seen if each == name) / num
        assert share == pytest.approx(0 if name == "invert" else 2 / 14, abs=0.02), name


def test_a_shift_takes_whole_images_by_at_most_the_padding():
    images = torch.arange(1, 17, dtype=torch.uint8).reshape(1, 4, 4, 1).expand(200, 4, 4, 3).contiguous()
    seen = {image.numpy().tobytes() for image in augment(images, Augmentation(padding=1), generator())}
    padded = np.pad(images[0].numpy(), ((1, 1), (1, 1), (0, 0)))
    assert seen == {padded[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)}


def test_a_flip_mirrors_left_and_right_only():
    images = torch.arange(12, dtype=torch.uint8).reshape(1, 2, 2, 3).repeat(50, 1, 1, 1)
    seen = {image.numpy().tobytes() for image in augment(images, Augmentation(flip=True), generator())}
    assert seen == {images[0].numpy().tobytes(), images[0].flip(1).contiguous().numpy().tobytes()}


def test_cutout_blackens_one_square_that_the_border_may_clip():
    white = torch.full((400, 8, 8, 3), 255, dtype=torch.uint8)
    holes = augment(white, Augmentation(cutout=4), generator())[..., 0] == 0
    areas = holes.sum(dim=(1, 2))
    assert int(areas.max()) == 16
    assert int(areas.min()) == 4  # centred in a corner, half of each side is outside
    for hole in holes:
        rows, columns = hole.any(dim=1), hole.any(dim=0)
        assert int(hole.sum()) == int(rows.sum()) * int(columns.sum())  # a rectangle
    assert bool(holes.any(dim=0).all())  # every pixel is hit now and then


ALL = Augmentation(padding=4, flip=True, policy="autoaugment", cutout=16)


def test_the_generator_decides_everything():
    images = noise(64)
    first = augment(images, ALL, generator(1))
    torch.testing.assert_close(first, augment(images, ALL, generator(1)), atol=0, rtol=0)
    assert not torch.equal(first, augment(images, ALL, generator(2)))


@pytest.mark.parametrize("policy", ["none", "autoaugment", "randaugment"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 28, 28), (2, 8, 8), (2, 32, 48)])
def test_size_and_kind_stay_and_the_input_is_left_alone(policy, shape):
    images = noise(*shape)
    before = images.clone()
    out = augment(images, Augmentation(padding=2, flip=True, policy=policy, cutout=4), generator())
    assert (out.shape, out.dtype, out.device) == (images.shape, torch.uint8, images.device)
    torch.testing.assert_close(images, before, atol=0, rtol=0)


@pytest.mark.parametrize("change", [{"padding": -1}, {"policy": "trivial"}, {"cutout": -4}])
def test_an_augmentation_out_of_range_is_refused(change):
    (field, value), *_ = change.items()
    with pytest.raises(InvalidAugmentation, match=rf"^{field} .*got {value!r}"):
        Augmentation(**change)
