"""Image classifiers: published sizes, shapes, gradients, and what is said of what does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from labo.errors import UserError
from labo.networks import forward
from labo.tasks.images.models import DEFAULTS, available, build, describe

# Model, classes, image size, settings, parameters. ImageNet counts are those of the model pages of torchvision and, for
# ViT, of DeiT-S; ResNet-18 for CIFAR is the count commonly given, WRN the 36.5M of its paper.
PUBLISHED = [
    ("resnet18", 1000, 224, {}, 11_689_512),
    ("resnet34", 1000, 224, {}, 21_797_672),
    ("resnet50", 1000, 224, {}, 25_557_032),
    ("resnet18", 10, 32, {}, 11_173_962),
    ("resnet18", 1000, 64, {"stem": "imagenet"}, 11_689_512),
    ("wrn-28-10", 10, 32, {}, 36_479_194),
    ("vit_small", 1000, 224, {}, 22_050_664),
]
# Small enough to run: every file of models, both stems.
SMALL = [
    ("convnet", 16, {}),
    ("convnet", 16, {"width": 4, "dropout": 0.5}),
    ("resnet18", 8, {}),
    ("resnet18", 32, {"stem": "imagenet"}),
    ("resnet50", 8, {"dropout": 0.1}),
    ("wrn-10-1", 8, {}),
    ("wrn-16-2", 8, {"dropout": 0.3}),
    ("vit_small", 8, {"dropout": 0.1}),
    ("vit_small", 24, {"patch": 12}),
]


def made(name: str, classes: int, size: int, settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    return build(name, classes, size, settings)


@pytest.mark.parametrize(("name", "classes", "size", "settings", "parameters"), PUBLISHED)
def test_parameters_are_as_many_as_published(name, classes, size, settings, parameters):
    with torch.device("meta"):
        network = build(name, classes, size, settings)
        assert network(torch.empty(2, 3, size, size)).shape == (2, classes)
    assert sum(p.numel() for p in network.parameters()) == parameters


@pytest.mark.parametrize("name", available())
@pytest.mark.parametrize(("size", "classes"), [(32, 100), (64, 200), (224, 10)])
def test_every_model_takes_the_image_sizes_of_the_tasks(name, size, classes):
    with torch.device("meta"):
        network = build(name, classes, size, {**DEFAULTS, "learning_rate": 0.1})
        assert network(features=torch.empty(2, 3, size, size)).shape == (2, classes)
    assert describe(name)


def test_the_small_network_has_about_100_000_parameters():
    assert sum(p.numel() for p in build("convnet", 100, 32, {}).parameters()) == 106_372


@pytest.mark.parametrize(("name", "size", "settings"), SMALL)
def test_gradients_reach_every_parameter(name, size, settings):
    network = made(name, 5, size, settings)
    loss = nn.functional.cross_entropy(network(features=torch.rand(4, 3, size, size)), torch.arange(4))
    loss.backward()
    for parameter, value in network.named_parameters():
        assert value.grad is not None, parameter
        assert value.grad.isfinite().all(), parameter
        assert value.grad.abs().max() > 0, parameter


@pytest.mark.parametrize(("name", "size", "settings"), [case for case in SMALL if case[0] != "resnet50"])
def test_the_seed_decides_the_weights_and_evaluation_is_still(name, size, settings):
    first, again = (made(name, 5, size, settings) for _ in range(2))
    other = build(name, 5, size, settings)
    for mine, same in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, same)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    first.eval()
    features = torch.rand(2, 3, size, size)
    logits = first(features)
    assert logits.shape == (2, 5)
    assert torch.equal(logits, first(features))
    # A batch is its images: no image looks at another in evaluation.
    torch.testing.assert_close(first(features[:1]), logits[:1], rtol=1e-4, atol=1e-5)


def activations(network: nn.Module, kind: type[nn.Module], features: Tensor) -> list[Tensor]:
    """Inputs of the layers of a kind."""
    seen: list[Tensor] = []
    handles = [
        m.register_forward_hook(lambda _, x, __: seen.append(x[0])) for m in network.modules() if type(m) is kind
    ]
    network(features)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    ("name", "size", "stem", "last"),
    [
        ("resnet18", 32, "cifar", 4),
        ("resnet18", 64, "imagenet", 2),
        ("wrn-10-1", 32, "auto", 8),
        ("convnet", 32, "auto", 8),
    ],
)
def test_the_stem_decides_how_small_images_become(name, size, stem, last):
    with torch.device("meta"):
        network = build(name, 5, size, {"stem": stem})
        places = activations(network, nn.BatchNorm2d, torch.empty(1, 3, size, size))[-1].shape[2:]
    assert places == (last, last)


def test_activations_keep_their_scale_through_the_depth():
    torch.manual_seed(0)
    for name in ("resnet18", "wrn-16-2", "vit_small"):
        spread = build(name, 10, 32, {})(torch.randn(8, 3, 32, 32)).std()
        assert 1e-3 < spread < 5, name


def test_dropout_acts_in_training_alone():
    for name in ("wrn-10-1", "convnet", "vit_small"):
        network = made(name, 5, 8, {"dropout": 0.5})
        features = torch.rand(3, 3, 8, 8)
        assert not torch.equal(network(features), network(features))
        network.eval()
        assert torch.equal(network(features), network(features))


@pytest.mark.parametrize(
    ("name", "size", "settings", "message"),
    [
        (
            "resnet18",
            16,
            {"stem": "imagenet"},
            "at least 32 x 32 pixels, but got 16 x 16; stem=cifar takes smaller ones",
        ),
        ("resnet18", 4, {}, "'resnet18' needs images of at least 8 x 8 pixels, but got 4 x 4"),
        ("densenet121", 32, {}, "'densenet121' is no longer part of labo: use timm/densenet121"),
        ("mobilenet_v2", 32, {}, "use timm/mobilenetv2_100"),
        ("vit_small", 30, {}, "whole number of patches of 4 pixels a side, but got 30 pixels"),
        ("wrn-27-10", 32, {}, "wrn-DEPTH-WIDTH with a depth of 10, 16, 22, 28"),
        ("wrn-28", 32, {}, "wrn-DEPTH-WIDTH"),
        ("wrn-28-0", 32, {}, "width of at least 1"),
        ("resnet81", 32, {}, "Unknown model 'resnet81'; the nearest is 'resnet18'"),
        ("resnet18", 32, {"stem": "tall"}, "Unknown stem 'tall'"),
        ("resnet18", 32, {"dropout": 1.0}, r"`dropout` to be in \[0, 1\), but got 1.0"),
        ("resnet18", 32, {"width": 64}, "'resnet18' takes no `width`; it takes stem, dropout"),
        ("wrn-28-10", 32, {"stem": "imagenet"}, "'wrn-28-10' takes no `stem`"),
        ("convnet", 32, {"width": 0}, "`width` to be a whole number of at least 1, but got 0"),
        ("convnet", 32, {"pretrained": True}, "takes no `pretrained`"),
        ("convnet", 0, {}, "`image_size` to be a whole number of at least 1, but got 0"),
        ("timm/resnet18", 32, {}, "'timm/resnet18' needs timm, which does not import here: "),
        ("hf/", 32, {}, "after 'hf/'"),
        ("hf//no/such/place", 32, {}, "but got '/no/such/place', which is not there"),
    ],
)
def test_what_does_not_fit_is_refused(name, size, settings, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=message) as raised:
        build(name, 10, size, settings)
    assert str(raised.value).endswith(".")
    assert "\n" not in str(raised.value)


def test_fewer_than_two_classes_are_refused():
    with pytest.raises(UserError, match="`classes` to be a whole number of at least 2, but got 1"):
        build("convnet", 1, 32, {})


@pytest.fixture
def vit_config(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    config.save_pretrained(tmp_path)
    return tmp_path


def test_a_configuration_of_transformers_gives_a_fresh_classifier(vit_config):
    for source in (vit_config, vit_config / "config.json"):
        network, again = (made(f"hf/{source}", 7, 16, {}) for _ in range(2))
        assert network.training
        assert network(features=torch.rand(2, 3, 16, 16)).shape == (2, 7)
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
        assert forward(network, {"features": torch.rand(2, 3, 16, 16)}).dtype == torch.float32


def test_pretrained_weights_of_transformers_are_loaded(vit_config):
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(vit_config, num_labels=3)
    saved = transformers.AutoModelForImageClassification.from_config(config)
    saved.save_pretrained(vit_config)
    network = build(f"hf/{vit_config}", 3, 32, {"pretrained": True})
    assert network.training
    for mine, theirs in zip(network.parameters(), saved.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    fresh = build(f"hf/{vit_config}", 3, 32, {})
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), saved.parameters(), strict=True))
    # Another number of classes: a new last layer, the rest as saved.
    other = dict(build(f"hf/{vit_config}", 5, 32, {"pretrained": True}).named_parameters())
    assert len(other["network.classifier.bias"]) == 5
    same = "network.vit.embeddings.cls_token"
    assert torch.equal(other[same], dict(network.named_parameters())[same])
    with pytest.raises(UserError, match="does not take colour images of 64 x 64 pixels"):
        build(f"hf/{vit_config}", 3, 64, {"pretrained": True})


def test_configurations_that_do_not_fit_are_refused(vit_config, tmp_path):
    transformers = pytest.importorskip("transformers")
    with pytest.raises(UserError, match="does not take colour images of 4 x 4 pixels"):
        build(f"hf/{vit_config}", 3, 4, {})
    transformers.ViTConfig(num_channels=1, hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "grey")
    with pytest.raises(UserError, match="does not take colour images of 32 x 32 pixels"):
        build(f"hf/{tmp_path / 'grey'}", 3, 32, {})
    transformers.BertConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(UserError, match="is no image classifier that Transformers can build"):
        build(f"hf/{tmp_path / 'text'}", 3, 32, {})
    (tmp_path / "text" / "config.json").write_text("{")
    with pytest.raises(UserError, match="is no image classifier that Transformers can build") as raised:
        build(f"hf/{tmp_path / 'text'}", 3, 32, {})
    assert "\n" not in str(raised.value)


class Stub(nn.Module):
    """A network as timm makes them: its input is called x."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.mean((2, 3)))


def test_timm_is_asked_where_it_imports(monkeypatch):
    """timm itself needs torchvision; a stand-in with its interface shows what it is asked for."""
    asked: list[dict[str, Any]] = []

    def create_model(name: str, **given: Any) -> nn.Module:
        asked.append({"name": name, **given})
        if name in ("resnet18", "offline") and "img_size" in given:
            raise TypeError("no such argument")
        if name == "offline":
            raise OSError("the hub is not reached")
        return Stub(given["num_classes"] + (name == "broken"))

    known = ["resnet18", "vit_tiny", "broken", "offline"]
    stub = SimpleNamespace(create_model=create_model, is_model=known.__contains__, list_models=lambda: known)
    monkeypatch.setitem(sys.modules, "timm", stub)
    network = build("timm/resnet18", 4, 32, {"dropout": 0.2})
    assert network(features=torch.rand(2, 3, 32, 32)).shape == (2, 4)
    wanted = {"name": "resnet18", "pretrained": False, "num_classes": 4, "drop_rate": 0.2}
    assert asked == [{**wanted, "img_size": 32}, wanted]
    build("timm/vit_tiny", 4, 32, {"pretrained": True})
    assert asked[-1] == {"name": "vit_tiny", "pretrained": True, "num_classes": 4, "drop_rate": 0.0, "img_size": 32}
    with pytest.raises(UserError, match="'timm/offline' cannot be built for 32 pixels: the hub is not reached"):
        build("timm/offline", 4, 32, {"pretrained": True})
    with pytest.raises(UserError, match="Unknown timm model 'resnet81'; the nearest is 'resnet18'"):
        build("timm/resnet81", 4, 32, {})
    with pytest.raises(UserError, match=r"logits of shape \(1, 4\) for an image, but got \(1, 5\)"):
        build("timm/broken", 4, 32, {})
