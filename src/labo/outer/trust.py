"""The choice between a strong memory, a mild one and label smoothing, by held-out labels.

If networks memorize labels, a strong memory is much better than label smoothing; if they are still learning slowly at
the end of training, it is much worse. To tell which is the case, networks with a strong and with a mild memory train on
one half of the data, and are compared by how well they predict the given labels of the other half. If the strong memory
does not win, the mild one is chosen where networks memorize, and label smoothing where they do not.

What they predict also tells how many labels are wrong: see `labo.outer.channel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any, NamedTuple

import torch
from torch import Tensor

from labo.outer.channel import channel_losses, fit_channel
from labo.regularizers.labo_auto import BUDGET, BUDGETS
from labo.splitting import equal_parts

# Thresholds of the sum of two z-scores. After one half, an absolute value of at least `CLEAR` decides; after both, the
# memory is chosen below `LIMIT`. Both were tuned on the digits, small convnets and CIFAR features of
# docs/memory.md#labo_auto.
CLEAR, LIMIT = 2.5, 0.7
# Networks memorize if the mild memory agrees with this much more of the labels that it was trained on than its network
# predicts of the held-out ones. On small convnets of 20 epochs the difference is 0.28 and more without augmentation and
# 0.08 and less with it (results/learnt-convnet).
MEMORIZED = 0.15
HALVES, QUARTER, QUARTERS = (1, 2), 0, 4
# From this budget on variants of the strong memory are compared too.
LARGE = BUDGETS[-1]
MIN_EXAMPLES = 4


@dataclass(frozen=True)
class Candidate:
    """A method with its options, and its name in decisions."""

    name: str
    method: str
    options: Mapping[str, Any]


PLAIN = Candidate("plain", "label_smoothing", {"epsilon": 0.1})
MILD = Candidate("mild", "labo", {"prior": "memory", "alpha": 0.3, "sharpness": 1.0, "epsilon": 0.1, "decay": 0.9})
STRONG = Candidate("strong", "labo", {"prior": "memory", "alpha": 0.8, "epsilon": 0.5, "decay": 0.8})
# What replaces the strong memory, within a large budget, where it predicts held-out labels clearly better.
VARIANTS = (
    Candidate("firm", "labo", {"prior": "memory", "alpha": 0.85, "epsilon": 0.8, "decay": 0.8}),
    Candidate("steady", "labo", {"prior": "memory", "alpha": 0.8, "sharpness": 1.5, "epsilon": 0.5, "decay": 0.9}),
)


@dataclass(frozen=True)
class Evidence:
    """The comparison of the strong memory with the mild one on `halves` held-out halves.

    `channel` and `error` are z-scores of paired differences, strong minus mild, so negative values favour the memory:
    of the negative log-likelihood of the given labels through a noise channel, and of the error rate on them.
    `accuracy` is the accuracy on the given labels, by candidate. `memorized` is the share of the labels it was trained
    on with which the mild memory agrees, minus its accuracy on held-out ones.
    """

    halves: int
    channel: float
    error: float
    accuracy: Mapping[str, float]
    memorized: float | None = None

    @property
    def z(self) -> float:
        """The sum of both z-scores."""
        return self.channel + self.error


@dataclass(frozen=True)
class Decision:
    """The method for the final training, and why.

    Args:
        name, method, options: of the chosen candidate.
        evidence: the comparison; None if there was none, because networks with a memory failed.
        cost: the total in plain runs, the final one included.
        channel: the noise channel of the held-out labels, as `labo.outer.Channel.as_json` gives it; None without
            evidence.
        budget: the most that it may cost, in plain runs.
        variants: with a large budget, z of each variant of the strong memory against it, as that of `Evidence`.
    """

    name: str
    method: str
    options: Mapping[str, Any]
    evidence: Evidence | None
    cost: float
    channel: Mapping[str, Any] | None = None
    budget: float = BUDGET
    variants: Mapping[str, float] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The decision and the share of wrong labels, in a few sentences."""
        if self.evidence is None:
            return (
                "labo_auto trained with label smoothing: networks with a memory failed "
                f"(cost: {self.cost:g} plain runs)."
            )
        mild, strong = (f"{self.evidence.accuracy[name]:.1%}" for name in ("mild", "strong"))
        chosen = (
            "label smoothing" if self.name == PLAIN.name else f"a {self.name} memory"
        )  # records of earlier versions
        decision = (
            f"labo_auto trained with {chosen}: of the held-out labels, a strong memory predicts {strong}, a mild one "
            f"{mild} (z = {self.evidence.z:+.1f}, strong below {LIMIT:g}{self._memorized}{self._variants}; cost: "
            f"{self.cost:g} plain runs)."
        )
        return decision if self.channel is None else f"{decision} {self.channel['sentence']}"

    @property
    def _memorized(self) -> str:
        """What decided between the mild memory and label smoothing."""
        if self.name == STRONG.name or self.evidence is None or self.evidence.memorized is None:
            return ""
        return f"; memorized: {self.evidence.memorized:.1%} of the labels, mild from {MEMORIZED:.0%}"

    @property
    def _variants(self) -> str:
        """How variants of the strong memory compare with it."""
        values = ", ".join(f"{name} {z:+.1f}" for name, z in self.variants.items())
        return f"; against the strong one: {values}, taken from {-CLEAR:+g}" if values else ""

    def as_json(self) -> dict[str, Any]:
        """The decision as stored in records."""
        content = asdict(self)
        if self.evidence is not None:
            content["evidence"] |= {"z": self.evidence.z}
        return content | {"sentence": self.sentence}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Decision:
        """The decision from a record."""
        evidence = record.get("evidence")
        if evidence is not None:
            evidence = Evidence(**{key: evidence.get(key) for key in Evidence.__dataclass_fields__})
        optional = {key: record[key] for key in ("channel", "budget", "variants") if key in record}
        return cls(record["name"], record["method"], record["options"], evidence, record["cost"], **optional)


class HeldOut(NamedTuple):
    """Predictions for a half by a network that trained on the other one.

    Args:
        logits: (n, C), of the examples of the half.
        labels: (n,), as given.
        agreement: the share of labels of the other half with which the network's memory agrees.
    """

    logits: Tensor
    labels: Tensor
    agreement: float


# (candidate, half) -> predictions of that half; None if training on the other one failed. Half 0 stands for a quarter:
# the candidate trains on one quarter of the data and predicts the rest.
TrainHalf = Callable[[Candidate, int], "HeldOut | None"]


def candidates_at(budget: float) -> tuple[Candidate, ...]:
    """What `labo_auto` compares within a budget, in plain runs."""
    return (MILD, STRONG, *VARIANTS) if budget >= LARGE else (MILD, STRONG)


def decide(train_half: TrainHalf, budget: float = BUDGET) -> Decision:
    """Compare a strong memory with a mild one, on as much held-out data as the budget allows.

    With a budget of 3 plain runs they predict one half, and the other too if the result is not clear. With 1.5 they
    train on a quarter. With 6 they and the `VARIANTS` of the strong one predict both halves, and a variant takes the
    place of the strong one where it is clearly better.

    Args:
        train_half: trains a candidate without a half (1 or 2), and predicts that half; half 0 stands for a quarter.
        budget: one of `BUDGETS`.
    """
    candidates = candidates_at(budget)
    parts = (QUARTER,) if budget < BUDGET else HALVES
    predictions: dict[str, list[HeldOut]] = {candidate.name: [] for candidate in candidates}
    evidence, cost = None, 1.0
    for part in parts:
        held_out = [train_half(candidate, part) for candidate in candidates]
        cost += (0.25 if part == QUARTER else 0.5) * len(held_out)
        for candidate, prediction in zip(candidates, held_out, strict=True):
            if prediction is None:
                return Decision(PLAIN.name, PLAIN.method, PLAIN.options, None, cost, budget=budget)
            predictions[candidate.name].append(prediction)
        evidence = compare(predictions["mild"], predictions["strong"])
        if abs(evidence.z) >= CLEAR and budget < LARGE:
            break
    assert evidence is not None
    assert evidence.memorized is not None
    # After a clear result on one half, |z| is above `CLEAR`, so `LIMIT` decides the same way.
    chosen = STRONG if evidence.z < LIMIT else MILD if evidence.memorized >= MEMORIZED else PLAIN
    variants = {
        candidate.name: compare(predictions["strong"], predictions[candidate.name]).z for candidate in candidates[2:]
    }
    if chosen is STRONG and variants and min(variants.values()) <= -CLEAR:
        chosen = min(candidates[2:], key=lambda candidate: variants[candidate.name])
    channel = fit_channel(*_pooled(predictions[chosen.name if chosen.name in predictions else MILD.name]))
    return Decision(
        chosen.name, chosen.method, chosen.options, evidence, cost, channel.as_json(), budget=budget, variants=variants
    )


def halves(targets: Tensor, seed: int) -> list[Tensor]:
    """The indices of two random halves of (N,) class indices, stratified by class."""
    return equal_parts(targets, len(HALVES), seed)


def quarters(targets: Tensor, seed: int) -> list[Tensor]:
    """The indices of four random quarters of (N,) class indices, stratified by class."""
    return equal_parts(targets, QUARTERS, seed)


def compare(mild: Sequence[HeldOut], strong: Sequence[HeldOut]) -> Evidence:
    """The evidence from both candidates' predictions of one half or two."""
    (mild_logits, labels), (strong_logits, _) = _pooled(mild), _pooled(strong)
    error = {
        "mild": (mild_logits.argmax(-1) != labels).double(),
        "strong": (strong_logits.argmax(-1) != labels).double(),
    }
    channel = z_score(channel_losses(strong_logits, labels) - channel_losses(mild_logits, labels))
    accuracy = {name: round(1 - wrong.mean().item(), 6) for name, wrong in error.items()}
    memorized = round(fmean(half.agreement for half in mild) - accuracy["mild"], 6)
    return Evidence(len(mild), channel, z_score(error["strong"] - error["mild"]), accuracy, memorized)


def _pooled(predictions: Sequence[HeldOut]) -> tuple[Tensor, Tensor]:
    return torch.cat([half.logits for half in predictions]), torch.cat([half.labels for half in predictions])


def z_score(differences: Tensor) -> float:
    """The mean of paired differences (N,) over its standard error; 0 if they are all 0.

    Example:
        >>> z_score(torch.tensor([1.0, 0.0, 1.0, 0.0]))
        1.7320508075688774
    """
    mean, deviation = differences.double().mean().item(), differences.double().std().item()
    if not deviation > 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / deviation * math.sqrt(len(differences))
