"""Beliefs about training examples by networks that did not train on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labo.errors import UserError
from labo.experiment import prediction
from labo.experiment.judges import NoNumbersError
from labo.experiment.runner import Job, Runner
from labo.experiment.trial import Trial, build_method, claim, finished
from labo.metrics.scores import classification_scores
from labo.tasks.base import Examples, Splits
from labo.tasks.splitting import equal_parts
from labo.training import checkpoints

if TYPE_CHECKING:
    from labo.experiment.progress import Progress
    from labo.experiment.runs import Run

LOGITS = "held_out.safetensors"


def cut(splits: Splits, fold: str, seed: int) -> tuple[Splits, Examples]:
    """(the splits without fold "2/5" of the training split, the examples of that fold)."""
    number, count = map(int, fold.split("/"))
    drawn = equal_parts(splits.train.target, count, seed)
    left_out = drawn.pop(number - 1)
    return replace(splits, train=splits.train.subset(torch.cat(drawn))), splits.train.subset(left_out)


def keep(model: nn.Module, held_out: Examples, folder: Path) -> dict[str, float]:
    """Write the logits of the examples that a fold left out; their scores by the labels given to them."""
    logits = prediction.predict(model, held_out.features)
    if not bool(logits.isfinite().all()):
        raise NoNumbersError
    checkpoints.save_tensors({"logits": logits}, folder / LOGITS)
    return classification_scores(logits, held_out.target)


def jobs(run: Run, count: int) -> list[Job]:
    """The trials of a run's folds: its settings and seed, without a part of its training split each.

    Raises:
        UserError: `count` is out of range, or the method learns from a teacher, who has seen what a fold leaves out.
    """
    about = run.about
    size = len(run.splits.train)
    if not 2 <= count <= size:
        raise UserError(f"Expected --folds from 2 to {size} (the training examples), but got {count}.")
    needs = build_method(about["method"], about["settings"]).needs
    if "decision" in needs:
        raise UserError(
            f"Method '{about['method']}' has decided by networks of its own folds: leave --folds out, or train the "
            "method that it chose."
        )
    if "teacher" in needs:
        raise UserError(
            f"Method '{about['method']}' learns from a teacher, who has seen the labels that a fold leaves out: "
            "leave --folds out."
        )
    same = {key: about[key] for key in ("task", "method", "seed", "settings", "task_options", "checkpoint", "data")}
    home = run.folder / "labels" / str(count)
    return [Job(Trial(**same, fold=f"{one}/{count}"), home / str(one)) for one in range(1, count + 1)]


def logits(run: Run, count: int, progress: Progress, processes: int = 1) -> Tensor:
    """Logits (N, C) of the training examples of a run, each by a network that did not train on it.

    Folds that are finished are read; what was stopped goes on. They lie in the run's folder, in labels/COUNT.

    Raises:
        UserError: see `jobs`, or a fold failed.
    """
    wanted = jobs(run, count)
    for job in wanted:
        claim(job.trial, job.folder)
    missing = [job for job in wanted if finished(job.folder) is None]
    progress.begin(count, count - len(missing))
    progress.phase("folds")
    with Runner(max(1, min(processes, len(missing)))) as runner:
        for job, record in runner.run(missing, progress.share):
            progress.finished(job, record)
    return _gathered(run, wanted)


def _gathered(run: Run, wanted: Sequence[Job]) -> Tensor:
    target = run.splits.train.target
    found = torch.empty(len(target), len(run.classes))
    for job, part in zip(wanted, equal_parts(target, len(wanted), run.about["seed"]), strict=True):
        found[part] = held_out(job.folder, len(part), found.shape[1])
    return found


def held_out(folder: Path, examples: int, classes: int) -> Tensor:
    """The logits (N, C) of the examples that the trial of a fold left out.

    Raises:
        UserError: the fold was lost, failed, or its logits are damaged.
    """
    record: Any = finished(folder)
    if record is None:
        raise UserError(f"The fold in '{folder}' was lost; the same command runs it again.")
    if failed := record.get("failed"):
        raise UserError(f"The fold in '{folder}' failed at step {failed['step']}: {failed['reason']}.")
    kept = checkpoints.read_weights(folder / LOGITS).get("logits")
    if kept is None or kept.shape != (examples, classes):
        raise UserError(f"'{folder / LOGITS}' is damaged: delete the folder to run this fold again.")
    return kept
