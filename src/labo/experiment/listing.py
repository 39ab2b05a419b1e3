"""The suspicious labels of a finished run, as they are written down and shown."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labo.errors import UserError
from labo.experiment import folds, label_issues
from labo.experiment.executor import at_once
from labo.experiment.saved_run import Run
from labo.tasks.base import Sample

if TYPE_CHECKING:
    from labo.experiment.progress import Progress

LARGEST_PICTURE = 96
LONGEST_VALUE = 80
# A memory in half precision holds 0 below this.
_LEAST_MASS = 1e-8


@dataclass(frozen=True)
class Listing:
    """A run's training examples, ranked.

    `folds` is 0 where its own network was asked, which trained on them, or its `memory` of what it said of them.
    """

    run: Run
    ranking: label_issues.Ranking
    names: Sequence[str]
    beta: float
    folds: int
    memory: bool = False

    def lines(self) -> Iterator[dict[str, Any]]:
        """Every example, the most suspicious first: what it is called, where it lies, and its two classes.

        `other` is the class that q* likes best beside the given one, and prefers to it where the score is above 0.

        With label noise also the class `before` it, which tells whether the label was planted.
        """
        train, ranking, classes = self.run.splits.train, self.ranking, self.run.classes
        for rank, index in enumerate(ranking.order.tolist(), 1):
            line = {
                "rank": rank,
                "example": self.names[index],
                "place": int(train.origin.places[index]),
                "given": classes[int(train.target[index])],
                "other": classes[int(ranking.other[index])],
                "q_given": ranking.q_given[index].item(),
                "q_other": ranking.q_other[index].item(),
                "score": ranking.scores[index].item(),
            }
            if train.before_noise is not None:
                line["before"] = classes[int(train.before_noise[index])]
            yield line

    def summary(self, top: int, *, samples: bool) -> dict[str, Any]:
        """JSON-able: how it was made, counts, and the first `top` lines, with their pictures or rows if `samples`."""
        about, train = self.run.about, self.run.splits.train
        lines = [line for line, _ in zip(self.lines(), range(top), strict=False)]
        for line, name in zip(lines, shown(self.names, self.ranking.order[:top].tolist()), strict=True):
            line["example"] = name
        if samples:
            chosen = train.subset(self.ranking.order[:top])
            found = self.run.task.samples(chosen, about["preprocessing"])
            lines = [{**line, **as_json(sample)} for line, sample in zip(lines, found, strict=True)]
        return {
            **{key: about[key] for key in ("task", "method", "seed")},
            "folds": self.folds,
            "memory": self.memory,
            "beta": self.beta,
            "examples": len(train),
            "disagree": int((self.ranking.scores > 0).sum()),
            "planted": self._planted(),
            "top": lines,
        }

    def _planted(self) -> dict[str, Any] | None:
        train = self.run.splits.train
        if train.before_noise is None or not bool((train.before_noise != train.target).any()):
            return None
        planted = train.before_noise != train.target
        found = label_issues.precision(self.ranking.order, planted)
        flagged = self.ranking.scores > 0
        both = int((flagged & planted).sum())
        return {
            "count": int(planted.sum()),
            "precision": found,
            "chance": planted.double().mean().item(),
            "flagged_precision": both / max(1, int(flagged.sum())),
            "flagged_recall": both / int(planted.sum()),
        }


def of_run(run: Run, *, count: int, beta: float | None, processes: int, progress: Progress) -> Listing:
    """Rank the training examples of a run: by its memory, by its own network, or by the networks of `count` folds.

    Its memory is asked where it has one, `count` is 0 and no `beta` is given: then q* is the memory itself, what the
    network has said of the example in training. `beta` is that of `label_issues.beta_of` if None; `processes` is how
    many folds train at a time, 0 for the cores.

    Raises:
        UserError: the data have changed, `beta` or `count` is out of range, or a fold failed.
    """
    train = run.splits.train
    chosen = label_issues.beta_of(run.about["method"], run.about["settings"]) if beta is None else beta
    memory = run.memory if not count and beta is None else None
    if memory is not None:
        logits, chosen = memory.clamp(min=_LEAST_MASS).log(), 1.0
    else:
        logits = folds.logits(run, count, progress, processes or at_once()) if count else run.logits(train.features)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"The networks of the run in '{run.folder}' give logits that are no numbers.")
    try:
        ranking = label_issues.suspicious(logits, train.target, beta=chosen)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    return Listing(run, ranking, train.origin.names(), chosen, count, memory is not None)


def shown(names: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """The `chosen` of the names; files without the folder that all of `names` lie in.

    Example:
        >>> shown(["/data/cat/0.png", "/data/dog/7.png"], [1])
        ['dog/7.png']
    """
    if not all(os.path.isabs(name) for name in names):
        return [names[index] for index in chosen]
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return [os.path.relpath(names[index], folder) for index in chosen]


def as_json(sample: Sample) -> Mapping[str, Any]:
    """A picture as {"picture": a data: URI of a PNG of at most 96 pixels}, a row as {"row": {column: value}}."""
    if isinstance(sample, np.ndarray):
        return {"picture": _png(sample)}
    return {"row": {name: _cut(value) for name, value in sample.items()}}


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((LARGEST_PICTURE, LARGEST_PICTURE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _cut(value: str) -> str:
    return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 1] + "…"
