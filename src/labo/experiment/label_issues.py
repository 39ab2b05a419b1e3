"""Label issues: training examples ranked by how strongly the label q* disagrees with their given class."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labo import checks, inner
from labo.errors import UserError
from labo.experiment import folds
from labo.experiment import settings as flat
from labo.experiment.executor import TrialExecutor, default_processes
from labo.experiment.progress import ProgressReporter
from labo.experiment.saved_run import SavedRun
from labo.outer.channel import Channel, fit_channel
from labo.records.trial import FOLDS, Job, Trial, claim, read_record
from labo.splitting import equal_parts, rarest_class
from labo.tasks.base import Sample

DEFAULT_BETA = 2.0
# Rows of logits for which q* is computed at a time.
_CHUNK_ROWS = 65_536
# Thumbnails are at most so many pixels a side, values of a table at most so many characters.
MAX_THUMBNAIL, MAX_VALUE_LENGTH = 96, 80
# A memory in half precision holds 0 below this.
_MIN_MASS = 1e-8


@dataclass(frozen=True)
class Ranking:
    """A ranking of N examples; every tensor is (N,), all but `order` in the examples' own order.

    `order` holds their indices, the most likely issue first; `scores` are above 0 where q* prefers another class;
    `other` is the likeliest class of q* beside the given one; `q_given` and `q_other` are q* of the two.
    """

    order: Tensor
    scores: Tensor
    other: Tensor
    q_given: Tensor
    q_other: Tensor


def rank(logits: Tensor, target: Tensor, *, beta: float) -> Ranking:
    """Rank examples by log q*_k - log q*_target, where k is the likeliest class beside the target; the largest first.

    q* = softmax(logits / beta) is the label of the inner problem with a uniform prior (`labo.optimal_labels`), so the
    score is (logits_k - logits_target) / beta: beta scales the scores and changes no order. LABO's alpha does not
    matter: it weights q* against the target in the same way for all. docs/suspicious-labels.md compares scores.

    Args:
        logits: (N, C), of at least two classes.
        target: the given class indices (N,).
        beta: in (0, inf); see `default_beta`.

    Raises:
        ValueError, TypeError: `beta` is out of range, or an argument does not fit.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
        >>> rank(logits, torch.tensor([0, 0, 1]), beta=2.0).order
        tensor([1, 2, 0])
    """
    checks.floating("logits", logits)
    checks.positive("beta", beta)
    if logits.dim() != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1] or math.isinf(beta):
        raise ValueError(
            "Expected `logits` (N, C) of at least two classes, `target` (N,) and a finite `beta`, but got "
            f"{tuple(logits.shape)}, {tuple(target.shape)} and {beta}."
        )
    chunks = [
        _log_ratios(rows.double(), labels.unsqueeze(1), beta)
        for rows, labels in zip(logits.split(_CHUNK_ROWS), target.split(_CHUNK_ROWS), strict=True)
    ]
    scores, other, q_given, q_other = (torch.cat(column).squeeze(1) for column in zip(*chunks, strict=True))
    return Ranking(scores.argsort(descending=True, stable=True), scores, other, q_given, q_other)


def _log_ratios(logits: Tensor, target: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    labels = inner.optimal_labels(logits, beta=beta)
    likeliest, other = logits.scatter(1, target, -torch.inf).max(1, keepdim=True)
    # From the logits: of labels, the ratio would be 0 / 0 where both underflow.
    scores = (likeliest - logits.gather(1, target)) / beta
    return scores, other, labels.gather(1, target), labels.gather(1, other)


def default_beta(method: str, settings: Mapping[str, Any]) -> float:
    """The beta of q* for a run: LABO's own, 2 for other methods and where it is infinite.

    Example:
        >>> default_beta("labo", {"alpha": 0.4, "beta": 4.0}), default_beta("none", {})
        (4.0, 2.0)
    """
    beta = float(settings.get("beta", DEFAULT_BETA)) if method.partition("[")[0] == "labo" else DEFAULT_BETA
    return DEFAULT_BETA if math.isinf(beta) else beta  # label smoothing: its q* is the same for all


def precision(order: Tensor, injected_noise: Tensor) -> float:
    """The fraction of injected noise among the first n examples of `order`, where n is the number of all injected.

    Args:
        order: indices (N,) of examples.
        injected_noise: a mask (N,) of the examples whose labels label noise has flipped.

    Example:
        >>> precision(torch.tensor([2, 0, 1]), torch.tensor([True, False, True]))
        1.0
    """
    count = int(injected_noise.sum())
    return injected_noise[order[:count]].double().mean().item()


@dataclass(frozen=True)
class LabelIssues:
    """The training examples of a run, ranked.

    Args:
        run: finished.
        ranking: of its training examples.
        names: of its training examples.
        beta: of q*.
        folds: how many networks judged the examples, each those that it had not trained on; 0 for the run's own.
        memory: whether the run's memory of its own predictions judged them.
        channel: the noise channel of the labels, fitted to the predictions of the folds; None without folds.
    """

    run: SavedRun
    ranking: Ranking
    names: Sequence[str]
    beta: float
    folds: int
    memory: bool = False
    channel: Channel | None = None

    def lines(self) -> Iterator[dict[str, Any]]:
        """One line per example, the most likely issue first: its name, its index in the data and its two classes.

        `other` is the likeliest class of q* beside the given one. With label noise also the class `before` it.
        """
        train, ranking, classes = self.run.splits.train, self.ranking, self.run.classes
        for position, index in enumerate(ranking.order.tolist(), 1):
            line = {
                "rank": position,
                "example": self.names[index],
                "place": int(train.origin.source_indices[index]),
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
        """JSON-able: the method, counts, and the first `top` lines, with their images or table rows if `samples`."""
        description, train = self.run.description, self.run.splits.train
        lines = [line for line, _ in zip(self.lines(), range(top), strict=False)]
        for line, name in zip(lines, short_names(self.names, self.ranking.order[:top].tolist()), strict=True):
            line["example"] = name
        if samples:
            chosen = train.subset(self.ranking.order[:top])
            shown = self.run.task.samples(chosen, description["preprocessing"])
            lines = [{**line, **sample_as_json(sample)} for line, sample in zip(lines, shown, strict=True)]
        return {
            **{key: description[key] for key in ("task", "method", "seed")},
            "folds": self.folds,
            "memory": self.memory,
            "beta": self.beta,
            "examples": len(train),
            "disagree": int((self.ranking.scores > 0).sum()),
            "planted": self._injected_noise(),  # the key of files that exist
            "channel": None if self.channel is None else self.channel.as_json(),
            "top": lines,
        }

    def _injected_noise(self) -> dict[str, Any] | None:
        """How well the ranking finds the labels that label noise has flipped; None where there are none."""
        train = self.run.splits.train
        if train.before_noise is None or not bool((train.before_noise != train.target).any()):
            return None
        injected = train.before_noise != train.target
        flagged = self.ranking.scores > 0
        both = int((flagged & injected).sum())
        return {
            "count": int(injected.sum()),
            "precision": precision(self.ranking.order, injected),
            "chance": injected.double().mean().item(),
            "flagged_precision": both / max(1, int(flagged.sum())),
            "flagged_recall": both / int(injected.sum()),
        }


def find(run: SavedRun, *, count: int, beta: float | None, processes: int, reporter: ProgressReporter) -> LabelIssues:
    """Rank the training examples of a run by its memory, by its own network, or by the networks of `count` folds.

    The memory, the mean of the network's predictions of an example during training, takes the place of q* where the run
    has one, `count` is 0 and no `beta` is given. `beta` is `default_beta` if None; `processes` is how many folds train
    at a time, 0 for the default.

    Raises:
        UserError: the data have changed, `beta` or `count` is out of range, or a fold failed.
    """
    train = run.splits.train
    chosen = default_beta(run.description["method"], run.description["settings"]) if beta is None else beta
    memory = run.memory if not count and beta is None else None
    if memory is not None:
        logits, chosen = memory.clamp(min=_MIN_MASS).log(), 1.0
    elif count:
        logits = cross_validated_logits(run, count, reporter, processes or default_processes())
    else:
        logits = run.logits(train.features)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"The networks of the run in '{run.folder}' give non-finite logits.")
    try:
        ranking = rank(logits, train.target, beta=chosen)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    channel = fit_channel(logits, train.target, seed=run.description["seed"]) if count else None
    return LabelIssues(run, ranking, train.origin.names(), chosen, count, memory is not None, channel)


def fold_jobs(run: SavedRun, count: int) -> list[Job]:
    """The trials of a run's folds: its settings and seed, each without a part of its training split.

    Raises:
        UserError: `count` is out of range, or the method learns from networks that have seen what a fold leaves out.
    """
    description, size = run.description, len(run.splits.train)
    if not 2 <= count <= size:
        raise UserError(f"Expected --folds from 2 to {size} (the training examples), but got {count}.")
    rarest, fewest = rarest_class(run.splits.train.target)
    if fewest < count:
        cure = f"give at most {fewest} folds" if fewest > 1 else "leave --folds out"
        raise UserError(
            f"Class '{run.classes[rarest]}' has only {fewest} of the training examples, fewer than --folds {count}: "
            f"{cure}."
        )
    needs = flat.create_method(description["method"], description["settings"]).needs
    if "decision" in needs:
        raise UserError(
            f"Method '{description['method']}' has decided by networks of its own folds: leave --folds out, or train "
            "the method that it chose."
        )
    if {"posterior", "kept"} & set(needs):
        raise UserError(
            f"Method '{description['method']}' has learnt from networks of its own folds: leave --folds out, or train "
            "label_smoothing."
        )
    if "teacher" in needs:
        raise UserError(
            f"Method '{description['method']}' learns from a teacher, who has seen the labels that a fold leaves out: "
            "leave --folds out."
        )
    keys = ("task", "method", "seed", "settings", "task_options", "checkpoint", "data")
    own, folder = {key: description[key] for key in keys}, run.folder / FOLDS / str(count)
    return [Job(Trial(**own, fold=f"{number}/{count}"), folder / str(number)) for number in range(1, count + 1)]


def cross_validated_logits(run: SavedRun, count: int, reporter: ProgressReporter, processes: int = 1) -> Tensor:
    """Logits (N, C) of the training examples of a run, each by a network that did not train on it.

    The folds lie in the run's folder: finished ones are read, interrupted ones are resumed.

    Raises:
        UserError: see `fold_jobs`, or a fold failed.
    """
    jobs = fold_jobs(run, count)
    for job in jobs:
        claim(job.trial, job.folder)
    missing = [job for job in jobs if read_record(job.folder) is None]
    reporter.begin(count, count - len(missing))
    reporter.phase("folds")
    with TrialExecutor(max(1, min(processes, len(missing)))) as executor:
        for job, record in executor.run(missing, reporter.update):
            reporter.finished(job, record)
    target = run.splits.train.target
    logits = torch.empty(len(target), len(run.classes))
    for job, part in zip(jobs, equal_parts(target, count, run.description["seed"]), strict=True):
        logits[part] = folds.read_logits(job.folder, len(part), logits.shape[1])
    return logits


def short_names(names: Sequence[str], chosen: Sequence[int]) -> list[str]:
    """The `chosen` of the names; paths are relative to the folder that all of `names` have in common.

    Example:
        >>> short_names(["/data/cat/0.png", "/data/dog/7.png"], [1])
        ['dog/7.png']
    """
    if not all(os.path.isabs(name) for name in names):
        return [names[index] for index in chosen]
    folder = os.path.commonpath([os.path.dirname(name) for name in names])
    return [os.path.relpath(names[index], folder) for index in chosen]


def sample_as_json(sample: Sample) -> Mapping[str, Any]:
    """An image as {"picture": a data: URI of a PNG thumbnail}, a table row as {"row": {column: value}}."""
    if isinstance(sample, np.ndarray):
        return {"picture": _png(sample)}
    return {"row": {name: _truncated(value) for name, value in sample.items()}}


def _png(pixels: np.ndarray) -> str:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _truncated(value: str) -> str:
    return value if len(value) <= MAX_VALUE_LENGTH else value[: MAX_VALUE_LENGTH - 1] + "…"
