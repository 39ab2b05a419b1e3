"""Label issues of a finished run: its training examples, ranked by their labels q*."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from labo.errors import UserError, shorten
from labo.experiment import folds
from labo.experiment import settings as flat
from labo.experiment.executor import TrialExecutor, default_processes
from labo.experiment.progress import ProgressReporter
from labo.experiment.samples import sample_as_json, short_names
from labo.experiment.saved_run import SavedRun
from labo.outer.channel import Channel, fit_channel
from labo.ranking import Ranking, memory_logits, rank
from labo.records.trial import FOLDS, Job, Trial, claim, read_record
from labo.splitting import equal_parts, rarest_class

DEFAULT_BETA = 2.0


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
            "classes": list(self.run.classes),
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
        logits, chosen = memory_logits(memory), 1.0
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


def _some(classes: Sequence[object]) -> str:
    """The first of the names of classes."""
    return shorten(", ".join(map(str, classes)), 40)


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
    now = run.task.splits(description["seed"]).classes  # a fold's own, where those of a run are as it recorded them
    if tuple(map(str, now)) != run.classes:
        raise UserError(
            f"The run in '{run.folder}' has {len(run.classes)} classes ({_some(run.classes)}), but this version of "
            f"labo reads {len(now)} from its data ({_some(now)}), so that its folds would not be of the same classes: "
            "leave --folds out, or train the run anew."
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
