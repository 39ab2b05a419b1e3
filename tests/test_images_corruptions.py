"""Image corruptions: their statistics, the seed, and more change with each severity."""

from __future__ import annotations

import pytest
import torch

from labo.errors import UserError
from labo.tasks.images.corruptions import KINDS, corrupt


def images(count: int = 4, size: int = 32) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    return torch.randint(40, 216, (count, 3, size, size), generator=draw, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [8, 32, 96])
def test_every_severity_is_worse_and_the_seed_decides(kind, size):
    clean = images(size=size)
    kept = clean.clone()
    distances = []
    for severity in range(1, 6):
        changed = corrupt(clean, kind, severity, seed=7)
        assert changed.shape == clean.shape
        assert changed.dtype == torch.uint8
        assert torch.equal(changed, corrupt(clean, kind, severity, seed=7))
        distances.append((changed.float() - clean.float()).abs().mean().item())
    assert distances == sorted(set(distances))
    assert distances[0] > 0.5
    assert torch.equal(clean, kept)
    assert torch.equal(corrupt(clean, kind, 3, 7), corrupt(clean, kind, 3, 8)) == (kind != "noise")


def test_noise_has_the_standard_deviation_of_its_severity():
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, expected in ((1, 0.04), (5, 0.10)):
        change = corrupt(grey, "noise", severity, seed=0).float() / 255 - 128 / 255
        assert abs(change.std() - expected) < 1e-3
        assert abs(change.mean()) < 1e-3
    large = torch.full((2, 3, 96, 96), 128, dtype=torch.uint8)
    assert abs((corrupt(large, "noise", 1, 0).float() / 255).std() - 0.08) < 2e-3


def test_noise_depends_on_the_place_alone_and_not_on_who_follows():
    many = images(300, 8)
    whole = corrupt(many, "noise", 3, seed=4)
    assert torch.equal(whole[:5], corrupt(many[:5], "noise", 3, seed=4))
    assert torch.equal(whole[:280], corrupt(many[:280], "noise", 3, seed=4))
    assert not torch.equal(whole[256:260].int() - many[256:260], whole[:4].int() - many[:4])


def test_noise_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    corrupt(images(), "noise", 3, seed=4)
    assert torch.equal(state, torch.get_rng_state())


def test_blur_is_a_gaussian_that_keeps_the_mean():
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[:, 1, 16, 16] = 255
    changed = corrupt(point, "blur", 5, seed=0).double()
    assert changed[:, [0, 2]].max() == 0  # channels stay apart
    places = torch.arange(33) - 16.0
    mass = changed[0, 1]
    assert abs(mass.sum() - 255) < 13  # bytes round: tails below half of one are lost
    assert abs((mass.sum(0) * places**2).sum() / mass.sum() - 1.0) < 0.1  # variance of sigma = 1
    assert torch.equal(mass, mass.T)
    flat = torch.full((1, 3, 9, 9), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(flat, "blur", 5, 0), flat)  # up to the border


def test_blur_by_another_hand():
    ndimage = pytest.importorskip("scipy.ndimage")
    clean = images(2)
    for severity, sigma in ((2, 0.6), (5, 1.0)):
        expected = ndimage.gaussian_filter(clean.double().numpy(), (0, 0, sigma, sigma), mode="nearest")
        changed = corrupt(clean, "blur", severity, 0).double()
        assert (changed - torch.from_numpy(expected)).abs().max() <= 0.5 + 1e-3


def test_contrast_shrinks_the_spread_around_each_channels_mean():
    clean = images()
    changed = corrupt(clean, "contrast", 2, 0).double()
    ratio = changed.std((2, 3)) / clean.double().std((2, 3))
    torch.testing.assert_close(ratio, torch.full_like(ratio, 0.5), rtol=0.01, atol=0)
    torch.testing.assert_close(changed.mean((2, 3)), clean.double().mean((2, 3)), rtol=0, atol=0.5)  # bytes


@pytest.mark.parametrize(
    ("given", "kind", "severity", "message"),
    [
        (images(), "blurr", 1, "Unknown shift 'blurr'; the nearest is 'blur'"),
        (images(), "blur", 6, "`severity` to be a whole number from 1 to 5, but got 6"),
        (images(), "blur", 1.0, "`severity`"),
        (images().float(), "blur", 1, "`images` to be uint8"),
        (images()[0], "blur", 1, "`images` to be uint8 of shape"),
    ],
)
def test_other_arguments_are_refused(given, kind, severity, message):
    with pytest.raises(UserError, match=message):
        corrupt(given, kind, severity, 0)


def test_no_images_are_no_images():
    assert corrupt(images(0), "noise", 1, 0).shape == (0, 3, 32, 32)
