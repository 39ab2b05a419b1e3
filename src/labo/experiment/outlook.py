"""What is said before a training: the data, and a first estimate of the time from a few steps."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from labo.experiment import run_trial
from labo.experiment import settings as flat
from labo.records.trial import Trial
from labo.settings import TrainingSettings
from labo.tasks.base import Splits
from labo.training.curve import DivergedError
from labo.training.loop import TrainingLoop
from labo.wording import counted

# Up to so many classes are listed with their counts.
MAX_CLASSES = 12
# The steps that are timed after a first one, and the seconds after which no further one is taken.
STEPS, MAX_SECONDS = 5, 5.0
# The method that is timed.
METHOD = "none"
# Settings of long runs, which a few steps have no use for.
_LEFT_OUT = (*flat.LENGTHS, "average_epochs", "patience", "start_after", "start_with")


def data_sentence(splits: Splits) -> str:
    """The sizes of the splits, and the classes with their counts of training examples."""
    sizes = f"{len(splits.train):,} training, {len(splits.validation):,} validation and {len(splits.test):,} test"
    if splits.sequences:
        return f"{sizes} pairs of sentences; a vocabulary of {splits.size:,} pieces."
    counts = splits.train.class_counts(splits.size).tolist()
    by_class = [f"{name}: {count:,}" for name, count in zip(splits.classes, counts, strict=True)]
    if len(by_class) > MAX_CLASSES:
        order = sorted(range(len(counts)), key=counts.__getitem__)
        least, most = (f"{counts[index]:,} ({splits.classes[index]})" for index in (order[0], order[-1]))
        listed = f"from {least} to {most} training examples each"
    else:
        listed = f"training examples by class {', '.join(by_class)}"
    return f"{sizes} examples of {counted(splits.size, 'class', 'classes')}; {listed}."


def time_sentence(trial: Trial, task: Any, splits: Splits, trials: int, processes: int) -> str | None:
    """A first estimate of the time of some trials, by a few steps of plain cross-entropy with their settings.

    None where these diverge before they can be timed.

    Args:
        trial: one of them, whose method is `METHOD`.
        task, splits: of the trial.
        trials: how many are to be run.
        processes: how many run side by side.

    Raises:
        UserError: as the training of the trial raises it.
    """
    pace = trial_seconds(trial, task, splits)
    if pace is None:
        return None
    seconds = pace * math.ceil(trials / processes)
    side_by_side = f", {processes} side by side" if processes > 1 else ""
    return (
        f"First estimate, from a few steps of plain cross-entropy: about {duration(seconds)} for "
        f"{counted(trials, 'trial')}{side_by_side}. Evaluation, and methods with more forward passes, come on top."
    )


def trial_seconds(trial: Trial, task: Any, splits: Splits) -> float | None:
    """The seconds that the steps of a trial take on one thread, by the pace of a few; None where these diverge."""
    threads, times = torch.get_num_threads(), []

    def note(fraction: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.monotonic())
        if len(times) > 1 and times[-1] - times[0] > MAX_SECONDS:
            raise _EnoughError

    torch.set_num_threads(trial.threads)
    try:
        with tempfile.TemporaryDirectory() as folder:
            loop = _loop(trial, task, splits, Path(folder), note)
            with contextlib.suppress(_EnoughError, DivergedError):  # the trial itself will say that it diverges
                loop.run()
            steps = _total_steps(trial.settings, loop.steps_per_epoch)
    finally:
        torch.set_num_threads(threads)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return (times[-1] - times[0]) / (len(times) - 1) * steps if len(times) > 1 else None


def duration(seconds: float) -> str:
    """A time in one unit.

    Example:
        >>> duration(0.2), duration(75), duration(700), duration(20_000)
        ('1 s', '75 s', '12 min', '6 h')
    """
    for size, unit, above in ((1, "s", 120), (60, "min", 7200)):
        if seconds < above:
            return f"{max(1, round(seconds / size))} {unit}"
    return f"{round(seconds / 3600)} h"


class _EnoughError(Exception):
    """The steps take long enough to be timed by fewer."""


def _loop(trial: Trial, task: Any, splits: Splits, folder: Path, note: Any) -> TrainingLoop:
    model, loss = run_trial.build(trial, task, splits)
    settings, _ = flat.split(trial.settings, trial.method)
    few = {key: value for key, value in settings.items() if key not in _LEFT_OUT} | {"steps": STEPS + 1}
    return TrainingLoop(
        model,
        splits,
        loss,
        TrainingSettings.from_mapping(few),
        seed=trial.seed,
        folder=folder,
        save_seconds=math.inf,
        augment=task.augmentation(splits, settings),
        progress=note,
    )


def _total_steps(settings: Mapping[str, Any], steps_per_epoch: int) -> int:
    return int(settings.get("steps") or math.ceil(settings.get("epochs", 0) * steps_per_epoch))
