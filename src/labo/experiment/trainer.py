"""The integration's Trainer as runs use it: this project's batches, schedule, augmentation, average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from labo import distributed, regularizers
from labo.experiment import checkpoint, feeding, optimization
from labo.experiment.averaging import Average
from labo.integrations.trainer_loss import TrainerLoss
from labo.integrations.transformers import LabelRegularizedTrainer
from labo.modules import LabelRegularizedLoss

# The plain NLL is worked out for one step in so many, and for the first of an epoch.
NLL_EVERY = 50
# (features, labels) of a batch to those that are trained on.
Augment = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class DivergedError(Exception):
    """A loss that is NaN or infinite at `step`."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason


class Watcher(Protocol):
    """Who is told the loss of each step, and says when a checkpoint is due."""

    def add(self, loss: float, *, due: bool) -> None:
        """Take the loss of a step, and whether a checkpoint follows it."""
        ...

    def add_nll(self, nll: float) -> None:
        """Take the plain NLL of a step's targets."""
        ...

    def lacks_nll(self) -> bool:
        """Whether no NLL of this epoch was told yet."""
        ...

    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        ...


class RunTrainer(LabelRegularizedTrainer):
    """Stops at a loss that is no number; keeps an `average` of the weights where `settings` ask for it.

    A step's loss is that of the whole batch, over all its parts and processes. With several processes each draws
    augmentation and dropout for itself.

    Args:
        watch: told of every step; a callback.
        settings: of the training.
        augment: applied to each part of a batch.
        options: as in `LabelRegularizedTrainer`.
    """

    def __init__(
        self, *, watch: Any, settings: Mapping[str, Any], augment: Augment | None = None, **options: Any
    ) -> None:
        super().__init__(callbacks=[watch], **options)
        self.watch: Watcher = watch
        self._first = _first_loss(settings, self.loss)
        self._sampled = None
        if "tokens" in settings:
            self._sampled = TrainerLoss(LabelRegularizedLoss(regularizers.create("none")))
            self.compute_loss_func = self._with_likelihood
        self.settings, self.augment = settings, augment
        self._compute.counts_rows = True  # the labels are indices when they are counted
        self._parts: list[Tensor] = []  # the losses of the parts of this step
        decay = settings.get("ema", 0.0)
        self.average = Average(self.model, decay) if decay else None
        if self.average is not None:
            self.add_callback(_Averaging(self.average))
        if not distributed.is_main_process():
            torch.manual_seed(self.args.seed + 1_000_003 * self.args.process_index)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """As `optimization.schedule` has it."""
        if self.lr_scheduler is None:
            taken: Any = optimizer or self.optimizer
            self.lr_scheduler = optimization.schedule(self.settings, taken, num_training_steps)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _prepare_inputs(self, inputs: Any) -> Any:
        found = super()._prepare_inputs(inputs)
        if self.augment is None:
            return found
        if "labels" not in found:  # other examples of the same classes, which the method asks for
            partners = found["features"]
            return {**found, "features": self.augment(partners, torch.zeros(len(partners), dtype=torch.long))[0]}
        features, labels = self.augment(found["features"], found["labels"])
        return {**found, "features": features, "labels": labels}

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """As the integration has it; until `settings["start_after"]` steps, by the loss to begin with."""
        if self._first is not None:
            begun = self.state.global_step >= self.settings["start_after"]
            self._compute.loss = self.loss if begun else self._first
        return super().compute_loss(*args, **kwargs)

    def _with_likelihood(self, outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Tensor:
        """The loss; of an epoch's first step, and one in `NLL_EVERY`, the watcher is told the plain NLL too."""
        if self._sampled is not None and (self.watch.lacks_nll() or self.state.global_step % NLL_EVERY == 0):
            with torch.no_grad():
                self._sampled.head = self._compute.head
                self.watch.add_nll(self._sampled(outputs, labels).item())
        return self._compute(outputs, labels, num_items_in_batch)

    def get_train_dataloader(self) -> DataLoader:
        """This process's parts of the batches, see `feeding`."""
        examples: Any = self.train_dataset
        read = getattr(examples, "dataset", examples)  # what tells indices wraps the examples
        batches = feeding.batches(
            read, self.settings, self.args.seed, processes=self.args.world_size, rank=self.args.process_index
        )
        return feeding.loader(examples, batches, self.args.device, feeding.workers(read, self.args.device))

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the Trainer has it.

        Raises:
            DivergedError: the loss of a step is NaN or infinite.
        """
        loss = super().training_step(*args, **kwargs)
        self._parts.append(loss)
        if self.accelerator.sync_gradients:  # the last part of the step
            value, due = self._together(self._parts)
            self._parts = []
            if not math.isfinite(value):
                raise DivergedError(self.state.global_step + 1, f"the loss became {value}")
            self.watch.add(value, due=due)
        return loss

    def _together(self, parts: list[Tensor]) -> tuple[float, bool]:
        """(the loss of a step, whether a checkpoint is due), the same in all processes: the first has the clock."""
        loss, due = parts[0] if len(parts) == 1 else torch.stack(parts).sum(), self.watch.due()
        if distributed.world_size() == 1:
            return loss.item(), due
        # The Trainer makes each process's share as many times larger as there are processes, which average gradients.
        told = distributed.all_reduce_sum(
            torch.stack([loss, loss.new_tensor(float(due and distributed.is_main_process()))])
        ).tolist()
        return told[0] / distributed.world_size(), told[1] > 0

    def _keep(self, folder: Path) -> None:
        super()._keep(folder)
        if self.average is not None:
            self.average.save(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoint.check_fits(self.model, Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.average is not None:
            self.average.load(Path(resume_from_checkpoint))


def _first_loss(settings: Mapping[str, Any], loss: LabelRegularizedLoss) -> LabelRegularizedLoss | None:
    """What a run begins with before its regularizer, where it says so."""
    if not settings.get("start_after", 0):
        return None
    return LabelRegularizedLoss(regularizers.create(settings.get("start_with", "none")), ignore_index=loss.ignore_index)


class _Averaging(TrainerCallback):
    """Takes the weights of each step into their average."""

    def __init__(self, average: Average) -> None:
        self.average = average

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.average.update_parameters(kwargs["model"])
