"""The learning curve of a run, with the best epoch so far and how long none was better."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from labo.errors import NonFiniteLogitsError
from labo.records.storage import append_line, read_lines, write_text
from labo.records.trial import BEST_WEIGHTS, CURVE
from labo.training import checkpoints

# A network to (what the curve says of it, a value that is lowest in the best epoch).
Validate = Callable[[nn.Module], tuple[dict[str, float], float]]


# The key of epochs that are as good as the best one before them.
_TIED = "tied"


class DivergedError(Exception):
    """A loss, or a network's logits, that are NaN or infinite at `step`."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


class Curve:
    """The file curve.jsonl, a line an epoch; it is written in the main process.

    Args:
        folder: of the run.
        validate: evaluates the network; None for a curve of the training loss alone.
        keep_best: whether to save the weights of the epoch with the lowest value of `validate`.
    """

    def __init__(self, folder: Path, validate: Validate | None, *, keep_best: bool) -> None:
        self.folder, self.validate, self.keep_best = folder, validate, keep_best
        self.best_value, self.best_step = math.inf, 0

    def add(self, line: dict[str, Any], model: nn.Module) -> None:
        """Write a line for the network after `line["step"]` steps, with its evaluation.

        Raises:
            DivergedError: the network's logits on the validation split are not finite.
        """
        step = line["step"]
        if self.validate is not None:
            try:
                metrics, value = self.validate(model)
            except NonFiniteLogitsError as error:
                raise DivergedError(step, "the network gives non-finite logits for the validation split") from error
            line = line | metrics
            if self.keep_best and value < self.best_value:
                self.best_value, self.best_step = value, step
                checkpoints.save_epoch(model, self.folder / BEST_WEIGHTS, value=value, step=step)
            elif self.keep_best and value == self.best_value:
                line[_TIED] = True
        append_line(self.folder / CURVE, line)

    def epoch_steps(self) -> list[int]:
        """The step that each epoch so far ended with."""
        return [line["step"] for line in read_lines(self.folder / CURVE)]

    def epochs_since_best(self) -> int:
        """The number of epochs after the last one that was as good as the best."""
        lines = read_lines(self.folder / CURVE)
        last = max((line["step"] for line in lines if line.get(_TIED)), default=0)
        return sum(line["step"] > max(self.best_step, last) for line in lines)

    def resume(self, step: int) -> None:
        """Go on from a step: the lines after it are removed, for their epochs are trained again.

        Raises:
            UserError: the weights of the best epoch so far are missing or damaged.
        """
        lines = [line for line in read_lines(self.folder / CURVE) if line["step"] <= step]
        write_text(self.folder / CURVE, "".join(json.dumps(line) + "\n" for line in lines))
        if lines and self.keep_best:
            _, best = checkpoints.read_epoch(self.folder / BEST_WEIGHTS)
            self.best_value, self.best_step = best["value"], best["step"]
