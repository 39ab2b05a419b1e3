"""Selective prediction: does the network know which of its predictions are right?

A selective classifier answers the examples it is most confident of and abstains from the rest. Its *coverage* is the
fraction answered, its *risk* the error among those. Label smoothing raises accuracy and still spoils this ranking (Xia
et al., *Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It*, ICLR 2025);
normalized logits rank better there.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from labo import checks

# The risks, in percent, at which the coverage is given.
RISKS = (1, 5)
# The exponents of the norm that are tried on the validation split.
EXPONENTS = tuple(range(1, 11))
# With two classes all normalized logits are alike.
MIN_CLASSES = 3


def softmax_confidence(logits: Tensor) -> Tensor:
    """The log of the largest softmax probability, (N,) float64, of logits (N, C)."""
    return log_softmax(logits.detach().double(), -1).amax(-1)


def normalized_confidence(logits: Tensor, exponent: int) -> Tensor:
    """The largest logit after centring the logits and dividing them by their p-norm, (N,) float64.

    Args:
        logits: (N, C).
        exponent: p, at least 1.

    Source: Cattelan and Silva, *How to Fix a Broken Confidence Estimator*, UAI 2024 (MaxLogit-pNorm).

    Example:
        >>> normalized_confidence(torch.tensor([[3.0, 0.0, 0.0], [30.0, 0.0, 0.0]]), 1)
        tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    centred = logits.detach().double()
    centred = centred - centred.mean(-1, keepdim=True)
    norm = torch.linalg.vector_norm(centred, ord=exponent, dim=-1)
    return centred.amax(-1) / norm.clamp(min=torch.finfo(torch.float64).tiny)


def fit_exponent(logits: Tensor, target: Tensor) -> int | None:
    """The exponent of `normalized_confidence` with the least AURC on held-out data; the least of equal ones.

    None with fewer than three classes or without examples.

    Args:
        logits: (N, C).
        target: (N,) class indices.
    """
    if logits.shape[-1] < MIN_CLASSES or not len(target):
        return None
    checks.predictions("logits", logits, target)
    correct = logits.argmax(-1) == target
    return min(EXPONENTS, key=lambda exponent: aurc(normalized_confidence(logits, exponent), correct))


def risk_coverage(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """The risk at each coverage, and whether a threshold on the confidence gives that coverage.

    Examples of equal confidence are in random order, of which the expectation is taken; a threshold takes all or none
    of them.

    Args:
        confidence: (N,), higher is surer.
        correct: (N,) bool.

    Returns:
        (N,) float64 and (N,) bool, at coverages 1/N, 2/N, …, 1.
    """
    order = confidence.argsort(descending=True, stable=True)
    ranked, wrong = confidence[order], (~correct[order]).double()
    _, group, sizes = torch.unique_consecutive(ranked, return_inverse=True, return_counts=True)
    share = wrong.new_zeros(len(sizes)).index_add(0, group, wrong) / sizes
    errors = share[group].cumsum(0)
    coverages = torch.arange(1, len(wrong) + 1, dtype=torch.float64)
    is_threshold = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
    return errors / coverages, is_threshold


def aurc(confidence: Tensor, correct: Tensor) -> float:
    """The area under the risk-coverage curve: the mean risk over the coverages 1/N, 2/N, …, 1. Lower is better.

    Source: Geifman and El-Yaniv, *Selective Classification for Deep Neural Networks*, NeurIPS 2017.

    Example:
        >>> aurc(torch.tensor([0.9, 0.8]), torch.tensor([True, False]))  # risks 0 and 1/2
        0.25
    """
    return risk_coverage(confidence, correct)[0].mean().item()


def auroc(confidence: Tensor, correct: Tensor) -> float | None:
    """The probability that a right prediction has a higher confidence than a wrong one; ties count half.

    None where all are right, or all are wrong.
    """
    if bool(correct.all()) or not bool(correct.any()):
        return None
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(correct.numpy(), confidence.numpy()))


def coverage_at_risk(confidence: Tensor, correct: Tensor, risk: float) -> float:
    """The largest coverage that a threshold on the confidence reaches with at most this risk; 0 if there is none.

    Example:
        >>> coverage_at_risk(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, True, False, True]), 0.25)
        1.0
    """
    risks, is_threshold = risk_coverage(confidence, correct)
    reached = (is_threshold & (risks <= risk + 1e-12)).nonzero()
    return (int(reached[-1]) + 1) / len(risks) if len(reached) else 0.0


def selective_scores(logits: Tensor, target: Tensor, exponent: int | None = None) -> dict[str, float]:
    """AURC, AUROC of being right, and coverage at `RISKS` by softmax confidence, and by normalized logits.

    Args:
        logits: (N, C), without temperature.
        target: (N,) class indices.
        exponent: of the norm, by `fit_exponent`; None leaves out the scores "…_normalized".

    Returns:
        "aurc", "auroc" (missing where all or none are right) and "coverage_1" and "coverage_5", the coverage at a risk
        of 1% and 5%, as fractions.
    """
    checks.predictions("logits", logits, target)
    correct = logits.argmax(-1) == target
    confidences = {"": softmax_confidence(logits)}
    if exponent is not None:
        confidences["_normalized"] = normalized_confidence(logits, exponent)
    scores: dict[str, float] = {}
    for suffix, confidence in confidences.items():
        scores["aurc" + suffix] = aurc(confidence, correct)
        if (area := auroc(confidence, correct)) is not None:
            scores["auroc" + suffix] = area
        for risk in RISKS:
            scores[f"coverage_{risk}{suffix}"] = coverage_at_risk(confidence, correct, risk / 100)
    return scores
