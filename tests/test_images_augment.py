"""Augmented batches: shapes, label mass, the generator, and that each change is the one it says."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from labo.errors import UserError
from labo.tasks.images import augmentation
from labo.tasks.images.augmentation import Augmentation, RandAugment, crop_and_flip, cutmix, mixup

N, SIZE, CLASSES = 12, 32, 7
NEEDS_KORNIA = [{"augment": "randaugment"}, {"erasing": 0.5}, {"augment": "randaugment", "mixup": 0.2, "erasing": 1.0}]
PLAIN = [
    {},
    {"augment": "standard"},
    {"mixup": 0.4},
    {"cutmix": 1},
    {"augment": "standard", "mixup": 0.2, "cutmix": 1.0},
]


def batch(size: int = SIZE, count: int = N) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(5)
    features = torch.randint(256, (count, 3, size, size), generator=draw, dtype=torch.uint8)
    return features, torch.arange(count) % CLASSES


def needs_kornia() -> None:
    pytest.importorskip("kornia", reason="these augmentations are kornia's")


@pytest.mark.parametrize("settings", [*PLAIN, *NEEDS_KORNIA], ids=str)
def test_a_batch_keeps_its_shape_and_its_label_mass_and_follows_the_seed(settings):
    if settings in NEEDS_KORNIA:
        needs_kornia()
    features, labels = batch()
    before = features.clone(), labels.clone()
    change = Augmentation({**settings, "learning_rate": 0.1}, SIZE, CLASSES)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        results.append((change(features, labels), change(features, labels), torch.get_rng_state()))
    ((images, targets), (other, _), state), ((again, targets_again), (other_again, _), state_again) = results
    assert images.shape == features.shape
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    if change.soft:
        assert targets.shape == (N, CLASSES)
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(N))
        # Partners are the batch's own: no class gains or loses.
        torch.testing.assert_close(targets.sum(0), F.one_hot(labels, CLASSES).sum(0).float())
    else:
        assert torch.equal(targets, labels)
    assert torch.equal(images, again)
    assert torch.equal(targets, targets_again)
    assert torch.equal(other, other_again)
    assert torch.equal(state, state_again)
    assert torch.equal(images, other) == (settings == {})  # each batch is drawn anew
    assert torch.equal(features, before[0])  # what came is not written on
    assert torch.equal(labels, before[1])


def test_the_state_of_the_generator_is_all_that_a_resumed_run_needs():
    needs_kornia()
    settings = {"augment": "randaugment", "mixup": 0.2, "cutmix": 1.0, "erasing": 0.5}
    features, labels = batch()
    torch.manual_seed(0)
    first = Augmentation(settings, SIZE, CLASSES)
    for _ in range(3):
        first(features, labels)
    state = torch.get_rng_state()
    expected = [first(features, labels) for _ in range(4)]
    resumed = Augmentation(settings, SIZE, CLASSES)
    torch.manual_seed(99)
    torch.set_rng_state(state)
    for images, targets in expected:
        same, same_targets = resumed(features, labels)
        assert torch.equal(images, same)
        assert torch.equal(targets, same_targets)


def test_bytes_and_their_fractions_are_the_same_images():
    features, labels = batch()
    for given in (features, features / 255):
        assert torch.equal(Augmentation({}, SIZE, CLASSES)(given, labels)[0], features.float() / 255)


def test_crops_are_shifted_copies_half_of_them_mirrored():
    torch.manual_seed(0)
    features = torch.rand(400, 3, 8, 8)
    changed = crop_and_flip(features)
    padded = F.pad(features, (4,) * 4)
    seen = torch.zeros(9, 9, 2)
    for image, before in zip(changed, padded, strict=True):
        found = [
            (top, left, mirrored)
            for top in range(9)
            for left in range(9)
            for mirrored in range(2)
            if torch.equal(image.flip(2) if mirrored else image, before[:, top : top + 8, left : left + 8])
        ]
        assert len(found) == 1
        seen[found[0]] += 1
    assert 160 < seen[:, :, 1].sum() < 240
    assert (seen.sum((1, 2)) > 20).all()  # every height and every width of a shift
    assert (seen.sum((0, 2)) > 20).all()


def test_mixup_by_hand():
    features, labels = torch.rand(6, 3, 4, 4), F.one_hot(torch.arange(6)).float()
    torch.manual_seed(1)
    images, targets = mixup(features, labels, 1.0)
    # Images and labels are the same mixture of the batch.
    torch.testing.assert_close(images, torch.einsum("nk,kchw->nchw", targets, features))
    assert len(targets.unique()) in (2, 3, 4)  # 0, lambda, 1 - lambda; 1 where an image is its own partner


def test_lambda_is_drawn_from_beta():
    torch.manual_seed(0)
    features, labels = torch.zeros(2, 1, 1, 1), F.one_hot(torch.arange(2)).float()
    shares = []
    while len(shares) < 2000:
        targets = mixup(features, labels, 0.5)[1]
        if targets[0, 1] > 0:  # not its own partner
            shares.append(targets[0, 0].item())
    found = torch.tensor(shares)
    assert abs(found.mean() - 0.5) < 0.03
    assert abs(found.var() - 1 / 8) < 0.01  # of Beta(a, a): 1 / (4 (2 a + 1))


def test_cutmix_labels_are_the_areas():
    torch.manual_seed(2)
    features = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 12)
    labels = F.one_hot(torch.arange(5)).float()
    shares = []
    for _ in range(60):
        images, targets = cutmix(features, labels, 1.0)
        for image, target in zip(images, targets, strict=True):
            areas = torch.stack([(image == label).float().mean() for label in range(5)])
            torch.testing.assert_close(areas, target)
        for label, image in enumerate(images):
            foreign = (image[0] != label).nonzero()
            if len(foreign):
                assert len(foreign) == (foreign.amax(0) - foreign.amin(0) + 1).prod()  # a rectangle
        shares.append(targets.amax(1).min().item())
    assert len(set(shares)) > 20


def test_with_both_mixes_a_coin_decides():
    features, labels = batch()
    change = Augmentation({"mixup": 1.0, "cutmix": 1.0}, SIZE, CLASSES)
    torch.manual_seed(0)
    # CutMix leaves every pixel as some image has it, a 255th; mixup makes new ones.
    cut = [bool(((change(features, labels)[0] * 255) % 1 < 1e-3).float().mean() > 0.5) for _ in range(60)]
    assert 15 < sum(cut) < 45


def test_erasing_greys_one_rectangle_of_the_share_of_images():
    needs_kornia()
    torch.manual_seed(0)
    features = torch.ones(300, 3, SIZE, SIZE)
    images, _ = Augmentation({"erasing": 0.25}, SIZE, CLASSES)(features, torch.zeros(300, dtype=torch.long))
    erased = images[(images != 1).any(3).any(2).any(1)]
    assert 50 < len(erased) < 100
    assert erased.unique().tolist() == [augmentation.GREY, 1.0]
    for image in erased:
        places = (image[0] != 1).nonzero()
        assert len(places) == (places.amax(0) - places.amin(0) + 1).prod()
        assert 0.01 < len(places) / SIZE**2 < 0.36


def test_randaugment_draws_for_each_image_by_itself():
    needs_kornia()
    torch.manual_seed(0)
    image = torch.rand(1, 3, SIZE, SIZE)
    changed = RandAugment(1, 15)(image.expand(140, -1, -1, -1))
    different = torch.unique(changed.flatten(1), dim=0)
    assert 18 <= len(different) <= 23  # fourteen operations, nine of them in two directions
    kept = (changed == image).flatten(1).all(1).sum()
    assert 4 <= kept <= 18  # the identity: a fourteenth, so ten


def of_one_operation(name: str, magnitude: int, image: Tensor) -> Tensor:
    """Twenty copies, some changed by the operation, in both directions where it has two."""
    torch.manual_seed(0)
    one = RandAugment(1, magnitude)
    place = 2 * RandAugment.NAMES.index(name)
    one.operations = one.operations[place : place + 2]
    return one(image.expand(20, -1, -1, -1))


@pytest.mark.parametrize("name", RandAugment.NAMES)
def test_every_operation_changes_an_image_and_more_with_more_magnitude(name):
    needs_kornia()
    ramp = torch.linspace(0.2, 0.7, SIZE)
    image = (ramp[:, None] * torch.tensor([1.0, 0.8, 0.6])[:, None, None] + 0.2 * ramp)[None]
    image = image + 0.05 * (torch.arange(SIZE) % 2)
    distances = [
        (of_one_operation(name, magnitude, image) - image).abs().mean((1, 2, 3)).max() for magnitude in (3, 15, 27)
    ]
    if name in ("auto_contrast", "equalize"):
        assert distances[0] == distances[2] > 1e-2
    else:
        assert 0 <= distances[0] < distances[1] < distances[2]
    assert (of_one_operation(name, 15, image) == image).flatten(1).all(1).any()


@pytest.mark.parametrize("name", ["color", "contrast", "brightness"])
def test_colours_are_blended_as_pillow_blends_them(name):
    needs_kornia()
    enhance = pytest.importorskip("PIL.ImageEnhance")
    image = pytest.importorskip("PIL.Image")
    pixels = torch.randint(256, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    enhancer = getattr(enhance, name.capitalize())(image.fromarray(pixels.numpy()))
    changed = of_one_operation(name, 10, pixels.permute(2, 0, 1)[None] / 255)
    for factor in (0.7, 1.0, 1.3):
        expected = torch.tensor(bytearray(enhancer.enhance(factor).tobytes())).view(SIZE, SIZE, 3).permute(2, 0, 1)
        assert (255 * changed - expected).abs().amax((1, 2, 3)).min() < 2


def test_a_part_of_a_large_image_is_resized():
    needs_kornia()
    torch.manual_seed(0)
    features, labels = batch(96, 4)
    images, _ = Augmentation({"augment": "standard"}, 96, CLASSES)(features, labels)
    assert images.shape == features.shape
    assert (images - features / 255).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment": "standart"}, "Unknown augment 'standart'; the nearest is 'standard'"),
        ({"mixup": -0.1}, "`mixup` to be a number from 0 to 1000, but got -0.1"),
        ({"mixup": float("nan")}, "`mixup`"),
        ({"cutmix": "1"}, "`cutmix` to be a number from 0 to 1000, but got '1'"),
        ({"erasing": 1.5}, "`erasing` to be a number from 0 to 1, but got 1.5"),
        ({"randaugment_magnitude": 30}, "`randaugment_magnitude` to be a whole number from 1 to 29, but got 30"),
        ({"randaugment_count": 1.5}, "`randaugment_count` to be a whole number from 1 to 14, but got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Augmentation(settings, SIZE, CLASSES)


def test_other_batches_are_refused():
    features, labels = batch()
    change = Augmentation({"mixup": 0.2}, SIZE, CLASSES)
    with pytest.raises(
        UserError, match=r"`features` to be uint8 or floating point of shape \('N', 3, 32, 32\), but got"
    ):
        change(features[:, :1], labels)
    with pytest.raises(UserError, match="`features`"):
        change(features.int(), labels)
    with pytest.raises(UserError, match=r"`labels` to be class indices of shape \(12,\), but got torch.float32"):
        change(features, F.one_hot(labels, CLASSES).float())


def test_without_kornia_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.augmentation.auto", None)
    for settings in NEEDS_KORNIA:
        with pytest.raises(UserError, match=r"needs kornia 0.9 or newer, .* the extra `image` has it"):
            Augmentation(settings, SIZE, CLASSES)
    for settings in PLAIN:
        Augmentation(settings, SIZE, CLASSES)(*batch())


def test_an_older_kornia_is_refused(monkeypatch):
    kornia = pytest.importorskip("kornia")
    monkeypatch.setattr(kornia, "__version__", "0.8.3")
    with pytest.raises(UserError, match=r"needs kornia 0.9 or newer, but 0.8.3 is here"):
        Augmentation({"augment": "randaugment"}, SIZE, CLASSES)
