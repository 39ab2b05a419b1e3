"""Stratified splits: indices of examples in parts, classes in proportion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def stratified(
    target: Tensor, sizes: Sequence[float], generator: torch.Generator, *, all_in_first: bool = True
) -> list[Tensor]:
    """Indices of class indices (N,) in random parts with the relative `sizes`, classes in proportion.

    Sizes that sum to N are met exactly. The remainder of a class goes to the parts that are furthest below their share,
    so that no part is off by more than one example per class. With `all_in_first`, the first part (the training part)
    has an example of every class.
    """
    total = sum(sizes)
    fractions = [size / total for size in sizes]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    owed = [0.0] * len(sizes)
    for label in torch.unique(target).tolist():
        members = torch.nonzero(target == label).flatten()
        members = members[torch.randperm(len(members), generator=generator, device="cpu")]
        ideal = [fraction * len(members) + debt for fraction, debt in zip(fractions, owed, strict=True)]
        counts = _round_counts(ideal, len(members))
        if all_in_first:
            counts = _at_least_one_first(counts)
        owed = [size - count for size, count in zip(ideal, counts, strict=True)]
        for part, indices in zip(parts, members.split(counts), strict=True):
            part.append(indices)
    joined = [torch.cat(part) for part in parts]
    return [part[torch.randperm(len(part), generator=generator, device="cpu")] for part in joined]


def equal_parts(target: Tensor, count: int, seed: int) -> list[Tensor]:
    """Indices of class indices (N,) in `count` equal parts, classes in proportion, drawn with `seed`."""
    return stratified(target, [1] * count, torch.Generator().manual_seed(seed))


def rarest_class(target: Tensor) -> tuple[int, int]:
    """(the class with the fewest of class indices (N,), their number), of the classes that occur."""
    classes, counts = target.unique(return_counts=True)
    fewest = int(counts.argmin())
    return int(classes[fewest]), int(counts[fewest])


def stratified_sample(target: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of `size` examples of class indices (N,): one of every class, the others in proportion.

    Raises:
        ValueError: `size` is below the number of classes or above N.
    """
    classes = torch.unique(target)
    if not len(classes) <= size <= len(target):
        raise ValueError(f"Expected argument `size` from {len(classes)} to {len(target)}, but got {size}.")
    order = torch.randperm(len(target), generator=generator, device="cpu")
    first = torch.stack([order[(target[order] == label).nonzero()[0, 0]] for label in classes])
    rest = order[~torch.isin(order, first)]
    if size == len(classes):
        return first
    sizes = size - len(classes), len(rest) - size + len(classes)
    kept, _ = stratified(target[rest], sizes, generator, all_in_first=False)  # `first` has one of every class
    return torch.cat([first, rest[kept]])[torch.randperm(size, generator=generator, device="cpu")]


def _round_counts(ideal: Sequence[float], total: int) -> list[int]:
    """Whole numbers near `ideal` that sum to `total`."""
    counts = [max(0, int(size + 1e-9)) for size in ideal]
    while sum(counts) < total:
        gaps = [size - count for size, count in zip(ideal, counts, strict=True)]
        counts[gaps.index(max(gaps))] += 1
    while sum(counts) > total:
        gaps = [count - size if count else -math.inf for size, count in zip(ideal, counts, strict=True)]
        counts[gaps.index(max(gaps))] -= 1
    return counts


def _at_least_one_first(counts: list[int]) -> list[int]:
    """Counts with at least one in the first part, taken from the largest: a class without training examples is lost."""
    if counts[0] == 0 and sum(counts) > 0:
        largest = counts.index(max(counts))
        counts = [1, *counts[1:]]
        counts[largest] -= 1
    return counts
