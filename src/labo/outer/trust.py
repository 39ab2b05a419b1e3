"""How far to trust a memory: label smoothing or LABO with a memory, decided on held-out labels.

Where networks come to learn labels by heart, a strong memory beats label smoothing by far; where they learn slowly to
the end, it loses as far. Networks trained on one half of the data and judged on the other tell which it is: there the
strong memory is compared with a mild one, on the labels as they are written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from labo.outer.channel import channel_losses
from labo.splitting import equal_parts

# A sum of two z-scores: at least `CLEAR` from 0 after one half decides; after both, memory below `LIMIT`. Both were set
# on the digits, small convnets and CIFAR features of docs/memory.md#labo_auto.
CLEAR, LIMIT = 2.5, 0.7
HALVES = (1, 2)
MIN_EXAMPLES = 4


@dataclass(frozen=True)
class Candidate:
    """A method with its options, and what it is called in a decision."""

    name: str
    method: str
    options: Mapping[str, Any]


PLAIN = Candidate("plain", "label_smoothing", {"epsilon": 0.1})
MILD = Candidate("mild", "labo", {"prior": "memory", "alpha": 0.3, "sharpness": 1.0, "epsilon": 0.1, "decay": 0.9})
STRONG = Candidate("strong", "labo", {"prior": "memory", "alpha": 0.8, "epsilon": 0.5, "decay": 0.8})


@dataclass(frozen=True)
class Evidence:
    """What so many `halves` of held-out examples say of the strong memory against the mild one.

    `channel` and `error` are z-scores of paired differences, strong minus mild, so that below 0 speaks for the memory:
    of the negative log-likelihood of the labels as written through a noise channel, and of the share of them that is
    not predicted. `accuracy` is that of the labels as written, by candidate.
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
    """What to train all data with, and why; `cost` is in plain trainings, the last one included."""

    name: str
    method: str
    options: Mapping[str, Any]
    evidence: Evidence | None
    cost: float

    @property
    def sentence(self) -> str:
        """The decision in one sentence."""
        word = "LABO with a memory" if self.name == "strong" else "label smoothing"
        if self.evidence is None:
            return f"labo_auto trained with {word}: networks with a memory failed, for {self.cost:g} plain trainings."
        mild, memory = (f"{self.evidence.accuracy[name]:.1%}" for name in ("mild", "strong"))
        return (
            f"labo_auto trained with {word}: of the held-out labels as written a strong memory predicts {memory}, a "
            f"mild one {mild} (z = {self.evidence.z:+.1f}, memory below {LIMIT:g}), for {self.cost:g} plain trainings."
        )

    def as_json(self) -> dict[str, Any]:
        """The decision as records have it."""
        content = asdict(self)
        if self.evidence is not None:
            content["evidence"] |= {"z": self.evidence.z}
        return content | {"sentence": self.sentence}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Decision:
        """The decision in a record."""
        evidence = record.get("evidence")
        if evidence is not None:
            evidence = Evidence(*(evidence[key] for key in ("halves", "channel", "error", "accuracy")))
        return cls(record["name"], record["method"], record["options"], evidence, record["cost"])


# (logits (n, C), labels as written (n,)) of the examples of a half, by a network that trained with the candidate on the
# other half; None where that training failed.
HeldOut = Callable[[Candidate, int], "tuple[Tensor, Tensor] | None"]


def decide(held_out: HeldOut) -> Decision:
    """Compare a strong memory with a mild one on one half, and on the other too where that is not clear.

    Args:
        held_out: trains a candidate without a half, one of 1 and 2, and predicts it.
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
    # After one half it is clear, and any limit between gives the same.
    chosen = STRONG if evidence.z < LIMIT else PLAIN
    return Decision(chosen.name, chosen.method, chosen.options, evidence, cost)


def halves(targets: Tensor, seed: int) -> list[Tensor]:
    """The indices of both halves of (N,) class indices, classes in proportion, drawn by the seed."""
    return equal_parts(targets, len(HALVES), seed)


def compare(mild: Tensor, memory: Tensor, labels: Tensor, *, halves: int) -> Evidence:
    """What held-out logits (N, C) of both say of `labels` (N,) as they are written."""
    error = {"mild": (mild.argmax(-1) != labels).double(), "strong": (memory.argmax(-1) != labels).double()}
    channel = z_score(channel_losses(memory, labels) - channel_losses(mild, labels))
    accuracy = {name: round(1 - wrong.mean().item(), 6) for name, wrong in error.items()}
    return Evidence(halves, channel, z_score(error["strong"] - error["mild"]), accuracy)


def z_score(differences: Tensor) -> float:
    """The mean of paired differences (N,) over its standard error; 0 where they are all 0.

    Example:
        >>> z_score(torch.tensor([1.0, 0.0, 1.0, 0.0]))
        1.7320508075688774
    """
    mean, deviation = differences.double().mean().item(), differences.double().std().item()
    if not deviation > 0:
        return 0.0 if mean == 0 else math.copysign(math.inf, mean)
    return mean / deviation * math.sqrt(len(differences))
