"""Self-distillation from the last mini-batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from labo import checks, distributed, inner, networks, reduction
from labo.checks import IGNORE_INDEX
from labo.errors import UserError
from labo.reduction import Rows
from labo.regularizers import passes
from labo.regularizers.base import Regularizer, data_losses

_INPUT = "input"


class LastMiniBatch(Regularizer):
    """CE(target, p) over this and the last mini-batch + alpha * temperature ** 2 * KL(soft(before) || soft(z)).

    soft(z) = softmax(z / temperature); z are the network's present logits for the last mini-batch, before its logits
    at that time, which are constant. The cross-entropy is the mean over the rows of both mini-batches, the divergence
    the mean over the last one. The terms of the last mini-batch are one number, added to the loss of each row: a mean
    counts it once, a sum once per row. The first batch has only its cross-entropy.

    Args:
        alpha: weight of the divergence, at least 0.
        temperature: finite, above 0.

    Needs: the network, by `provide(model=network)`, and the inputs of each batch: a tensor, or a mapping of tensors,
        with one entry per example.

    When: augmentation or dropout gives the network two views of an example. Each step costs two forward and two
        backward passes, and both update batch-norm statistics. The inputs of the last batch are stored, also in the
        checkpoint. In the authors' code the second pass uses a new augmentation of the example; here it uses the same
        inputs. All processes must pad their inputs to the same length.

    Raises:
        ValueError: an option is out of range, or the inputs cannot be stored.

    Source: Shen et al., *Self-Distillation from the Last Mini-Batch for Consistency Regularization*, CVPR 2022; the
        mean over both batches as in their code.
    """

    name = "dlb"
    summary = "cross-entropy and the divergence from the previous predictions for the last batch"
    paper = "Shen et al., CVPR 2022"
    year = 2022
    candidates = ({"alpha": 1.0}, {"alpha": 0.3}, {"alpha": 3.0}, {"alpha": 0.1}, {"alpha": 1.0, "temperature": 1.0})

    def __init__(self, *, alpha: float = 1.0, temperature: float = 3.0) -> None:
        super().__init__()
        checks.number("alpha", alpha, "[0, inf)")
        checks.number("temperature", temperature, "(0, inf)")
        self.alpha = alpha
        self.temperature = temperature
        self.last = KeptBatch()

    @property
    def needs(self) -> tuple[str, ...]:
        """The network, and the inputs of each batch."""
        return ("model", "inputs")

    @override
    def losses(self, rows: Rows) -> Tensor:
        data, _ = data_losses(rows)
        if not self.training:
            return data
        kept = self.last.part()
        self.last.keep(rows)
        if kept is None:
            return data
        inputs, target, before = kept
        outputs = networks.forward(self.provided("model"), passes.on_device(inputs, rows.raw.device))
        source = "the network on the last batch"
        now = passes.rows_of(outputs, rows, source, count=before.numel() // before.shape[-1])
        return self._over_both(rows, data, now, target.to(now.device), before.to(now))

    def _over_both(self, rows: Rows, data: Tensor, now: Tensor, target: Tensor, before: Tensor) -> Tensor:
        before = before.reshape(now.shape)
        if target.dtype.is_floating_point:
            last = Rows(now, target.reshape(now.shape), None, rows.weight, torch.Size([len(now)]))
        else:
            target = target.reshape(-1)
            kept = target != IGNORE_INDEX
            last = Rows(now, torch.where(kept, target, 0), kept, rows.weight, torch.Size([len(now)]))
        last_losses, factor = data_losses(last)
        labels = passes.masked_as(before, last.logits)
        divergences = factor * passes.divergence(last.logits, labels, self.temperature)
        total, count = reduction.total_and_count(last_losses, last)
        weight_here = reduction.row_weights(rows, data.dtype).sum()
        weight_both = torch.where(weight_here + count == 0, 1.0, weight_here + count)
        mean_divergence = reduction.mean(*reduction.total_and_count(divergences, last))
        # The mean of this over the rows is: all cross-entropies / weight_both, plus the mean divergence.
        return (
            data * weight_here / weight_both + total / weight_both + self.alpha * self.temperature**2 * mean_divergence
        )


class KeptBatch(nn.Module):
    """The last batch of all processes, examples first: inputs, targets (`IGNORE_INDEX` where ignored) and logits."""

    def keep(self, rows: Rows) -> None:
        """Store this batch, replacing the last one."""
        named = _named(rows.given["inputs"])
        size = {len(tensor) if tensor.dim() else 0 for tensor in named.values()}
        examples = size.pop()
        if size or not examples or len(rows.raw) % examples:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in named.values())
            raise UserError(
                f"Expected `inputs` to have one entry per example of the {len(rows.raw)} rows of logits, but got shape "
                f"{shapes}."
            )
        target = rows.target if rows.kept is None else torch.where(rows.kept, rows.target, IGNORE_INDEX)
        named["target"] = target.unflatten(0, (examples, -1))
        named["logits"] = inner.working(rows.logits).unflatten(0, (examples, -1))
        self._clear()
        for name, tensor in named.items():
            self.register_buffer(name, _gathered(name, tensor.detach().clone()))

    def part(self) -> tuple[Any, Tensor, Tensor] | None:
        """This process's share of the stored examples, in the order of the ranks; None before the first batch."""
        buffers = dict(self.named_buffers())
        if not buffers:
            return None
        count, rank = distributed.world_size(), distributed.rank()
        size = len(buffers["target"])
        mine = {name: kept[size * rank // count : size * (rank + 1) // count] for name, kept in buffers.items()}
        target, logits = mine.pop("target"), mine.pop("logits")
        inputs = {name.removeprefix(f"{_INPUT}_"): kept for name, kept in mine.items()}
        return mine.get(_INPUT, inputs), target, logits

    def _clear(self) -> None:
        for name in list(self._buffers):
            delattr(self, name)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        # The buffers have the size of the batch, and do not exist before the first.
        self._clear()
        for name, saved in state_dict.items():
            if name.startswith(prefix):
                self.register_buffer(name.removeprefix(prefix), torch.empty_like(saved))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _named(inputs: Any) -> dict[str, Tensor]:
    """The inputs by the name of their buffer."""
    if isinstance(inputs, Tensor):
        return {_INPUT: inputs}
    if not isinstance(inputs, Mapping) or not inputs:
        raise UserError(f"Expected `inputs` to be a tensor or a mapping of tensors, but got {type(inputs).__name__}.")
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            raise UserError(f"Expected `inputs['{name}']` to be a tensor, but got {type(value).__name__}.")
    return {f"{_INPUT}_{name}": value for name, value in inputs.items()}


def _gathered(name: str, tensor: Tensor) -> Tensor:
    """The examples of all processes, whose tensors may differ only in the first dimension."""
    if distributed.world_size() > 1:
        shapes = distributed.all_gather(torch.tensor([tensor.shape[1:]], device=tensor.device, dtype=torch.int64))
        if bool((shapes != shapes[0]).any()):
            raise UserError(f"Expected `{name}` to have the same shape in all processes, but got {shapes.tolist()}.")
    return distributed.all_gather(tensor)
