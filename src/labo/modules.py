"""LABO as modules, thin wrappers of the functions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import _reduction as _legacy_reduction
from typing_extensions import override

from labo import checks, functional
from labo import reduction as _reduction
from labo.errors import UserError
from labo.errors import unknown as unknown_name
from labo.kernels.options import ARGUMENTS, OF_BATCH, LossOptions, documented
from labo.kernels.statistics import LossStatistics
from labo.regularized_loss import reduced
from labo.regularizers.labo import LABO

__all__ = ["LABOLoss", "LinearLABOLoss"]


class _LABOOptions(nn.Module):
    """The options of both losses. Tensors among them are buffers, which move with the module."""

    alpha: float | Tensor
    beta: float | Tensor
    prior: Tensor | None
    weight: Tensor | None
    ignore_index: int
    reduction: str

    def __init__(self, options: LossOptions) -> None:
        super().__init__()
        functional.check_options(options)
        checks.class_weight("weight", options.weight)
        self._names = tuple(name for name in options.named() if name not in OF_BATCH)
        for name in self._names:
            option = getattr(options, name)
            if name in ("weight", "prior") and not isinstance(option, nn.Parameter):
                self.register_buffer(name, option)
            else:
                self._set_option(name, option)

    def _set_option(self, name: str, option: Any) -> None:
        if isinstance(option, Tensor) and not isinstance(option, nn.Parameter) and not option.requires_grad:
            self.register_buffer(name, option)
        else:
            setattr(self, name, checks.python_number(option))

    def options(self) -> dict[str, Any]:
        """The keyword arguments of the function."""
        return {name: getattr(self, name) for name in self._names}

    def extra_repr(self) -> str:
        """alpha, beta and the reduction."""
        return f"alpha={self.alpha}, beta={self.beta}, reduction={self.reduction!r}"


def _reject_unknown(unknown: dict[str, Any]) -> None:
    for name in unknown:
        if name == "label_smoothing":
            raise TypeError(
                "Expected no argument `label_smoothing`: label smoothing of strength e is alpha=e, beta=float('inf')."
            )
        raise TypeError(f"Expected no argument `{name}`.")


@documented(
    prior=f'{ARGUMENTS["prior"][:-1]}. Or "memory": the label of each example is learnt during training, alpha '
    "defaults to 0.8 and beta to inf, and the loss is called with the `indices` of the batch's examples in the "
    "training data.",
)
class LABOLoss(_LABOOptions):
    """`labo.labo_cross_entropy` as a module; replaces `nn.CrossEntropyLoss`.

    Args:
        {options}
        examples: number of training examples; required with prior="memory".
        sharpness, decay, epsilon, top, aligned: options of the memory, as in `labo.regularizers.create("labo",
            prior="memory")`.
        size_average, reduce: as in `nn.CrossEntropyLoss`, which deprecates them in favour of `reduction`.

    Raises:
        ValueError, TypeError: an option is out of range; `label_smoothing` was passed; the message says how to express
            it.

    Example:
        >>> import torch
        >>> LABOLoss(alpha=0.1, beta=2.0)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
        >>> criterion = LABOLoss(prior="memory", examples=50)
        >>> criterion(torch.zeros(2, 4), torch.tensor([0, 3]), indices=torch.tensor([17, 42]))
        tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        alpha: float | Tensor | None = None,
        beta: float | Tensor | None = None,
        prior: Tensor | str | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        value: str = "inner",
        impl: str = "auto",
        z_loss: float = 0.0,
        softcap: float | None = None,
        return_statistics: bool = False,
        differentiable: bool = False,
        examples: int | None = None,
        sharpness: float | None = None,
        decay: float | None = None,
        epsilon: float | None = None,
        top: int | None = None,
        aligned: bool | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        **unknown: Any,
    ) -> None:
        _reject_unknown(unknown)
        if size_average is not None or reduce is not None:  # deprecated there too, with torch's own warning
            reduction = _legacy_reduction.legacy_get_string(size_average, reduce)
        memory_options = {"sharpness": sharpness, "decay": decay, "epsilon": epsilon, "top": top, "aligned": aligned}
        memory_options = {name: option for name, option in memory_options.items() if option is not None}
        member, distribution = None, None
        if isinstance(prior, str):
            member = _with_memory(
                prior, impl, examples, {"alpha": alpha, "beta": beta, "value": value, **memory_options}
            )
        else:
            distribution = prior
            for name in (*memory_options, *([] if examples is None else ["examples"])):
                raise ValueError(f'Expected argument `{name}` only with prior="memory".')
        defaults = LABO.defaults({} if member is None else {"prior": "memory"})
        strength = defaults["alpha"] if alpha is None else alpha
        pull = defaults["beta"] if beta is None else beta
        given = LossOptions(
            strength, pull, distribution, weight, ignore_index, reduction, value, impl, z_loss, softcap,
            return_statistics=return_statistics, differentiable=differentiable,
        )  # fmt: skip
        super().__init__(given)
        if member is not None:
            _reject_with_memory(given)
        self.member = member

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        row_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
        indices: Tensor | None = None,
    ) -> Tensor | LossStatistics:
        """The loss of logits (C), (N, C) or (N, C, d1, …); arguments as in `labo.labo_cross_entropy`.

        With prior="memory", `indices` are the indices of the targets in the training data, of the shape of the targets.
        In evaluation mode (`.eval()`) they may be omitted; then the loss is the plain cross-entropy.
        """
        if self.member is None:
            if indices is not None:
                raise TypeError('Expected no argument `indices` without prior="memory".')
            options = {**self.options(), "row_weight": row_weight, "denominator": denominator}
            return functional.labo_cross_entropy(input, target, **options)
        batch = {} if indices is None else {"indices": indices}
        given = LossOptions(reduction=self.reduction, row_weight=row_weight, denominator=denominator)
        given.check()
        self.member.require(batch if self.training else None)
        weights = {"row_weight": row_weight, "signed": given.weights_signed}
        rows = _reduction.as_rows(input, target, self.weight, self.ignore_index, **weights)
        rows, count = replace(rows, given=batch), given.count(rows.raw)
        dtype = checks.result_dtype(input)
        return reduced(self.member, rows, self.reduction, dtype, training=self.training, count=count)

    def extra_repr(self) -> str:
        """alpha, beta and the reduction."""
        return super().extra_repr() if self.member is None else f"prior='memory', {super().extra_repr()}"


def _reject_with_memory(options: LossOptions) -> None:
    """Raise an error for what the loss with a memory does not have."""
    for name, absent in (("z_loss", 0.0), ("softcap", None), ("return_statistics", False)):
        if getattr(options, name) != absent:
            raise UserError(f'Expected no argument `{name}` with prior="memory"; the other priors support it.')


def _with_memory(prior: str, impl: str, examples: int | None, options: dict[str, Any]) -> LABO:
    """LABO with a memory of `examples` examples."""
    if prior != "memory":
        raise unknown_name("prior", prior, ("memory",))
    if impl not in ("auto", "reference"):
        raise UserError(f'impl={impl!r} does not support prior="memory"; use impl="auto".')
    if examples is None:
        raise UserError('Expected argument `examples`, the number of training examples, with prior="memory".')
    member = LABO(prior=prior, **options)
    member.provide(examples=examples)
    return member


@documented()
class LinearLABOLoss(_LABOOptions):
    """`labo.linear_labo_cross_entropy` as a module; the weight of the last layer is an argument of each call.

    Args:
        {options}
        chunk_rows, accumulate: as in `labo.linear_labo_cross_entropy`.

    Raises:
        ValueError, TypeError: an option is out of range.

    Example:
        >>> import torch
        >>> LinearLABOLoss()(torch.zeros(2, 3), torch.ones(4, 3), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        *,
        alpha: float | Tensor = 0.1,
        beta: float | Tensor = 2.0,
        prior: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        value: str = "inner",
        impl: str = "auto",
        z_loss: float = 0.0,
        softcap: float | None = None,
        return_statistics: bool = False,
        differentiable: bool = False,
        chunk_rows: int | None = None,
        accumulate: str = "float32",
        **unknown: Any,
    ) -> None:
        _reject_unknown(unknown)
        given = LossOptions(
            alpha, beta, prior, weight, ignore_index, reduction, value, impl, z_loss, softcap,
            return_statistics=return_statistics, differentiable=differentiable,
        )  # fmt: skip
        super().__init__(given)
        functional.check_chunks(chunk_rows, accumulate)
        self.chunk_rows, self.accumulate = chunk_rows, accumulate

    @override
    def options(self) -> dict[str, Any]:
        return {**super().options(), "chunk_rows": self.chunk_rows, "accumulate": self.accumulate}

    def forward(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Tensor,
        linear_bias: Tensor | None = None,
        *,
        row_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor | LossStatistics:
        """The loss of hidden states (…, D) under the head (V, D); as `labo.linear_labo_cross_entropy`."""
        options = {**self.options(), "row_weight": row_weight, "denominator": denominator}
        return functional.linear_labo_cross_entropy(input, linear_weight, target, linear_bias=linear_bias, **options)
