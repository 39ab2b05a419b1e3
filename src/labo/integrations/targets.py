"""The targets among a batch's labels: which label each position of a network predicts, and how many a step has."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import Trainer
from transformers.models.auto import modeling_auto

from labo.checks import IGNORE_INDEX
from labo.errors import UserError
from labo.integrations.trainer_loss import TrainerLoss


def _classes(*heads: str, but: bool = False) -> frozenset[str]:
    """The names of Transformers' classes with these heads, or with all others."""
    names: set[str] = set()
    for name, mapping in vars(modeling_auto).items():
        head = name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES")
        if name == f"MODEL_FOR_{head}_MAPPING_NAMES" and (head in heads) is not but:
            for classes in mapping.values():
                names.update((classes,) if isinstance(classes, str) else classes)
    return frozenset(names)


# The weights of single tokens in a batch, of the shape of its labels.
TOKEN_WEIGHTS = "token_weights"
# The attribute of a network whose forward gives the loss (`labo.integrations.fused`).
FUSED = "_labo_fused"
_LANGUAGE = ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM")
_NEXT_TOKEN = _classes(*_LANGUAGE)
_SAME_POSITION = _classes(*_LANGUAGE, "PRETRAINING", but=True) - _NEXT_TOKEN


def unwrapped(model: Any) -> nn.Module:
    """The network without the wrappers of torch.compile, PEFT, and data-parallel training, in whatever order."""
    while True:
        inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
        base = getattr(inner, "get_base_model", None)  # of PEFT's models
        inner = base() if callable(base) else inner
        if inner is model:
            return inner
        model = inner


def predicts_next_token(model: Any) -> bool | None:
    """Whether the network's logits at a position predict the label at the next; None if that cannot be known.

    The class decides, and those that it inherits from: a causal language model of Transformers whose own loss shifts
    labels predicts the next token; encoder-decoder networks and other heads of Transformers do not.
    """
    network = unwrapped(model)
    if getattr(getattr(network, "config", None), "is_encoder_decoder", False):
        return False
    for kind in type(network).__mro__:
        if not kind.__module__.startswith("transformers."):
            continue
        if kind.__name__ in _NEXT_TOKEN:
            return True if _shifts(kind) else None  # the decoders of BART and its kin expect shifted labels
        if kind.__name__ in _SAME_POSITION:
            return False
    return None


def _shifts(kind: Any) -> bool:
    """Whether the loss in the class's forward shifts labels: Transformers' common one, or one that shifts by itself."""
    code = inspect.unwrap(kind.forward).__code__
    return "loss_function" in code.co_names or "shift_logits" in code.co_varnames


def require_one_device(args: Any) -> None:
    """Raise an error if the Trainer would replicate the network over the GPUs of one process.

    Raises:
        UserError: it would, with nn.DataParallel, which computes neither the mean nor the gradient of the whole batch.
    """
    if args.n_gpu > 1:
        raise UserError(
            f"Expected one GPU in each process, but the Trainer would replicate the network over {args.n_gpu} with "
            f"nn.DataParallel: start it with `torchrun --nproc_per_node {args.n_gpu}`, or set CUDA_VISIBLE_DEVICES=0."
        )


# The Trainer's own, even if this module is imported again.
_count_labels = inspect.unwrap(Trainer._get_num_items_in_batch)


@functools.wraps(_count_labels)
def _count_targets(self: Any, batch_samples: list[Any], device: torch.device) -> Any:
    """The number of targets in batches and, as the Trainer sums it, in those of all processes."""
    fused = getattr(unwrapped(self.model), FUSED, None)
    loss = self.compute_loss_func if fused is None else fused.compute
    if isinstance(loss, TrainerLoss):
        require_one_device(self.args)
        if all(isinstance(batch.get("labels"), Tensor) for batch in batch_samples):
            # A compute_loss_func is given the labels alone.
            given = [{"labels": batch["labels"]} if fused is None else batch for batch in batch_samples]
            targets = [_counted(loss, batch) for batch in given]
            # Versions that would leave out first labels do not if the batch has `shift_labels`; others count `labels`.
            batch_samples = [{"labels": target, "shift_labels": target} for target in targets]
    return _count_labels(self, batch_samples, device)


def _counted(loss: TrainerLoss, batch: Any) -> Any:
    """The targets of a batch, or the sum of their weights as if it counted them."""
    shifted = batch.get("shift_labels")  # by whoever made the batch
    targets = loss.targets(batch["labels"]) if shifted is None else shifted
    weights = batch.get(TOKEN_WEIGHTS)
    if weights is None:
        return targets
    weights = loss.token_weights(weights) if shifted is None else weights
    return _Weight(torch.where(targets == IGNORE_INDEX, 0.0, weights.float()).sum())


class _Weight:
    """Stands in for targets whose number is a sum of weights."""

    def __init__(self, total: Tensor) -> None:
        self.total = total

    def ne(self, ignored: int) -> _Weight:
        """All targets that count."""
        return self

    def sum(self) -> Tensor:
        """Their weight."""
        return self.total


def own_the_denominator() -> None:
    """Let every Trainer whose `compute_loss_func` is a `TrainerLoss` divide by the number of its targets.

    What the Trainer counts by itself depends on its version and on the name of the network's class, and need not be
    what the loss is computed of. It passes neither itself nor the batches of a step to the loss, so that nothing but
    its method can count them; Trainers with other losses are unaffected.
    """
    Trainer._get_num_items_in_batch = _count_targets
