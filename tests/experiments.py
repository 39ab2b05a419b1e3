"""What the tests of trials and comparisons share: short trials, and methods of one's own that misbehave."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labo import regularizers, tasks
from labo.experiment import settings as flat
from labo.records.trial import RECORD, Trial

# A file here makes `Killer` kill the process that trains with it, as an out-of-memory killer would.
KILL = "LABO_TEST_KILL"


def trial(method: str = "labo", seed: int = 0, *, task: str = "digits", epochs: float = 2, **options: Any) -> Trial:
    """A trial on digits with so many epochs; `set` goes into the settings."""
    given = options.pop("set", {})
    task_options = options.pop("task_options", {})
    defaults = tasks.create(task, **task_options).default_settings()
    settings = flat.resolve(defaults, method, {"epochs": epochs, **given})
    return Trial(task, method, seed, settings, task_options, **options)


def forget_digests(folder: Path) -> None:
    """Make a finished run one of an earlier version, whose record has no digests of its files."""
    record = json.loads((folder / RECORD).read_text())
    del record["files"]
    (folder / RECORD).write_text(json.dumps(record))


class Killer(regularizers.SoftLabelRegularizer):
    """Label smoothing that kills its process while the file that $LABO_TEST_KILL names holds a number above 0."""

    name = "killer"
    summary = "kills"

    def __init__(self, *, strength: float = 0.1) -> None:
        super().__init__(strength=strength)

    def labels(self, rows: Any) -> Tensor:
        path = Path(os.environ[KILL])
        left = int(path.read_text())
        if left:
            path.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.full_like(rows.logits, 1 / rows.logits.shape[-1])


class Broken(regularizers.Regularizer):
    """Raises in training."""

    name = "broken"
    summary = "raises"

    def losses(self, rows: Any) -> Tensor:
        raise ZeroDivisionError("what a mistake of one's own looks like")


class Diverging(regularizers.Regularizer):
    """A loss that is NaN from the third step on."""

    name = "diverging"
    summary = "diverges"

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def losses(self, rows: Any) -> Tensor:
        self.steps += self.training
        return rows.logits.logsumexp(-1) * (float("nan") if self.steps > 2 else 1.0)
