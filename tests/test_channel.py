"""The noise channel: what it recovers, Bayes' rule, and what it refuses."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import labo
from labo.errors import UserError
from labo.outer import channel as channels
from labo.outer import em
from labo.outer.channel import fit_channel, posterior_labels


def noisy(
    count: int, classes: int, share: float, kind: str, *, sure: float = 5.0, temperature: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits whose softmax at `temperature` is right, labels with a share of wrong ones, and true classes."""
    draw = torch.Generator().manual_seed(seed)
    logits = sure * torch.randn(count, classes, generator=draw).double()
    true = torch.multinomial(logits.softmax(-1), 1, generator=draw).squeeze(1)
    step = torch.ones_like(true) if kind == "class" else torch.randint(1, classes, (count,), generator=draw)
    labels = torch.where(torch.rand(count, generator=draw) < share, (true + step) % classes, true)
    return logits * temperature, labels, true


@pytest.mark.parametrize("kind", channels.KINDS)
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_kind_share_and_temperature_are_recovered(kind, share):
    logits, labels, true = noisy(4000, 8, share, kind, temperature=2.0)
    channel = fit_channel(logits, labels)
    assert channel.kind == kind
    low, high = channel.interval
    assert low <= (labels != true).double().mean().item() <= high
    assert high - low < 0.06
    assert channel.temperature == pytest.approx(2.0, rel=0.1)
    torch.testing.assert_close(channel.matrix.sum(-1), torch.ones(8, dtype=torch.float64))
    if kind == "class":
        shifted = channel.matrix[torch.arange(8), (torch.arange(8) + 1) % 8]
        torch.testing.assert_close(shifted, torch.full_like(shifted, share), atol=0.06, rtol=0)


def test_right_labels_are_found_right():
    logits, labels, _ = noisy(2000, 10, 0.0, "symmetric")
    channel = fit_channel(logits, labels)
    assert channel.wrong < 0.005
    assert channel.interval[0] == 0
    assert channel.sentence.startswith("No label noise found: at most 0.")


def test_an_interval_from_nothing_to_much_says_nothing():
    channel = fit_channel(*noisy(200, 4, 0.0, "symmetric")[:2])
    assert "No label noise found" in replace(channel, interval=(0.0, 0.09)).sentence
    intervals = ((0.0, 0.09), (0.0, 0.1), (0.01, 0.02))
    assert [replace(channel, interval=each).as_json()["clean"] for each in intervals] == [True, False, False]
    unclear = replace(channel, wrong=0.08, interval=(0.0, 0.19))
    assert unclear.sentence == "Too few examples to tell: 8.0% of the labels are wrong (95% interval 0% to 19.0%)."


@pytest.mark.parametrize("kind", channels.KINDS)
def test_posterior_labels_are_bayes_rule(kind):
    logits, labels, true = noisy(1000, 5, 0.3, kind, sure=3.0)
    channel = fit_channel(logits, labels, kind=kind)
    joint = (logits / channel.temperature).softmax(-1) * channel.matrix[:, labels].T
    posterior = posterior_labels(logits, labels, channel)
    torch.testing.assert_close(posterior, joint / joint.sum(-1, keepdim=True), atol=1e-12, rtol=1e-9)
    # They know the true class better than labels and predictions alone.
    right = (posterior.argmax(-1) == true).double().mean()
    assert right > (labels == true).double().mean() + 0.05
    assert right > (logits.argmax(-1) == true).double().mean() + 0.05


def test_posterior_labels_keep_the_dtype_and_are_labo_labels():
    logits, labels, _ = noisy(200, 4, 0.2, "symmetric")
    channel = fit_channel(logits, labels, kind="symmetric")
    posterior = posterior_labels(logits.float(), labels, channel)
    assert posterior.dtype == torch.float32
    prior = channel.matrix[:, labels].T
    prior = prior / prior.sum(-1, keepdim=True)
    labels_of_labo = labo.optimal_labels(logits.float().double(), beta=channel.temperature, prior=prior)
    torch.testing.assert_close(posterior, labels_of_labo.float())


def test_em_climbs_to_where_its_gradient_is_zero():
    logits, labels, _ = noisy(1500, 4, 0.25, "class", sure=2.0)
    data = em.Predictions(logits, labels).at(1.0)
    matrix = em.symmetric_channel(4, 0.2)
    values = []
    for _ in range(2000):
        matrix = data.maximise(*data.posterior(matrix), 1e-9)
        values.append(data.log_likelihood(matrix).sum().item())
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    free = matrix.log().requires_grad_()
    data.log_likelihood(free.softmax(-1)).sum().backward()
    assert free.grad is not None
    assert free.grad.abs().max() < 1e-2


def test_the_noise_rate_is_where_the_likelihood_is_largest():
    logits, labels, _ = noisy(500, 3, 0.3, "symmetric", sure=2.0)
    p = em.Predictions(logits, labels).own(1.0)
    rate = em.noise_rate(p, 3)
    values = [em.mixture(p, other, 3).log().sum().item() for other in (rate - 1e-3, rate, rate + 1e-3)]
    assert values[1] == max(values)


def test_the_largest_logits_alone_come_near_all(monkeypatch):
    logits, labels, _ = noisy(3000, 40, 0.3, "class", sure=6.0)
    whole = fit_channel(logits, labels)
    monkeypatch.setattr(em, "MAX_ENTRIES", 3000 * 12)
    kept = em.Predictions(logits, labels)
    assert kept.columns is not None
    assert kept.columns.shape == (3000, 12)
    assert bool((kept.columns == labels.unsqueeze(1)).any(-1).all())
    few = fit_channel(logits, labels)
    assert few.kind == whole.kind == "class"
    assert few.wrong == pytest.approx(whole.wrong, abs=0.02)


def test_a_weak_network_is_warned_of():
    logits, labels, _ = noisy(2000, 10, 0.1, "symmetric", sure=1.0)
    channel = fit_channel(logits, labels)
    assert channel.warning.startswith("The networks are unsure (mean confidence ")
    assert channel.warning in channel.sentence
    assert not fit_channel(*noisy(2000, 10, 0.1, "symmetric", sure=9.0)[:2]).warning


def test_a_class_without_examples_keeps_the_symmetric_rate():
    logits, labels, _ = noisy(1000, 4, 0.2, "symmetric")
    logits[:, 3] = -50.0
    labels = labels.clamp(max=2)
    channel = fit_channel(logits, labels, kind="class")
    assert bool(channel.matrix.isfinite().all())
    assert channel.matrix[3].argmax() == 3
    assert bool(posterior_labels(logits, labels, channel).isfinite().all())


def test_the_same_seed_gives_the_same_channel():
    logits, labels, _ = noisy(300, 4, 0.2, "symmetric")
    first, second = (fit_channel(logits, labels, seed=7) for _ in range(2))
    assert first.as_json() == second.as_json()


@pytest.mark.parametrize(
    ("logits", "labels", "options", "message"),
    [
        (torch.randn(4, 3), torch.rand(4, 3), {}, "class indices (N,): a noise channel is of examples with one class"),
        (torch.randn(4, 3), torch.zeros(4, 2, dtype=torch.long), {}, "not of probabilities or sequences"),
        (
            torch.randn(4, 3),
            torch.zeros(5, dtype=torch.long),
            {},
            "`logits` (N, C) and `labels` (N,)",
        ),
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.long), {}, "at least two classes"),
        (
            torch.randn(4, 3) / 0,
            torch.zeros(4, dtype=torch.long),
            {},
            "`logits` to be free of NaN and inf",
        ),
        (torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), {}, "`labels` to be class indices in [0, 3)"),
        (
            torch.randn(4, 3),
            torch.tensor([0, 1, 2, -100]),
            {},
            "`labels` to be class indices in [0, 3)",
        ),
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.long), {"folds": 5}, "`folds` from 2 to 4"),
        (torch.randn(4, 3), torch.zeros(4, dtype=torch.long), {"kind": "full"}, "symmetric"),
    ],
)
def test_what_does_not_fit_is_refused(logits, labels, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        fit_channel(logits, labels, **options)


def test_another_number_of_classes_is_refused():
    channel = fit_channel(*noisy(100, 3, 0.0, "symmetric")[:2])
    with pytest.raises(UserError, match="Expected logits of 3 classes"):
        posterior_labels(torch.randn(4, 5), torch.zeros(4, dtype=torch.long), channel)
