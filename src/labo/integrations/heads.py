"""The last layer of a network of Transformers, and the network with hidden states where its logits stood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from labo.errors import UserError
from labo.kernels.linear import Head
from labo.modules import no_linear_form
from labo.networks import logits_of
from labo.reduction import Rows
from labo.regularizers.base import Regularizer

_BIAS = "final_logits_bias"
# What stands for logits while a network is watched: whole numbers, exact in half precision too.
_MAX_NUMBER = 96


def head_of(model: nn.Module) -> Head:
    """The last layer of a network: its output embedding (V, D), and the bias (V,) that is added to its logits.

    Raises:
        UserError: the network has no output embedding, or one of whose weight this process holds a part.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
        >>> head_of(model).weight.shape
        torch.Size([11, 4])
    """
    layer, owner = _layer(model), _owner_of_bias(model)
    bias = getattr(layer, "bias", None)
    if owner is not None:
        final = getattr(owner, _BIAS).reshape(-1)
        bias = final if bias is None else bias + final
    return Head(layer.weight, bias)


@contextmanager
def hidden_states(model: nn.Module) -> Iterator[Head]:
    """Within, the model's forward gives its last hidden states (…, D) where its logits (…, V) stood.

    The loss is then `LabelRegularizedLoss.linear(hidden, head.weight, target, head.bias)`. It is right for networks
    that `require_plain_head` lets pass. Training alone is meant: nothing can be generated within.

    Yields:
        The head, as `head_of` gives it.

    Raises:
        UserError: as `head_of` raises it.
    """
    head, layer, owner = head_of(model), _layer(model), _owner_of_bias(model)
    # The parameters are said to have had a part: DistributedDataParallel looks for those that had none.
    with _forward(layer, lambda hidden, *_, **__: _Within.apply(hidden, layer.weight, getattr(layer, "bias", None))):
        bias = None if owner is None else getattr(owner, _BIAS)
        if owner is not None and bias is not None:
            setattr(owner, _BIAS, bias.new_zeros(1))
        try:
            yield head
        finally:
            if owner is not None:
                setattr(owner, _BIAS, bias)


def require_plain_head(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Refuse a network that does more to its logits than adding a bias: soft-capping, scaling, an adapter of the head.

    Two forward passes of the first example, in evaluation mode, without gradients.

    Args:
        model: the network, not wrapped.
        inputs: a batch, without labels: what the network is called with.

    Raises:
        UserError: it does more, or its last layer is not one that `head_of` finds.
    """
    first = _first(inputs)
    head, layer = head_of(model), _layer(model)
    with torch.no_grad(), torch.random.fork_rng(), _evaluating(model):
        plain, through = _probed(model, layer, head, first)
        if not (plain and through and _gives_hidden(model, first)):
            raise UserError(
                "Expected a network whose logits are its last hidden states times its output embedding, but "
                f"{type(model).__name__} does more to them (soft-capping or scaling, say): give linear=False."
            )


def require_linear_form(regularizer: Regularizer, classes: int) -> None:
    """Refuse a member that has to see the logits whole, as far as it is known before the first batch.

    Raises:
        UserError: it has to.
    """
    if not regularizer.has_linear_form:
        raise no_linear_form(regularizer)
    if regularizer.missing or regularizer.missing_from({}):
        return
    row = Rows(torch.empty(()).expand(1, classes), torch.zeros(1, dtype=torch.int64), None, None, torch.Size([1]))
    if regularizer.as_labo(row) is None:
        raise no_linear_form(regularizer)


def with_decoder_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch with the decoder's inputs, made from its labels where the network would make them, had it the labels."""
    labels, make = inputs.get("labels"), getattr(model, "prepare_decoder_input_ids_from_labels", None)
    given = {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    if labels is None or labels.dtype.is_floating_point or make is None or given:
        return inputs
    return {**inputs, "decoder_input_ids": make(labels=labels)}


def _layer(model: nn.Module) -> Any:
    find = getattr(model, "get_output_embeddings", None)
    layer = None if find is None else find()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UserError(
            f"Expected a network of Transformers with an output embedding for linear=True, but got "
            f"{type(model).__name__}: give linear=False."
        )
    if hasattr(weight, "device_mesh"):  # a DTensor
        raise UserError("Expected the output embedding whole in each process for linear=True: give linear=False.")
    return layer


def _owner_of_bias(model: nn.Module) -> nn.Module | None:
    """The module that adds a bias of its own to the logits; a wrapper of adapters has it deep within."""
    return next((module for module in model.modules() if module._buffers.get(_BIAS) is not None), None)


@contextmanager
def _forward(layer: nn.Module, forward: Any) -> Iterator[None]:
    """The layer with another forward: its hooks still run, and libraries that replaced it get theirs back."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


class _Within(torch.autograd.Function):
    """The hidden states as they are, with the head in their graph and no gradient for it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.others = len(parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], *(None,) * ctx.others


def _probed(model: nn.Module, layer: Any, head: Head, inputs: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the layer is a plain product, and whether numbers put in the place of its result come out as logits."""
    original = layer.forward
    seen: list[tuple[bool, Tensor]] = []

    def watch(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])[:8]
        made = original(rows)
        product = linear(rows, head.weight, getattr(layer, "bias", None))
        numbers = torch.arange(made.shape[-1], device=made.device) * 7 % (2 * _MAX_NUMBER + 1) - _MAX_NUMBER
        seen.append((_same(made, product), numbers.to(made.dtype)))
        return seen[-1][1].expand(*hidden.shape[:-1], -1)

    with _forward(layer, watch):
        logits = logits_of(model(**inputs))
    if len(seen) != 1:
        return False, False
    plain, numbers = seen[0]
    owner = _owner_of_bias(model)
    expected = numbers if owner is None else numbers + getattr(owner, _BIAS).reshape(-1)
    return plain, _same(logits, expected.expand(logits.shape[:-1] + expected.shape))


def _gives_hidden(model: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether what reaches the last layer comes out of `hidden_states` as it is."""
    layer = _layer(model)
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with hidden_states(model):
            found = logits_of(model(**inputs))
    except (RuntimeError, ValueError, IndexError):  # logits of V classes were expected on the way
        return False
    finally:
        hook.remove()
    return len(seen) == 1 and _same(found, seen[0])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape:
        return False
    half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in (ours, theirs))
    tolerance = 2**-7 if half else 1e-5
    return torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance)


def _first(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch's first example."""
    batched = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim()]
    size = batched[0].shape[0] if batched else 0
    held = {id(value) for value in batched if value.shape[0] == size}
    return {name: value[:1] if id(value) in held else value for name, value in inputs.items() if name != "labels"}


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
