"""The choice between a strong and a mild memory, by held-out labels.

If networks memorize labels, a strong memory is much better than label smoothing; if they are still learning slowly at
the end of training, it is much worse, and a mild one is as good or better. To tell which is the case, networks with
both train on one half of the data, and are compared by how well they predict the given labels of the other half.

What they predict also tells how many labels are wrong: see `labo.outer.channel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from labo.outer.channel import channel_losses, fit_channel
from labo.splitting import equal_parts

# Thresholds of the sum of two z-scores. After one half, an absolute value of at least `CLEAR` decides; after both, the
# memory is chosen below `LIMIT`. Both were tuned on the digits, small convnets and CIFAR features of
# docs/memory.md#labo_auto.
CLEAR, LIMIT = 2.5, 0.7
HALVES = (1, 2)
MIN_EXAMPLES = 4


@dataclass(frozen=True)
class Candidate:
    """A method with its options, and its name in decisions."""

    name: str
    method: str
    options: Mapping[str, Any]


# For data on which networks with a memory diverge.
PLAIN = Candidate("plain", "label_smoothing", {"epsilon": 0.1})
MILD = Candidate("mild", "labo", {"prior": "memory", "alpha": 0.3, "sharpness": 1.0, "epsilon": 0.1, "decay": 0.9})
STRONG = Candidate("strong", "labo", {"prior": "memory", "alpha": 0.8, "epsilon": 0.5, "decay": 0.8})


@dataclass(frozen=True)
class Evidence:
    """The comparison of the strong memory with the mild one on `halves` held-out halves.

    `channel` and `error` are z-scores of paired differences, strong minus mild, so negative values favour the memory:
    of the negative log-likelihood of the given labels through a noise channel, and of the error rate on them.
    `accuracy` is the accuracy on the given labels, by candidate.
    """

    halves: int
    channel: float
    error: float
    accuracy: Mapping[str, float]

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
    """

    name: str
    method: str
    options: Mapping[str, Any]
    evidence: Evidence | None
    cost: float
    channel: Mapping[str, Any] | None = None

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
            f"{mild} (z = {self.evidence.z:+.1f}, strong below {LIMIT:g}; cost: {self.cost:g} plain runs)."
        )
        return decision if self.channel is None else f"{decision} {self.channel['sentence']}"

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
            evidence = Evidence(*(evidence[key] for key in ("halves", "channel", "error", "accuracy")))
        return cls(record["name"], record["method"], record["options"], evidence, record["cost"], record.get("channel"))


# (candidate, half) -> (logits (n, C), given labels (n,)) of the examples of that half, by a network that trained with
# the candidate on the other half; None if that training failed.
HeldOut = Callable[[Candidate, int], "tuple[Tensor, Tensor] | None"]


def decide(held_out: HeldOut) -> Decision:
    """Compare a strong memory with a mild one on one half, and also on the other if the result is not clear.

    Args:
        held_out: trains a candidate without a half (1 or 2), and predicts that half.
    """
    candidates = (MILD, STRONG)
    logits: dict[str, list[Tensor]] = {candidate.name: [] for candidate in candidates}
    labels: list[Tensor] = []
    evidence, cost = None, 1.0
    for half in HALVES:
        for candidate in candidates:
            prediction = held_out(candidate, half)
            cost += 0.5
            if prediction is None:
                return Decision(PLAIN.name, PLAIN.method, PLAIN.options, None, cost)
            logits[candidate.name].append(prediction[0])
        labels.append(prediction[1])
        pooled = {name: torch.cat(parts) for name, parts in logits.items()}
        evidence = compare(pooled["mild"], pooled["strong"], torch.cat(labels), halves=half)
        if abs(evidence.z) >= CLEAR:
            break
    assert evidence is not None
    # After a clear result on one half, |z| is above `CLEAR`, so `LIMIT` decides the same way.
    chosen = STRONG if evidence.z < LIMIT else MILD
    channel = fit_channel(torch.cat(logits[chosen.name]), torch.cat(labels))
    return Decision(chosen.name, chosen.method, chosen.options, evidence, cost, channel.as_json())


def halves(targets: Tensor, seed: int) -> list[Tensor]:
    """The indices of two random halves of (N,) class indices, stratified by class."""
    return equal_parts(targets, len(HALVES), seed)


def compare(mild: Tensor, memory: Tensor, labels: Tensor, *, halves: int) -> Evidence:
    """The evidence from held-out logits (N, C) of both candidates and the given `labels` (N,)."""
    error = {"mild": (mild.argmax(-1) != labels).double(), "strong": (memory.argmax(-1) != labels).double()}
    channel = z_score(channel_losses(memory, labels) - channel_losses(mild, labels))
    accuracy = {name: round(1 - wrong.mean().item(), 6) for name, wrong in error.items()}
    return Evidence(halves, channel, z_score(error["strong"] - error["mild"]), accuracy)


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
