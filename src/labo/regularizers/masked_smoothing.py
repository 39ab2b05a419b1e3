"""Masked label smoothing: smoothing over the classes that occur as targets."""

from __future__ import annotations

import math

from labo.regularizers.unigram_smoothing import UnigramSmoothing


class MaskedSmoothing(UnigramSmoothing):
    """CE((1 - epsilon) * target + epsilon * u, p) with u uniform over the classes whose count is above 0.

    It equals label smoothing if all classes occur, and always equals unigram smoothing at infinite temperature.

    Args:
        epsilon: smoothing mass in [0, 1].

    Needs: the (C,) counts of the training targets, by `provide(class_counts=…)`; only whether a count is 0 matters.

    When: for translation with a joint vocabulary, where plain smoothing gives mass to words of the source language that
        are never targets. A class that occurs once counts as much as the most frequent. Classes that occur only in the
        test data get no mass either.

    Raises:
        ValueError: an option is out of range; counts were not provided or do not fit the classes.

    Source: Chen et al., *Focus on the Target's Vocabulary: Masked Label Smoothing for Machine Translation*, ACL 2022.
    """

    name = "masked_smoothing"
    summary = "targets mixed with the uniform distribution over the classes that occur"
    paper = "Chen et al., ACL 2022"
    year = 2022

    def __init__(self, *, epsilon: float = 0.1) -> None:
        super().__init__(epsilon=epsilon, temperature=math.inf)
