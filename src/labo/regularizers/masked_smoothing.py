"""Masked label smoothing: smoothing over the classes that occur."""

from __future__ import annotations

import math

from labo.regularizers.unigram_smoothing import UnigramSmoothing


class MaskedSmoothing(UnigramSmoothing):
    """CE((1 - epsilon) * target + epsilon * u, p) with u uniform over the classes whose count is above 0.

    It is label smoothing where all classes occur, and unigram smoothing of infinite temperature everywhere.

    Args:
        epsilon: smoothing mass in [0, 1].

    Needs: once, `class_counts` (C,): how often each class is a training target. Only whether it is 0 matters.

    When: for translation with one vocabulary for both languages, where plain smoothing gives mass to words of the
        source language that are never right. A class that occurs once counts as much as the most frequent; where the
        training targets are a sample, classes that only the test has are left out too.

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
