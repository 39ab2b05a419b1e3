"""Which examples train, validate and test."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Indices = tuple[Tensor, Tensor, Tensor]


def stratified(
    target: Tensor, sizes: Sequence[float], generator: torch.Generator, *, all_in_first: bool = True
) -> list[Tensor]:
    """Indices of (N,) class indices in parts of the relative `sizes`, classes in proportion, drawn at random.

    Sizes that sum to N are met exactly. The rest of a class that does not divide goes where most is still missing, so
    that no part is off by more than one example per class. With `all_in_first`, the first part, which is trained on,
    has an example of every class.
    """
    total = sum(sizes)
    shares = [size / total for size in sizes]
    parts: list[list[Tensor]] = [[] for _ in sizes]
    owed = [0.0] * len(sizes)
    for label in torch.unique(target).tolist():
        members = torch.nonzero(target == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        wanted = [share * len(members) + debt for share, debt in zip(shares, owed, strict=True)]
        counts = [max(0, int(want + 1e-9)) for want in wanted]
        while sum(counts) < len(members):
            gaps = [want - count for want, count in zip(wanted, counts, strict=True)]
            counts[gaps.index(max(gaps))] += 1
        while sum(counts) > len(members):
            gaps = [count - want if count else -math.inf for want, count in zip(wanted, counts, strict=True)]
            counts[gaps.index(max(gaps))] -= 1
        if all_in_first:
            counts = _at_least_one_first(counts)
        owed = [want - count for want, count in zip(wanted, counts, strict=True)]
        for part, piece in zip(parts, members.split(counts), strict=True):
            part.append(piece)
    joined = [torch.cat(part) for part in parts]
    return [part[torch.randperm(len(part), generator=generator)] for part in joined]


def equal_parts(target: Tensor, count: int, seed: int) -> list[Tensor]:
    """Indices of (N,) class indices in `count` parts, classes in proportion, drawn by the seed."""
    return stratified(target, [1] * count, torch.Generator().manual_seed(seed))


def some(target: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Indices of `size` examples of (N,) class indices: one of every class, the others in proportion.

    Raises:
        ValueError: fewer than there are classes, or more than there are examples.
    """
    classes = torch.unique(target)
    if not len(classes) <= size <= len(target):
        raise ValueError(f"Expected argument `size` from {len(classes)} to {len(target)}, but got {size}.")
    order = torch.randperm(len(target), generator=generator)
    first = torch.stack([order[(target[order] == label).nonzero()[0, 0]] for label in classes])
    rest = order[~torch.isin(order, first)]
    if size == len(classes):
        return first
    sizes = size - len(classes), len(rest) - size + len(classes)
    kept, _ = stratified(target[rest], sizes, generator, all_in_first=False)  # of every class there is one already
    return torch.cat([first, rest[kept]])[torch.randperm(size, generator=generator)]


def _at_least_one_first(counts: list[int]) -> list[int]:
    """A class nobody trains on cannot be learnt: the first part has at least one of its examples."""
    if counts[0] == 0 and sum(counts) > 0:
        largest = counts.index(max(counts))
        counts = [1, *counts[1:]]
        counts[largest] -= 1
    return counts
