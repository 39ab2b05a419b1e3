"""The last layer of a Transformers network, and running the network without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from labo.errors import UserError
from labo.kernels.linear import Head
from labo.networks import logits_of
from labo.reduction import Rows
from labo.regularized_loss import no_linear_form
from labo.regularizers.base import Regularizer

_BIAS = "final_logits_bias"
# Bound of the integer probe values that replace logits in a check; they are exact in half precision.
_MAX_PROBE = 96


def head_of(model: nn.Module, *, gathered: bool = False) -> Head:
    """The last layer of a network: its output embedding (V, D), and the bias (V,) that is added to its logits.

    Args:
        model: a Transformers network.
        gathered: gather a sharded embedding, instead of refusing it.

    Raises:
        UserError: the network has no output embedding, it is sharded, quantized or offloaded, or more than its weight
            and bias is trained, such as an adapter (LoRA).

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
        >>> head_of(model).weight.shape
        torch.Size([11, 4])
    """
    return _head(_layer(model, gathered=gathered), _final_bias(model))


def classes_of(model: nn.Module) -> int:
    """The number of classes of a network's last layer, also where that is sharded; raises as `head_of`."""
    return _layer(model, gathered=True).weight.shape[0]


def _head(layer: Any, final: Tensor | None) -> Head:
    weight, bias = _whole(layer.weight), _whole(getattr(layer, "bias", None))
    if final is not None:
        bias = final.reshape(-1) if bias is None else bias + final.reshape(-1)
    return Head(weight, bias)


def _head_of_loss(layer: Any, final: Tensor | None) -> Head:
    """The head as the loss takes it: split where tensor parallelism splits its classes, else whole.

    Raises:
        UserError: it lies on a mesh of several dimensions, whose processes need not have the same rows.
    """
    placements = getattr(layer.weight, "placements", None)
    if placements is not None and len(placements) != 1:
        raise UserError(
            "Expected an output embedding on one dimension of the mesh, that of tensor parallelism, but got placements "
            f"{tuple(placements)}: pass parallelize_module that dimension, such as mesh['tp'], or use linear=False."
        )
    if placements is None or final is not None or not placements[0].is_shard(0):
        return _head(layer, final)
    return Head(layer.weight, getattr(layer, "bias", None))


def _whole(tensor: Any) -> Any:
    """A tensor, gathered if it is sharded (a DTensor, as in tensor parallelism); its gradient is sharded again."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def hidden_states(model: nn.Module, *, gathered: bool = False) -> Iterator[Head]:
    """Within this context, the model returns its last hidden states (…, D) instead of its logits (…, V).

    The loss is then `LabelRegularizedLoss.linear(hidden, head.weight, target, head.bias)`. This is correct for networks
    that pass `require_plain_head`. It is for training only: the model cannot generate within the context.

    Args:
        model, gathered: as in `head_of`.

    Yields:
        The head, as `head_of` returns it.

    Raises:
        UserError: as in `head_of`.
    """
    head, layer = head_of(model, gathered=gathered), _layer(model, gathered=gathered)
    # Keep the parameters of the head in the graph, because DistributedDataParallel looks for unused ones.
    with (
        _forward(
            layer, lambda hidden, *_, **__: _HiddenWithHead.apply(hidden, layer.weight, getattr(layer, "bias", None))
        ),
        _without_bias(_owner_of_bias(model)),
    ):
        yield head


@contextmanager
def loss_at_head(model: nn.Module, loss: Callable[[Tensor, Head], Tensor]) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within this context, the model returns a loss of its last hidden states and its head instead of its logits.

    The loss is computed in the call of the last layer, so that what gathers the layer's weights for it (FSDP,
    DeepSpeed) gathers them for the loss. A head whose classes tensor parallelism splits stays split.

    Args:
        model: a network that passes `require_plain_head`.
        loss: is called with the last hidden states (…, D) and the head; returns ().

    Yields:
        The loss () of what the model returns as its logits.

    Raises:
        UserError: as in `head_of`, but an embedding may be sharded.
    """
    layer, final = _layer(model, gathered=True), _final_bias(model)
    sizes: list[int] = []

    def forward(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        value = loss(_whole(hidden), _head_of_loss(layer, final))
        mesh = getattr(hidden, "device_mesh", None)
        # An entry for each process: one that is given fewer learns that the outputs of this layer are sharded.
        sizes.append(1 if mesh is None else mesh.size())
        value = value.expand((1,) * (hidden.dim() - 1) + (sizes[-1],)).clone()  # FSDP's hooks want no view
        return value if mesh is None else _replicated(value, hidden)

    def returned(outputs: Tensor) -> Tensor:
        _require_whole_outputs(outputs, sizes[-1])
        return outputs[..., :1].sum()

    with _forward(layer, forward), _without_bias(_owner_of_bias(model)):
        yield returned


def _require_whole_outputs(outputs: Any, width: int) -> None:
    """Raise an error if tensor parallelism gives each process a slice of the last layer's outputs."""
    if outputs.shape[-1] < width or any(place.is_shard() for place in getattr(outputs, "placements", ())):
        raise UserError(
            "Expected an output embedding whose outputs are whole in every process, but tensor parallelism shards "
            "them: pass ColwiseParallel(output_layouts=Replicate()) for it."
        )


def _replicated(value: Tensor, like: Any) -> Tensor:
    """A tensor that all processes have, as a DTensor on the devices of another."""
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


@contextmanager
def _without_bias(owner: nn.Module | None) -> Iterator[None]:
    """Temporarily set the bias that a network adds to the outputs of its last layer to zero."""
    bias = None if owner is None else getattr(owner, _BIAS)
    if owner is not None and bias is not None:
        setattr(owner, _BIAS, bias.new_zeros(1))
    try:
        yield
    finally:
        if owner is not None:
            setattr(owner, _BIAS, bias)


def require_plain_head(model: nn.Module, inputs: Mapping[str, Any], *, gathered: bool = False) -> None:
    """Raise an error if the network transforms its logits: soft-capping, scaling, or an adapter of the head.

    Runs two forward passes of the first example, in evaluation mode. Both the values and the trained parameters must be
    those of the product: an adapter that starts at zero changes no value, but is in the graph of the logits.

    Args:
        model: the network, not wrapped.
        inputs: the inputs of the network for a batch, without labels.
        gathered: as in `head_of`.

    Raises:
        UserError: it transforms its logits, or `head_of` does not find its last layer.
    """
    first = _first(inputs)
    layer = _layer(model, gathered=gathered)
    with torch.no_grad(), torch.random.fork_rng(), _evaluating(model):
        is_linear, passes_through = _probe(model, layer, first)
        if not (is_linear and passes_through and _returns_hidden(model, layer, first, gathered)):
            raise UserError(
                "Expected a network whose logits are its last hidden states times its output embedding, but "
                f"{type(model).__name__} transforms them (such as by soft-capping or scaling): use linear=False."
            )


def require_linear_form(regularizer: Regularizer, classes: int) -> None:
    """Raise an error if the regularizer needs the full logits, as far as is known before the first batch.

    Raises:
        UserError: it needs them.
    """
    if not regularizer.has_linear_form:
        raise no_linear_form(regularizer)
    if regularizer.missing or regularizer.missing_from({}):
        return
    row = Rows(torch.empty(()).expand(1, classes), torch.zeros(1, dtype=torch.int64), None, None, torch.Size([1]))
    if regularizer.as_labo(row) is None:
        raise no_linear_form(regularizer)


def with_decoder_inputs(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """A batch with `decoder_input_ids`, computed from its labels if the network would compute them from labels."""
    labels, shift = inputs.get("labels"), getattr(model, "prepare_decoder_input_ids_from_labels", None)
    present = {"decoder_input_ids", "decoder_inputs_embeds"} & inputs.keys()
    if labels is None or labels.dtype.is_floating_point or shift is None or present:
        return inputs
    return {**inputs, "decoder_input_ids": shift(labels=labels)}


def _layer(model: nn.Module, *, gathered: bool = False) -> Any:
    find = getattr(model, "get_output_embeddings", None)
    layer: Any = None if find is None else find()
    weight = getattr(layer, "weight", None)
    if not isinstance(layer, nn.Module) or not isinstance(weight, Tensor) or weight.dim() != 2:
        raise UserError(
            f"Expected a Transformers network with an output embedding for linear=True, but got "
            f"{type(model).__name__}: use linear=False."
        )
    parameters = dict(layer.named_parameters())
    for parameter in (weight, *parameters.values()):
        sharded = hasattr(parameter, "device_mesh") and not gathered  # a DTensor
        if sharded or parameter.is_meta or not parameter.is_floating_point():
            raise UserError(
                "Expected an output embedding that is not sharded, offloaded or quantized for linear=True: use "
                "linear=False."
            )
    with torch.enable_grad():  # the weight may be computed (torch.nn.utils.parametrize)
        used = _trained(*(getattr(layer, name, None) for name in ("weight", "bias")))
    for name, parameter in parameters.items():
        if parameter.requires_grad and parameter not in used:
            raise UserError(
                f"Expected an output embedding whose weight and bias alone are trained for linear=True, but "
                f"{type(layer).__name__} also trains '{name}', as an adapter does: use linear=False."
            )
    return layer


def _trained(*tensors: Tensor | None) -> set[Tensor]:
    """The leaves that require a gradient among the tensors and what they were computed of."""
    leaves = {tensor for tensor in tensors if tensor is not None and tensor.is_leaf and tensor.requires_grad}
    nodes: list[Any] = [tensor.grad_fn for tensor in tensors if tensor is not None]
    seen: set[Any] = {None}
    while nodes:
        node = nodes.pop()
        if node not in seen:
            seen.add(node)
            if hasattr(node, "variable"):  # where a leaf's gradient is accumulated
                leaves.add(node.variable)
            nodes += [source for source, _ in node.next_functions]
    return leaves


def _owner_of_bias(model: nn.Module) -> nn.Module | None:
    """The submodule that adds a bias to the logits, or None; adapters may wrap it."""
    return next((module for module in model.modules() if module._buffers.get(_BIAS) is not None), None)


def _final_bias(model: nn.Module) -> Tensor | None:
    owner = _owner_of_bias(model)
    return None if owner is None else getattr(owner, _BIAS)


@contextmanager
def _forward(layer: nn.Module, forward: Any) -> Iterator[None]:
    """Temporarily replace the forward of a layer; its hooks still run, and an earlier replacement is restored."""
    before = vars(layer).get("forward")
    layer.forward = forward
    try:
        yield
    finally:
        if before is None:
            del layer.forward
        else:
            layer.forward = before


class _HiddenWithHead(torch.autograd.Function):
    """The identity on hidden states, with the head in the graph but without a gradient for it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, *parameters: Tensor | None) -> Tensor:
        ctx.others = len(parameters)
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], *(None,) * ctx.others


def _probe(model: nn.Module, layer: Any, inputs: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the layer is a plain product, and whether the network returns probe values of the layer as logits."""
    original = layer.forward
    calls: list[tuple[bool, Tensor, set[Tensor]]] = []
    is_split = False

    def probe_forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal is_split
        is_split = hasattr(layer.weight, "device_mesh")  # here FSDP has gathered it
        with torch.autocast(hidden.device.type, enabled=False):  # whose rounding would hide a factor near 1
            rows = _whole(hidden.detach()).reshape(-1, hidden.shape[-1])[:8].to(layer.weight.dtype)
            head = _head(layer, None)
            outputs = _whole(original(_replicated(rows, layer.weight) if is_split else rows))
            product = linear(rows, head.weight, head.bias)
        probe = torch.arange(outputs.shape[-1], device=outputs.device) * 7 % (2 * _MAX_PROBE + 1) - _MAX_PROBE
        is_linear = _same(outputs, product) and _trained(outputs) == _trained(product)
        calls.append((is_linear, probe.to(outputs.dtype), _trained(head.weight, head.bias)))
        value = _HiddenWithHead.apply(calls[-1][1].expand(*hidden.shape[:-1], -1), outputs).clone()
        return _replicated(value, hidden) if hasattr(hidden, "device_mesh") else value

    with torch.enable_grad(), _forward(layer, probe_forward):
        logits = logits_of(model(**inputs))
    if len(calls) != 1:
        return False, False
    is_linear, probe, trained = calls[0]
    final = _final_bias(model)
    expected = probe if final is None else probe + final.reshape(-1)
    if is_split:
        _require_whole_outputs(logits, expected.shape[-1])
    passes_through = _same(logits, expected.expand(logits.shape[:-1] + expected.shape))
    return is_linear, passes_through and _trained(logits) <= trained


def _returns_hidden(model: nn.Module, layer: nn.Module, inputs: dict[str, Any], gathered: bool) -> bool:
    """Whether the network returns the inputs of its last layer unchanged under `hidden_states`."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        with hidden_states(model, gathered=gathered):
            outputs = logits_of(model(**inputs))
    except (RuntimeError, ValueError, IndexError):  # the network expects logits of V classes
        return False
    finally:
        hook.remove()
    return len(seen) == 1 and _same(outputs, seen[0])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    ours, theirs = _whole(ours), _whole(theirs)
    if ours.shape != theirs.shape:
        return False
    half = any(tensor.dtype in (torch.bfloat16, torch.float16) for tensor in (ours, theirs))
    tolerance = 2**-7 if half else 1e-5
    largest = theirs.abs().max().item() if theirs.numel() else 0.0
    return torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance * largest)


def _first(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The first example of a batch."""
    batched = [value for value in inputs.values() if isinstance(value, Tensor) and value.dim()]
    size = batched[0].shape[0] if batched else 0
    per_example = {id(value) for value in batched if value.shape[0] == size}
    return {
        name: value[:1] if id(value) in per_example else value for name, value in inputs.items() if name != "labels"
    }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
