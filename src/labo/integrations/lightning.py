"""A Lightning callback for criteria that need more of training than logits and targets, such as those with a memory.

    Trainer(callbacks=[LABOCallback()])

Criteria without batch inputs, such as `LABOLoss()`, need no callback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from labo.errors import UserError
from labo.indexed import IndexedDataset
from labo.integrations.batch_inputs import BatchInputs
from labo.modules import LABOLoss
from labo.regularized_loss import LabelRegularizedLoss
from labo.regularizers.base import Regularizer

__all__ = ["LABOCallback"]

# The others are known to the LightningModule alone, which provides them or passes them to the criterion.
_PROVIDED = frozenset(("examples", "epochs", "indices", "epoch", "step", "progress"))


class LABOCallback(Callback):
    """Provides the criteria of a LightningModule with what their regularizers need of training.

    A criterion is a `LABOLoss` or `LabelRegularizedLoss` among the submodules of the LightningModule. Its state, such
    as a memory, is then in every checkpoint, and restored by `fit(ckpt_path=…)`. In training, calls of the criterion
    receive the `epoch`, `step`, `progress` and `indices` that its regularizer needs, unless they are passed. Before,
    it receives the numbers of examples and epochs, and the optimizer, to which its learnt parameters are added.

    Indices need a training dataset that is wrapped: `DataLoader(labo.IndexedDataset(data), …)`. A batch then has them
    as its last entry, or under `indices`. Labels of tokens or pixels have a place each in the memory.

    Under DistributedDataParallel the state stays equal in all processes without DDP, which does not broadcast it.

    Raises:
        UserError: the module has no criterion, or the regularizer needs a number of epochs that is not set.
    """

    def __init__(self) -> None:
        self._hooks: list[RemovableHandle] = []
        self._indexed: IndexedDataset | None = None
        self._indices: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the criteria, and keep DDP from broadcasting their state with every step."""
        if stage != "fit":
            return
        criteria = _criteria(pl_module)
        if not criteria:
            raise UserError(
                "Expected a LABOLoss or LabelRegularizedLoss among the submodules of the LightningModule: set "
                "self.criterion = labo.LABOLoss(…) in its __init__."
            )
        ignored = set(getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()))
        for name, criterion in criteria.items():
            for prefix, module in criterion.named_modules(prefix=name):
                ignored |= {f"{prefix}.{buffer}" for buffer in module._buffers}  # also those that are None yet
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(pl_module, ignored)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Provide the optimizer, before a checkpoint restores its state."""
        for criterion in _criteria(pl_module).values():
            regularizer = _regularizer(criterion)
            if regularizer is None or not trainer.optimizers:
                continue
            optimizer = trainer.optimizers[0]
            known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            learnt = [parameter for parameter in regularizer.learnt() if id(parameter) not in known]
            if learnt:
                optimizer.add_param_group({"params": learnt, "weight_decay": 0.0})
            if "optimizer" in regularizer.missing:
                regularizer.provide(optimizer=optimizer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Provide what is known of training, and pass the inputs of each batch to the criteria from now on."""
        dataset = getattr(trainer.train_dataloader, "dataset", None)
        self._indexed = dataset if isinstance(dataset, IndexedDataset) else None
        dataset = dataset if self._indexed is None else self._indexed.dataset
        for criterion in _criteria(pl_module).values():
            regularizer = _regularizer(criterion)
            if regularizer is None:
                continue
            needs = _PROVIDED.intersection(regularizer.needs)
            epochs = _epochs(trainer, regularizer, needs)
            inputs = BatchInputs(regularizer, dataset, model=pl_module, epochs=epochs, seed=0, needs=needs)
            regularizer.require()
            hook = _Inputs(self, trainer, inputs)
            self._hooks.append(criterion.register_forward_pre_hook(hook, with_kwargs=True))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take the indices from a batch of an `IndexedDataset`."""
        self._indices = None
        if self._indexed is not None:
            self._indices = batch[self._indexed.key] if isinstance(batch, Mapping) else batch[-1]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the criteria as they were."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the criteria as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._indices = [], None


class _Inputs:
    """A forward pre-hook that adds the batch inputs to a call of a criterion in training."""

    def __init__(self, callback: LABOCallback, trainer: Trainer, inputs: BatchInputs) -> None:
        self.callback, self.trainer, self.inputs = callback, trainer, inputs
        self.steps = int(trainer.estimated_stepping_batches) if "progress" in inputs.needs else 0

    def __call__(self, criterion: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not criterion.training:
            return None
        target = kwargs["target"] if "target" in kwargs else args[1]
        indices, labels = self.callback._indices, target
        if indices is not None and labels.dim() == 1:  # labels of tokens may have been flattened
            labels = labels.reshape(len(indices), -1)
        counts = {"epoch": self.trainer.current_epoch, "step": self.trainer.global_step, "steps": self.steps}
        batch = self.inputs.of(indices, {"labels": labels}, **counts, partners=lambda dataset, chosen: {})
        if batch.get("indices") is not None and batch["indices"].numel() == target.numel():
            batch["indices"] = batch["indices"].reshape(target.shape)
        return args, {**batch, **kwargs}


def _criteria(module: nn.Module) -> dict[str, nn.Module]:
    """The losses of this project among the submodules of a module, by name."""
    kinds = (LABOLoss, LabelRegularizedLoss)
    return {name: each for name, each in module.named_modules() if isinstance(each, kinds)}


def _regularizer(criterion: nn.Module) -> Regularizer | None:
    """The regularizer of a criterion; None for a `LABOLoss` without a memory, which needs nothing."""
    return getattr(criterion, "member" if isinstance(criterion, LABOLoss) else "regularizer")


def _epochs(trainer: Trainer, regularizer: Regularizer, needs: frozenset[str]) -> int:
    """The number of epochs, 0 if it is unknown and not needed."""
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    endless = "progress" in needs and not math.isfinite(trainer.estimated_stepping_batches)
    if (not known and needs & {"epochs", "epoch"}) or endless:
        raise UserError(
            f"Method '{regularizer.name}' needs the length of training in epochs: set Trainer(max_epochs=…)."
        )
    return int(trainer.max_epochs or 0) if known else 0
