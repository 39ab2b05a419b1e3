"""The training loop of `labo train` and `labo compare`: plain PyTorch, from the first step to the last."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from labo import distributed
from labo.errors import UserError
from labo.integrations import checkpoint_files
from labo.integrations.batch_inputs import BatchInputs
from labo.records.trial import BEST_WEIGHTS, CHECKPOINTS
from labo.regularized_loss import LabelRegularizedLoss
from labo.settings import TrainingSettings
from labo.tasks.base import Splits
from labo.training import checkpoints, data_loading, optimizers, sharding, weight_averaging
from labo.training.curve import Curve, DivergedError, Validate
from labo.training.objective import Augment, Objective, bfloat16_forward, has_linear_form

# The plain NLL of a translator's targets is computed in the first step of an epoch, and in one step in so many.
NLL_EVERY = 50


class TrainingLoop:
    """One network, trained once in place; it goes on from the checkpoint in its folder.

    Args:
        model, splits, loss, settings: what is trained, on what, with which loss, and how.
        seed: of the order of the examples, of dropout and of augmentation.
        folder: where the curve, the best epoch and checkpoints are written.
        validate: evaluates the network after each epoch, for the curve; None for no evaluation.
        keep_best: whether the weights of the epoch with the lowest value of `validate` are kept, not the last ones.
        save_seconds: a checkpoint is written when so many seconds have passed since the last one.
        augment: applied to each part of a batch; it draws from torch's global generator.
        fsdp: whether to split the network that is trained over the processes; the one given gets its weights after
            each epoch.
        progress: called with the fraction of the steps that are done, in the main process.

    Raises:
        UserError: the settings do not fit the data or the number of processes.
    """

    def __init__(
        self,
        model: nn.Module,
        splits: Splits,
        loss: LabelRegularizedLoss,
        settings: TrainingSettings,
        *,
        seed: int,
        folder: Path,
        validate: Validate | None = None,
        keep_best: bool = False,
        save_seconds: float = 60.0,
        augment: Augment | None = None,
        fsdp: bool = False,
        progress: Callable[[float], None] = lambda done: None,
    ) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self.keep_best, self.save_seconds, self.fsdp = keep_best, save_seconds, fsdp
        self.curve = Curve(folder, validate, keep_best=keep_best)
        self.device, self.world_size = distributed.device(), distributed.world_size()
        linear = splits.sequences and has_linear_form(model, splits.train, loss)
        seed_all(seed)
        self.model, self.loss = model.to(self.device), loss.to(self.device)
        self.trained = self.model  # or a copy whose weights are split over the processes
        if fsdp:
            sharding.check(loss.regularizer, settings)
            self.trained = sharding.shard(self.model)
            if not distributed.is_main_process():
                self.model.cpu()

        batches, self.parts = data_loading.divide(splits.train, settings, seed)
        self.steps_per_epoch = len(batches)
        self.steps = settings.steps or math.ceil((settings.epochs or 0) * self.steps_per_epoch)
        if settings.start_after >= self.steps:
            raise UserError(
                f"Expected setting `start_after` to be below the {self.steps} steps of this run, or nothing is trained "
                f"with its method, but got {settings.start_after}."
            )
        examples = data_loading.move_if_it_fits(splits.train, self.device)
        epochs = math.ceil(self.steps / self.steps_per_epoch)
        inputs = BatchInputs(loss.regularizer, examples, model=model, epochs=epochs, seed=seed)
        workers = data_loading.worker_count(examples, self.device)
        self.loader = data_loading.make_loader(inputs.dataset, self.parts, self.device, workers)
        kind = {"sequences": splits.sequences, "linear": linear}
        self.objective = Objective(self.trained, loss, settings, inputs, augment=augment, device=self.device, **kind)
        self.optimizer = optimizers.make_optimizer(self.trained, loss.regularizer, settings)
        self.schedule = optimizers.make_schedule(settings, self.optimizer, self.steps)
        self.average = weight_averaging.MovingAverage(model, settings.ema) if settings.ema else None
        if not distributed.is_main_process():  # each process draws its own dropout and augmentation
            torch.manual_seed(seed + 1_000_003 * distributed.rank())

        self.step = 0
        self.unread: list[Tensor] = []  # losses of the last steps, on the device
        self.losses: list[float] = []  # of the steps of this epoch before them
        self.nlls: list[Tensor] = []  # plain NLLs of this epoch, on the device
        self.saved_at = time.monotonic()
        self.resumed_from: Path | None = None

    def run(self) -> int:
        """Train to the last step, or until patience runs out.

        Returns:
            The number of steps after which the network had the weights that it is left with.

        Raises:
            DivergedError: the loss became NaN or infinite, or the network's logits on the validation split.
            UserError: the checkpoint is damaged or of another run, or an example cannot be read.
        """
        self.resume()
        with ExitStack() as stack:
            if self.settings.precision == "bfloat16":
                for network in {self.model, self.trained}:
                    stack.enter_context(bfloat16_forward(network))
            self.network: Any = self.trained
            if self.world_size > 1 and not self.fsdp:
                devices = None if self.device.type == "cpu" else [self.device]
                self.network = DistributedDataParallel(self.model, device_ids=devices)
            while self.step < self.steps and not self.out_of_patience():
                self.train_epoch()
        return self.load_final_weights()

    def train_epoch(self) -> None:
        """Train to the end of the epoch, evaluate the network, and write a line of the curve."""
        epoch, done = divmod(self.step, self.steps_per_epoch)
        last_step = min((epoch + 1) * self.steps_per_epoch, self.steps)
        read_every = steps_between_reads(self.device)
        self.trained.train()
        self.loss.train()
        self.parts.start_epoch(epoch, skip=done)
        if not done:
            self.restore_random_state()
        loaded = iter(self.loader)  # draws a number, which a resumed epoch drew before its checkpoint
        if done:
            self.restore_random_state()
        parts = data_loading.on_device(loaded, self.device)
        due = False
        while self.step < last_step:
            self.train_step(list(islice(parts, self.settings.accumulation)), epoch)
            if len(self.unread) == read_every or self.step == last_step:
                due = self.read_losses()
            if distributed.is_main_process():
                self.progress(self.step / self.steps)
            if due and self.step < last_step:
                self.save()
                due = False
        self.end_epoch()
        if due and self.step < self.steps:
            self.save()

    def train_step(self, parts: list[dict[str, Tensor]], epoch: int) -> None:
        """One optimizer step on the parts of a batch: the loss is the mean over all parts and processes."""
        rows: Any = sum((part["labels"] != self.loss.ignore_index).sum() for part in parts)
        count = distributed.all_reduce_sum(rows).float()
        losses = []
        for place, part in enumerate(parts):
            accumulate = (
                self.network is not self.trained and place < len(parts) - 1
            )  # processes exchange gradients once a step
            with self.network.no_sync() if accumulate else nullcontext():
                with_nll = self.settings.tokens is not None and (not self.nlls or self.step % NLL_EVERY == 0)
                counters = {"epoch": epoch, "step": self.step, "steps": self.steps}
                loss, nll = self.objective(self.network, part, count, **counters, with_nll=with_nll)
                if nll is not None:
                    self.nlls.append(nll)
                if self.world_size > 1:  # gradients are averaged over processes, not summed
                    loss = loss * self.world_size
                loss.backward()
            losses.append(loss.detach())
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)
        self.schedule.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.unread.append(losses[0] if len(losses) == 1 else torch.stack(losses).sum())

    def read_losses(self) -> bool:
        """Read the losses of the last steps; whether a checkpoint is due, the same in all processes."""
        due = time.monotonic() - self.saved_at >= self.save_seconds
        values = torch.stack(self.unread)
        if self.world_size > 1:
            flag = values.new_tensor([float(due and distributed.is_main_process())])
            *sums, flag = distributed.all_reduce_sum(torch.cat([values, flag])).tolist()
            losses, due = [total / self.world_size for total in sums], flag > 0
        else:
            losses = values.tolist()
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergedError(step, f"the loss became {loss}")
        self.losses += losses
        self.unread = []
        return due

    def end_epoch(self) -> None:
        """Evaluate the network and write a line of the curve, in the main process."""
        if self.fsdp:
            sharding.gather(self.trained, self.model)
        line: dict[str, Any] = {"epoch": round(self.step / self.steps_per_epoch, 4), "step": self.step}
        line |= {"loss": fmean(self.losses), "learning_rate": self.optimizer.param_groups[0]["lr"]}
        if self.nlls:
            nll = fmean(torch.stack(self.nlls).tolist())
            line |= {"nll": nll, "perplexity": math.exp(min(nll, 700.0))}
        model = self.model if self.average is None else self.average.model
        distributed.broadcast_from_main(lambda: self.record_epoch(line, model), errors=(DivergedError,))
        self.losses, self.nlls = [], []

    def record_epoch(self, line: dict[str, Any], model: nn.Module) -> None:
        """Write the epoch's line, and its weights where they are averaged."""
        if count := self.settings.average_epochs:
            weight_averaging.save_epoch(model, self.folder / CHECKPOINTS, self.step, keep=count)
        self.curve.add(line, model)

    def out_of_patience(self) -> bool:
        """Whether as many epochs as `settings.patience` were worse than the best one before them."""
        patience = self.settings.patience
        return bool(patience) and distributed.broadcast_from_main(self.curve.epochs_since_best) >= patience

    def load_final_weights(self) -> int:
        """Load the weights that are kept into the network; returns their step."""
        if count := self.settings.average_epochs:
            steps = self.curve.epoch_steps()[-count:]
            files = [weight_averaging.epoch_file(self.folder / CHECKPOINTS, step) for step in steps]
            self.model.load_state_dict(weight_averaging.mean(files))
        elif self.keep_best:
            if distributed.is_main_process():
                self.model.load_state_dict(checkpoints.read_epoch(self.folder / BEST_WEIGHTS)[0])
            return distributed.broadcast_from_main(lambda: self.curve.best_step)
        elif self.average is not None:
            self.model.load_state_dict(self.average.model.state_dict())
        return self.step

    def save(self) -> None:
        """Write a checkpoint, in the main process."""
        optimizer = self.optimizer.state_dict()
        if self.fsdp:
            sharding.gather(self.trained, self.model)
            optimizer = sharding.whole_state(optimizer)
        random_states = distributed.all_gather_objects(checkpoints.random_state(self.device))
        nlls = torch.stack(self.nlls).tolist() if self.nlls else []
        updates = 0 if self.average is None else self.average.updates
        state = {"step": self.step, "losses": self.losses, "nlls": nlls, "average_updates": updates}
        distributed.broadcast_from_main(
            lambda: checkpoints.write(
                self.folder / CHECKPOINTS,
                state,
                model=self.model,
                average=None if self.average is None else self.average.model,
                regularizer=self.loss.regularizer,
                optimizer={"optimizer": optimizer, "schedule": self.schedule.state_dict()},
                random_states=random_states,
            ),
            errors=(UserError,),
        )
        self.saved_at = time.monotonic()

    def resume(self) -> None:
        """Load the newest checkpoint, if there is one."""
        home = self.folder / CHECKPOINTS
        start = distributed.broadcast_from_main(lambda: checkpoints.newest_complete(home, processes=self.world_size))
        if start is not None:
            state, optimizer = checkpoints.read_state(start), checkpoints.load_optimizer(start)
            self.step, self.losses = state["step"], state["losses"]
            self.nlls = [torch.tensor(nll, device=self.device) for nll in state["nlls"]]
            checkpoints.load_weights(self.model, start)
            if self.average is not None:
                checkpoints.load_average(self.average.model, start)
                self.average.updates = state["average_updates"]
            checkpoint_files.load_regularizer(self.loss.regularizer, start, self.device)
            if self.fsdp:
                sharding.scatter(self.model, self.trained)
                optimizer["optimizer"] = sharding.split_state(optimizer["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(optimizer["optimizer"])
            self.schedule.load_state_dict(optimizer["schedule"])
        self.resumed_from = start
        distributed.broadcast_from_main(lambda: self.curve.resume(self.step))

    def restore_random_state(self) -> None:
        """Restore the random state of the checkpoint that training goes on from, once."""
        if self.resumed_from is not None:
            checkpoints.load_random_state(self.resumed_from, self.device)
            self.resumed_from = None


def steps_between_reads(device: torch.device) -> int:
    """After how many steps losses are read: on an accelerator reading one waits for all work before it."""
    return 1 if device.type == "cpu" else 50


def seed_all(seed: int) -> None:
    """Seed the global random generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
