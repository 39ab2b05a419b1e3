"""A language model of Transformers whose forward returns LABO's loss, without materializing the logits."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from labo import regularizers
from labo.errors import UserError
from labo.integrations import heads, targets
from labo.integrations.targets import FUSED, TOKEN_WEIGHTS
from labo.integrations.trainer_loss import TrainerLoss
from labo.kernels.linear import Head
from labo.kernels.statistics import LossStatistics
from labo.regularized_loss import LabelRegularizedLoss


def fuse(
    model: Any,
    method: str | LabelRegularizedLoss = "labo",
    *,
    linear: bool = True,
    statistics: bool = False,
    shift_labels: bool | None = None,
    weight: Tensor | None = None,
    **options: Any,
) -> Any:
    """Let a language model of Transformers compute its training loss by LABO, from hidden states.

    Called with `labels`, the model returns its usual outputs with this `loss`. In training the (tokens, V) logits are
    never materialized, and are not among the outputs. In evaluation (`model.eval()`) the loss is the negative
    log-likelihood, and logits are returned where they were asked for: by Transformers' Trainer for predictions and
    metrics, or within `with_logits(model)`. Without `labels` the model is as before, and generates.

        Trainer(model=fuse(model, alpha=0.1, beta=2.0), …)

    The model is changed in place, also inside a wrapper of PEFT. Its weights, their names and what `save_pretrained`
    writes stay the same. The forward also takes `num_items_in_batch`, the denominator, and `token_weights` of the
    shape of the labels, which multiply the losses of the tokens; the mean is then over the sum of the weights. FSDP2
    gathers a head that it shards for the loss; of one that tensor parallelism splits over its classes, each process
    keeps its slice (`labo.vocab_parallel_linear_labo_cross_entropy`). The model may be sharded before or afterwards.

    Args:
        model: a causal language model, or an encoder-decoder network, with an output embedding.
        method: a method, such as "labo" or "label_smoothing", or a loss.
        linear: False computes the loss from the logits, which the outputs then contain: for networks that transform
            their logits, an output embedding with an adapter, and methods that need the logits.
        statistics: count correct tokens and sum entropies, in the sweep of the loss, for the logs of Transformers'
            Trainer: `mean_token_accuracy` and `entropy`, of the tokens that are not ignored and not of weight 0.
        shift_labels: as in `TrainerLoss`; by default known from the class of the network.
        weight: (V,) class weights, as in `LabelRegularizedLoss`.
        options: options of the method, as in `labo.regularizers.create`.

    Returns:
        The model.

    Raises:
        UserError: the network has no accessible output embedding, or transforms its logits; the method needs them; it
            cannot be known whether labels are shifted; here or in training, the output embedding is sharded over a mesh
            of several dimensions, or its outputs are.
        TypeError: the network is not of Transformers.

    Example:
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=4, n_layer=1, n_head=2))
        >>> tokens = torch.tensor([[1, 2, 3, 4]])
        >>> outputs = fuse(model).train()(input_ids=tokens, labels=tokens)
        >>> outputs.loss.shape, outputs.logits
        (torch.Size([]), None)
    """
    network = targets.unwrapped(model)
    if not isinstance(network, PreTrainedModel):
        raise TypeError(
            f"Expected argument `model` to be a network of Transformers, but got {type(network).__name__}: pass "
            "compute_loss_func=labo_loss() to the Trainer, or call labo.LABOLoss on its logits."
        )
    if shift_labels is None:
        shift_labels = targets.predicts_next_token(network)
    if shift_labels is None:
        raise UserError(
            f"Cannot tell whether {type(network).__name__} predicts the label at the same position or at the next: "
            "pass shift_labels=False or, for a causal language model, shift_labels=True."
        )
    loss = criterion(method, weight=weight, **options)
    if linear:
        heads.require_plain_head(network, _probe_inputs(network), gathered=True)
        heads.require_linear_form(loss.regularizer, heads.classes_of(network))
    compute = TrainerLoss(loss, shift_labels=shift_labels, class_dim=-1)
    compute.of_transformers = True
    earlier: Fused | None = getattr(network, FUSED, None)
    forward = vars(network).get("forward") if earlier is None else earlier.forward
    setattr(network, FUSED, Fused(compute, linear=linear, statistics=statistics, forward=forward))
    network.forward = MethodType(_published(type(network).forward), network)  # a deep copy binds it to the copy
    return model


def unfuse(model: Any) -> Any:
    """Give a model that was passed to `fuse` its own forward and loss back; returns the model."""
    network = targets.unwrapped(model)
    fused: Fused | None = getattr(network, FUSED, None)
    if fused is not None:
        delattr(network, FUSED)
        del network.forward
        if fused.forward is not None:
            network.forward = fused.forward
    return model


def criterion(method: str | LabelRegularizedLoss, *, weight: Tensor | None, **options: Any) -> LabelRegularizedLoss:
    """The loss of a method's name and options, or a loss as it is.

    Raises:
        UserError: a loss was given together with options.
    """
    if not isinstance(method, LabelRegularizedLoss):
        return LabelRegularizedLoss(regularizers.create(method, **options), weight=weight)
    if options or weight is not None:
        given = ", ".join([*options, *([] if weight is None else ["weight"])])
        raise UserError(f"Expected the options of a loss ({given}) where it is made, not beside the loss.")
    return method


def fused_of(model: Any) -> Fused | None:
    """What `fuse` gave a model, or None."""
    return getattr(targets.unwrapped(model), FUSED, None)


@contextmanager
def with_logits(model: Any) -> Iterator[None]:
    """Within this context, a fused model in evaluation also returns the logits of a batch with labels."""
    fused = fused_of(model)
    if fused is None:
        raise UserError("Expected a model that was passed to `fuse` before.")
    before, fused.gives_logits = fused.gives_logits, True
    try:
        yield
    finally:
        fused.gives_logits = before


@dataclass
class Batch:
    """What the loss of a batch needs besides the outputs of the network."""

    labels: Tensor
    # Whether each label stands at the position that predicts it, whatever the network's class says.
    shifted: bool = False
    count: Tensor | int | None = None
    weights: Tensor | None = None


@dataclass
class Fused:
    """The loss of a fused model, and how its forward computes it."""

    compute: TrainerLoss
    linear: bool = True
    statistics: bool = False
    # The forward that another library gave this model before, if any.
    forward: Callable[..., Any] | None = None
    gives_logits: bool = False
    # The auxiliary loss of a mixture of experts is divided by this number.
    auxiliary_parts: int = 1
    # By whether the network was training: correct tokens, the sum of entropies, tokens.
    _sums: dict[bool, Tensor] = field(default_factory=dict)

    def take_statistics(self, *, training: bool) -> Tensor | None:
        """Correct tokens, the sum of their entropies in nats and their number, (3,), since the last call, if any."""
        return self._sums.pop(training, None)

    def plain_forward(self, network: nn.Module, inputs: dict[str, Any]) -> Any:
        """The outputs of the network as it was before."""
        return type(network).forward(network, **inputs) if self.forward is None else self.forward(**inputs)

    def outputs(self, network: Any, inputs: dict[str, Any], batch: Batch) -> Any:
        """The outputs of the network with the loss of a batch."""
        inputs = heads.with_decoder_inputs(network, {**inputs, "labels": batch.labels})
        del inputs["labels"]
        named = inputs.get("return_dict")
        as_tuple = not (network.config.return_dict if named is None else named)
        inputs["return_dict"] = True
        if self.linear and (network.training or not self.gives_logits):
            value = functools.partial(self._loss, network.training, batch)
            with heads.loss_at_head(network, value) as returned:
                outputs = self.plain_forward(network, inputs)
            loss, outputs["logits"] = returned(outputs["logits"]), None
        else:
            outputs = self.plain_forward(network, inputs)
            loss = self._loss(network.training, batch, outputs["logits"], None)
        auxiliary = outputs.get("aux_loss")
        if network.training and auxiliary is not None:  # which the network adds to its own loss alone
            share = network.config.get_text_config().router_aux_loss_coef / self.auxiliary_parts
            loss = loss + share * auxiliary.to(loss.device)
        outputs = type(outputs)(**{**outputs, "loss": loss})
        return outputs.to_tuple() if as_tuple else outputs

    def _loss(self, training: bool, batch: Batch, outputs: Tensor, head: Head | None) -> Tensor:
        """The loss () of logits (B, T, V), or of hidden states (B, T, D) under a head."""
        compute = copy.copy(self.compute)
        compute.head = head
        if batch.shifted:
            compute.shift_labels = False
        compute.loss.train(training)
        compute.record = functools.partial(self._add_statistics, training) if self.statistics else None
        value = compute if training else compute.nll
        half = outputs.dtype in (torch.bfloat16, torch.float16)
        # In half precision the products are the same, but the loss is float32.
        with torch.autocast(outputs.device.type, outputs.dtype) if half else nullcontext():
            return value({"logits": outputs}, batch.labels, batch.count, weights=batch.weights)

    def _add_statistics(self, training: bool, found: LossStatistics) -> None:
        self._sums[training] = token_sums(found) + self._sums.get(training, 0.0)


def _published(plain: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a fused model, with the signature that trainers and `generate` inspect."""
    signature = inspect.signature(plain)
    parameters = [value for name, value in signature.parameters.items() if name != TOKEN_WEIGHTS]
    names = [value.name for value in parameters[1:] if value.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    weights = inspect.Parameter(TOKEN_WEIGHTS, inspect.Parameter.KEYWORD_ONLY, default=None)
    last = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)

    @functools.wraps(plain)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = dict(zip(names, args, strict=False)) | kwargs
        labels: Any = inputs.pop("labels", None)
        shifted: Any = inputs.pop("shift_labels", None)
        count, token_weights = inputs.pop("num_items_in_batch", None), inputs.pop(TOKEN_WEIGHTS, None)
        fused = getattr(self, FUSED)
        targets: Any = labels if shifted is None else shifted
        if targets is None:
            return fused.plain_forward(self, inputs)
        batch = Batch(targets, shifted is not None, count, token_weights)
        return fused.outputs(self, inputs, batch)

    published: Any = forward
    published.__signature__ = signature.replace(parameters=[*parameters[:last], weights, *parameters[last:]])
    return published


def _probe_inputs(network: PreTrainedModel) -> dict[str, Tensor]:
    """Two tokens, on which a network shows what it does to its logits."""
    embeddings: Any = network.get_input_embeddings()
    tokens = torch.zeros(1, 2, dtype=torch.int64, device=embeddings.weight.device)
    return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if network.config.is_encoder_decoder else {})


def token_sums(found: LossStatistics) -> Tensor:
    """The correct predictions, the sum of the entropies in nats, and the number of the tokens that count.

    Returns:
        (3,), float32.
    """
    counts = ~found.entropy.isnan()  # which are neither ignored nor of weight 0
    return torch.stack([found.correct.sum(), found.entropy.nansum(), counts.sum()]).float()
