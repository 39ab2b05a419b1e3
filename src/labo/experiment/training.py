"""One network trained once, by Transformers' Trainer through the project's own integration."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from labo import ranks
from labo.errors import UserError
from labo.experiment import checkpoint, feeding, optimization
from labo.experiment.averaging import Average
from labo.experiment.trainer import Augment, RunTrainer
from labo.experiment.trainer import DivergedError as DivergedError
from labo.metrics.scores import classification_scores
from labo.metrics.temperature import fit_temperature
from labo.modules import LabelRegularizedLoss
from labo.networks import logits_of
from labo.storage import append_line, read_lines, write_text
from labo.tasks.base import Examples, Splits

CURVE = "curve.jsonl"
# What predicts at once: so many examples, and fewer where they would be more bytes than this as the network's floats.
PREDICTION_ROWS, PREDICTION_BYTES = 1024, 2**26
# What a checkpoint keeps of the epoch in which it was written, in the Trainer's own history.
_LOSSES = "losses_of_this_epoch"
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """How a run is watched and kept; none of it changes what is learnt but `checkpoint`.

    `checkpoint` is "last", or "best" for the epoch with the lowest validation NLL after temperature scaling. `curves`
    measures the validation split every epoch. A checkpoint is written when `save_seconds` have passed since the last.
    """

    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0


def train(
    model: nn.Module,
    splits: Splits,
    loss: LabelRegularizedLoss,
    settings: Mapping[str, Any],
    *,
    seed: int,
    folder: Path,
    options: Options,
    augment: Augment | None = None,
    progress: Progress = lambda share: None,
) -> int:
    """Train `model` in place; continues from a checkpoint in `folder`. Returns the step that the weights are of.

    `augment` makes of a batch's features and labels those that are trained on; it draws from torch's global generator.

    Raises:
        DivergedError: the loss became NaN or infinite.
        UserError: the checkpoint to continue from is damaged.
    """
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    watch = _Watch(splits.validation, folder, options, progress)
    args = optimization.arguments(settings, seed, folder / checkpoint.CHECKPOINTS)
    trainer = RunTrainer(
        model=model,
        args=args,
        optimizer_cls_and_kwargs=optimization.optimizer(settings),
        train_dataset=feeding.near(splits.train, args.device),
        data_collator=feeding.as_it_is,
        loss=loss,
        watch=watch,
        settings=settings,
        augment=augment,
    )
    trainer.remove_callback(PrinterCallback)
    watch.average = trainer.average
    start = ranks.shared(lambda: _start(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(torch|accelerate|transformers)")
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except UserError as error:
            raise feeding.told(error) from error
    if options.checkpoint == "best":
        if ranks.first():
            model.load_state_dict(checkpoint.read_weights(folder / checkpoint.BEST))
        return ranks.shared(lambda: watch.best_step)
    if trainer.average is not None:
        model.load_state_dict(trainer.average.module.state_dict())
    return trainer.state.global_step


def _start(folder: Path) -> Path | None:
    """The checkpoint to go on from; what was written after it is forgotten."""
    start = checkpoint.newest_whole(folder / checkpoint.CHECKPOINTS, processes=ranks.together())
    _cut_curve(folder / CURVE, checkpoint.step_of(start))
    return start


def pieces(features: Any) -> Iterator[Tensor]:
    """Features (N, …) in order, in pieces that can be predicted at once; pictures that are still encoded are decoded.

    Example:
        >>> [len(piece) for piece in pieces(torch.zeros(2, 3, 2048, 2048, dtype=torch.uint8))]
        [1, 1]
    """
    row = 4 * math.prod(features.shape[1:])
    yield from features.split(max(1, min(PREDICTION_ROWS, PREDICTION_BYTES // max(1, row))))


def predict(model: nn.Module, features: Any) -> Tensor:
    """Logits (N, C) of features (N, …), float32 on the CPU, in evaluation mode; taken in `pieces`."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    with torch.no_grad():
        parts = [logits_of(model(piece.to(device))).float().cpu() for piece in pieces(features)]
    model.train(training)
    return torch.cat(parts)


@dataclass
class _Watch(TrainerCallback):
    """Writes the curve, tells the progress, keeps the best epoch, asks for a checkpoint when it is time.

    What is measured and kept is the `average` of the weights where there is one. Only the first of several processes
    measures, writes and tells.
    """

    validation: Examples
    folder: Path
    options: Options
    progress: Progress
    average: Average | None = None
    best_step: int = 0
    _best: float = math.inf
    _losses: list[float] = field(default_factory=list)  # of the steps of this epoch
    _saved: float = field(default_factory=time.monotonic)
    _due: bool = False

    def add(self, loss: float, *, due: bool) -> None:
        """Take the loss of a step, and whether a checkpoint follows it."""
        self._losses.append(loss)
        self._due = due

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved >= self.options.save_seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.global_step:
            return
        history: list[Any] = state.log_history
        self._losses = next((entry[_LOSSES] for entry in reversed(history) if _LOSSES in entry), [])
        if self.options.checkpoint == "best":
            self._best, self.best_step = checkpoint.read_best(self.folder / checkpoint.BEST)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not (state.epoch or 0.0).is_integer():  # else when the epoch has been measured
            self._ask_to_save(state, control)
        if ranks.first():
            self.progress(state.global_step / max(1, state.max_steps))

    def _ask_to_save(self, state: TrainerState, control: TrainerControl) -> None:
        if self._due and state.global_step < state.max_steps:
            # The checkpoint is written next, with this history: a resumed epoch has the loss of all its steps.
            history: list[Any] = state.log_history
            history[:] = [{_LOSSES: list(self._losses)}]
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved = time.monotonic()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if ranks.first():
            self._write(state, kwargs["model"], kwargs["optimizer"].param_groups[0]["lr"])
        self._losses = []
        self._ask_to_save(state, control)

    def _write(self, state: TrainerState, model: nn.Module, rate: float) -> None:
        """A line of the curve."""
        line = {"epoch": round(state.epoch or 0.0, 4), "step": state.global_step, "loss": fmean(self._losses)}
        line["learning_rate"] = rate
        if self.options.curves or self.options.checkpoint == "best":
            line |= self._measure(model if self.average is None else self.average.module, state.global_step)
        append_line(self.folder / CURVE, line)

    def _measure(self, model: nn.Module, step: int) -> dict[str, float]:
        logits, target = predict(model, self.validation.features), self.validation.target
        found = classification_scores(logits, target)
        measured = {"validation_nll": found["nll"], "validation_accuracy": found["accuracy"]}
        if self.options.checkpoint == "best":
            scaled = classification_scores(logits, target, temperature=fit_temperature(logits, target))["nll"]
            measured["validation_nll_scaled"] = scaled
            if scaled < self._best:
                self._best, self.best_step = scaled, step
                checkpoint.save_weights(model, self.folder / checkpoint.BEST, value=scaled, step=step)
        return measured


def _cut_curve(path: Path, step: int) -> None:
    """Leave the lines up to `step`: what comes after is trained, and written, again."""
    lines = [line for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
