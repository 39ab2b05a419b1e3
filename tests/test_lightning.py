"""Criteria in a LightningModule: what the callback tells them, and that a resumed run is the run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("lightning")
import labo
from labo import LabelRegularizedLoss, regularizers
from lightning_modules import CLASSES, EXAMPLES, Classifier, data, fit, loader

pytestmark = pytest.mark.filterwarnings("default")  # theirs
MEMBERS = ("labo[prior=memory]", "elr", "ps_kd", "online_smoothing", "maxsup[strength=linear]")


def criterion_of(name: str) -> nn.Module:
    return LabelRegularizedLoss(regularizers.create(name))


def plain_loop(name: str, epochs: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses and the last state of a loop that passes all inputs itself."""
    model = Classifier(criterion_of(name))
    member: Any = model.criterion.regularizer
    given = {"examples": EXAMPLES, "epochs": epochs}
    member.provide(**{need: given[need] for need in member.missing})
    optimizer = model.configure_optimizers()
    losses, step, steps = [], 0, epochs * 3
    for epoch in range(epochs):
        for x, y, indices in loader(data()):
            batch = {"indices": indices, "epoch": epoch, "step": step, "progress": step / steps}
            loss = model.criterion(model.network(x), y, **{need: batch[need] for need in member.needs if need in batch})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
    return losses, model.state_dict()


@pytest.mark.parametrize("name", MEMBERS)
def test_members_are_told_what_a_plain_loop_tells_them(name):
    model = Classifier(criterion_of(name))
    fit(model, loader(data()), max_epochs=4)
    losses, state = plain_loop(name, 4)
    assert model.losses == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(model.state_dict(), state)
    plain = plain_loop("none", 4)[0]
    assert model.losses != pytest.approx(plain, abs=1e-3)


@pytest.mark.parametrize("name", ["labo[prior=memory]", "online_smoothing"])
def test_a_resumed_run_is_the_run(tmp_path, name):
    whole, first, second = (Classifier(criterion_of(name)) for _ in range(3))
    fit(whole, loader(data()), max_epochs=4)
    fit(first, loader(data()), max_epochs=2).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, loader(data()), max_epochs=4, checkpoint=tmp_path / "half.ckpt")
    assert first.losses + second.losses == pytest.approx(whole.losses, abs=1e-6)
    torch.testing.assert_close(second.state_dict(), whole.state_dict())


def test_validation_is_the_plain_loss_and_writes_nothing():
    model = Classifier(labo.LABOLoss(prior="memory", examples=EXAMPLES))
    x, y = data().tensors
    trainer = fit(model, loader(data()), DataLoader(data(), EXAMPLES), max_epochs=1)
    assert model.validated[-1] == pytest.approx(nn.functional.cross_entropy(model.network(x), y).item(), abs=1e-6)
    before = {name: value.clone() for name, value in model.criterion.state_dict().items()}
    trainer.validate(model, DataLoader(data(), EXAMPLES), verbose=False)
    torch.testing.assert_close(model.criterion.state_dict(), before)
    assert not model.criterion._forward_pre_hooks


def test_learnt_parameters_join_the_optimizer():
    member = regularizers.create("ls_plus")
    member.provide(class_counts=torch.ones(CLASSES))
    model = Classifier(LabelRegularizedLoss(member))
    before = [parameter.detach().clone() for parameter in member.learnt()]
    trainer = fit(model, DataLoader(data(), 4))
    groups = trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0, 0.0]
    assert not torch.equal(before[0], member.learnt()[0])


class Tagger(Classifier):
    """Labels of tokens, passed to the criterion flattened or not."""

    flat = False

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        logits, labels = self.network(batch[0]), batch[1]
        if self.flat:
            return self.criterion(logits.flatten(0, 1), labels.flatten())
        return self.criterion(logits.movedim(-1, 1), labels)


def test_each_token_has_its_place():
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (6, 5), generator=draw)
    labels[2, 3:] = labels[4, :2] = -100
    memories = []
    for flat in (False, True):
        model = Tagger(criterion_of("labo[prior=memory]"))
        model.flat = flat
        fit(model, loader(TensorDataset(torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1)), labels)))
        criterion: Any = model.criterion
        memory = criterion.regularizer.prediction_memory
        assert memory.labels[:-1].tolist() == labels[labels >= 0].tolist()
        memories.append(memory.values)
    torch.testing.assert_close(memories[0], memories[1])


def test_ddp_leaves_the_memory_alone():
    model = Classifier(criterion_of("labo[prior=memory]"))
    fit(model, loader(data()))
    names: Any = model._ddp_params_and_buffers_to_ignore
    ignored = set(names)
    assert {name for name, _ in model.named_buffers()} <= ignored
    assert not {name for name, _ in model.named_parameters()} & ignored


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"set self.criterion = labo.LABOLoss\(…\) in its __init__"):
        fit(Classifier(nn.CrossEntropyLoss()), loader(data()))
    model = Classifier(criterion_of("labo[prior=memory]"))
    with pytest.raises(ValueError, match="needs indices: pass indices=… to the loss"):
        fit(model, DataLoader(data(), 4))
    assert not model.criterion._forward_pre_hooks
    with pytest.raises(ValueError, match=r"needs the length of training in epochs: set Trainer\(max_epochs=…\)"):
        fit(Classifier(criterion_of("ps_kd")), loader(data()), max_epochs=-1, max_steps=3)
    with pytest.raises(ValueError, match=r"needs model: call regularizer.provide\(model=model\)"):
        fit(Classifier(criterion_of("dlb")), loader(data()))
