"""One network trained once, by Transformers' Trainer through the project's own integration."""

from __future__ import annotations

import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import transformers
from torch import nn
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from labo import distributed
from labo.errors import UserError
from labo.experiment import averaging, checkpoint, feeding, optimization
from labo.experiment.averaging import Average
from labo.experiment.judges import Judge, NoNumbersError
from labo.experiment.trainer import Augment, RunTrainer
from labo.experiment.trainer import DivergedError as DivergedError
from labo.integrations import heads
from labo.modules import LabelRegularizedLoss
from labo.storage import append_line, read_lines, write_text
from labo.tasks.base import Examples, Splits

CURVE = "curve.jsonl"
# What a checkpoint keeps of the epoch in which it was written, in the Trainer's own history.
_LOSSES = "losses_of_this_epoch"
Progress = Callable[[float], None]


@dataclass(frozen=True)
class Options:
    """How a run is watched and kept; none of it changes what is learnt but `checkpoint`.

    `checkpoint` is "last", or "best" for the epoch that is best by validation, as the judge has it. `curves` measures
    the validation split every epoch. A checkpoint is written when `save_seconds` have passed since the last.
    """

    checkpoint: str = "last"
    curves: bool = False
    save_seconds: float = 60.0


def train(
    model: nn.Module,
    splits: Splits,
    loss: LabelRegularizedLoss,
    settings: Mapping[str, Any],
    judge: Judge,
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
        UserError: the checkpoint to continue from is damaged, or the regularizer would begin after the last step.
    """
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    watch = _Watch(judge, splits.validation, folder, options, settings, progress)
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
        linear=splits.sequences and _has_linear_form(model, splits.train, loss),
    )
    trainer.remove_callback(PrinterCallback)
    watch.average = trainer.average
    start = distributed.broadcast_from_main(lambda: _start(folder))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="(torch|accelerate|transformers)")
        try:
            trainer.train(resume_from_checkpoint=str(start) if start else None)
        except UserError as error:
            raise feeding.told(error) from error
        except _LostPatience:
            pass  # before the kill that this run goes on from
    # What is measured now is measured as it will be later: in the precision of the weights.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if settings.get("average_epochs"):
        model.load_state_dict(averaging.mean(watch.last_epochs))
        return trainer.state.global_step
    if options.checkpoint == "best":
        if distributed.is_main_process():
            model.load_state_dict(checkpoint.read_weights(folder / checkpoint.BEST))
        return distributed.broadcast_from_main(lambda: watch.best_step)
    if trainer.average is not None:
        model.load_state_dict(trainer.average.module.state_dict())
    return trainer.state.global_step


def _has_linear_form(model: nn.Module, examples: Any, loss: LabelRegularizedLoss) -> bool:
    """Whether the loss can be had from the last hidden states, so that logits are never whole."""
    try:
        heads.require_linear_form(loss.regularizer, len(heads.head_of(model).weight))
        heads.require_plain_head(model, examples.__getitems__([0]))
    except UserError:
        return False
    return True


def _start(folder: Path) -> Path | None:
    """The checkpoint to go on from; what was written after it is forgotten."""
    start = checkpoint.newest_whole(folder / checkpoint.CHECKPOINTS, processes=distributed.world_size())
    _cut_curve(folder / CURVE, checkpoint.step_of(start))
    return start


@dataclass
class _Watch(TrainerCallback):
    """Writes the curve, tells the progress, keeps the best epoch, asks for a checkpoint when it is time.

    What is measured and kept is the `average` of the weights where there is one. Only the first of several processes
    measures, writes and tells.
    """

    judge: Judge
    validation: Examples
    folder: Path
    options: Options
    settings: Mapping[str, Any]
    progress: Progress
    average: Average | None = None
    best_step: int = 0
    _best: float = math.inf
    _losses: list[float] = field(default_factory=list)  # of the steps of this epoch
    _nlls: list[float] = field(default_factory=list)
    _saved: float = field(default_factory=time.monotonic)
    _due: bool = False

    def add(self, loss: float, *, due: bool) -> None:
        """Take the loss of a step, and whether a checkpoint follows it."""
        self._losses.append(loss)
        self._due = due

    def add_nll(self, nll: float) -> None:
        """Take the plain NLL of a step's targets."""
        self._nlls.append(nll)

    def lacks_nll(self) -> bool:
        """Whether no NLL of this epoch was told yet."""
        return not self._nlls

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved >= self.options.save_seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        _require_regularized(self.settings, state.max_steps)
        if not state.global_step:
            return
        history: list[Any] = state.log_history
        self._losses = next((entry[_LOSSES] for entry in reversed(history) if _LOSSES in entry), [])
        if self.options.checkpoint == "best":
            self._best, self.best_step = checkpoint.read_best(self.folder / checkpoint.BEST)
        # Asked to stop here, the Trainer would do so after another step only, and this run an epoch.
        if self.settings.get("patience") and distributed.broadcast_from_main(self._lost_patience):
            raise _LostPatience

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not (state.epoch or 0.0).is_integer():  # else when the epoch has been measured
            self._ask_to_save(state, control)
        if distributed.is_main_process():
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
        rate = kwargs["optimizer"].param_groups[0]["lr"]
        failure = distributed.broadcast_from_main(lambda: self._failure(state, kwargs["model"], rate))
        if failure is not None:
            raise failure
        self._losses, self._nlls = [], []
        if self.settings.get("patience") and distributed.broadcast_from_main(self._lost_patience):
            control.should_training_stop = True
        self._ask_to_save(state, control)

    def _failure(self, state: TrainerState, model: nn.Module, rate: float) -> DivergedError | None:
        """Write a line of the curve; returned and not raised is what all processes shall end by."""
        try:
            self._write(state, model, rate)
        except DivergedError as failure:
            return failure
        return None

    def _write(self, state: TrainerState, model: nn.Module, rate: float) -> None:
        """A line of the curve."""
        line = {"epoch": round(state.epoch or 0.0, 4), "step": state.global_step, "loss": fmean(self._losses)}
        line["learning_rate"] = rate
        if self._nlls:
            line |= {"nll": fmean(self._nlls), "perplexity": math.exp(min(fmean(self._nlls), 700.0))}
        model = model if self.average is None else self.average.module
        if self.options.curves or self.options.checkpoint == "best":
            line |= self._measure(model, state.global_step)
        append_line(self.folder / CURVE, line)
        self._keep_for_mean(state, model)

    def _keep_for_mean(self, state: TrainerState, model: nn.Module) -> None:
        """Keep the weights of the last epochs, where their mean is asked for."""
        count = self.settings.get("average_epochs", 0)
        if count:
            file = self.folder / checkpoint.CHECKPOINTS / f"epoch-{state.global_step}.safetensors"
            file.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save_weights(model, file)
            for old in self.last_epochs[:-count]:
                old.unlink()

    @property
    def last_epochs(self) -> list[Path]:
        """The weights that were kept at the ends of epochs, in order."""
        found = (self.folder / checkpoint.CHECKPOINTS).glob("epoch-*.safetensors")
        return sorted(found, key=lambda path: int(path.stem.partition("-")[2]))

    def _lost_patience(self) -> bool:
        """Whether no epoch was better than the best for as many as the settings allow."""
        since = [line for line in read_lines(self.folder / CURVE) if line["step"] > self.best_step]
        return len(since) >= self.settings["patience"]

    def _measure(self, model: nn.Module, step: int) -> dict[str, float]:
        best = self.options.checkpoint == "best"
        try:
            measured, value = self.judge.of_epoch(model, self.validation, best=best)
        except NoNumbersError as error:
            raise DivergedError(
                step, "the network gives logits that are no numbers for the validation split"
            ) from error
        if best and value < self._best:
            self._best, self.best_step = value, step
            checkpoint.save_weights(model, self.folder / checkpoint.BEST, value=value, step=step)
        return measured


class _LostPatience(Exception):  # noqa: N818 (no error: training is over)
    """A run that is resumed and whose training had come to its end."""


def _require_regularized(settings: Mapping[str, Any], steps: int) -> None:
    """Refuse a regularizer that begins when training is over."""
    start = settings.get("start_after", 0)
    if start >= steps:
        raise UserError(
            f"Expected setting `start_after` to be below the {steps} steps of this run, or nothing is trained by its "
            f"method, but got {start}."
        )


def _cut_curve(path: Path, step: int) -> None:
    """Leave the lines up to `step`: what comes after is trained, and written, again."""
    lines = [line for line in read_lines(path) if line["step"] <= step]
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))
