"""One rank's slice of the classes: its part of the maxima and sums over all classes, and of the gradient.

The algebra is that of `labo.inner`: two log-sum-exps, each relative to its own maximum. The first all-reduce
communicates the maxima, the second the sums relative to them, including the prior mass of the unmasked classes, which
renormalises the prior. Scalars are communicated in float64: they are few, and a prior that is tiny where the logits are
large then neither underflows nor is rounded twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from labo import checks, inner
from labo.errors import UserError
from labo.kernels.options import LossOptions, Options
from labo.kernels.reference import capped, capped_slope
from labo.reduction import Rows

# The place of the total of the prior among the sums over all ranks.
_PRIOR_TOTAL = 5


@dataclass(frozen=True)
class RowReference:
    """The reference values for the logits of a rank.

    `r`, (C_local,) or (N, C_local), is its slice of the prior up to a factor; uniform is 1. `top` (N, 1) is the maximum
    over the classes of all ranks, `support_top` over those with prior mass: a prior may exclude the largest logit.
    `target` (N,) is relative to the first class of this rank; outside [0, C_local) it belongs to another rank.
    `softcap` is that of the logits, or None.
    """

    beta: Tensor
    r: Tensor
    top: Tensor
    support_top: Tensor
    target: Tensor
    softcap: float | None


class Shard:
    """The classes of a rank for every row (N, C_local), soft-capped, relative to the maxima over all ranks."""

    def __init__(self, rows: Tensor, reference: RowReference) -> None:
        finite = rows != -math.inf
        self.reference, self.rows = reference, rows
        self.mass = torch.where(finite, reference.r, 0.0)
        self.support = self.mass > 0
        self.shifted = rows - reference.top
        # 0 in masked places keeps every later product finite; they carry no prior mass.
        self.distance = torch.where(finite, rows - reference.support_top, 0.0)
        self.u = self.distance / reference.beta
        self.scores = torch.where(self.support, self.u + reference.r.log(), -math.inf)
        self.exp_z = self.shifted.exp()
        target, classes = reference.target.unsqueeze(-1), rows.shape[-1]
        self.has_target = (target >= 0) & (target < classes)
        self.target = target.clamp(0, max(0, classes - 1))

    def gradient(
        self,
        sums: tuple[Tensor, Tensor],
        grad_data: Tensor,
        grad_term: Tensor,
        grad_logsumexp: Tensor | float = 0.0,
    ) -> Tensor:
        """The slice of the gradient of rows whose terms have these gradients (N, 1), from `normalizers`.

        It is the gradient in the logits before they are capped.
        """
        exp_z_sum, log_label_sum = sums
        q = torch.where(self.support, (self.scores - log_label_sum).exp_(), 0.0)
        grad = self.exp_z * ((grad_data + grad_term + grad_logsumexp) / exp_z_sum)
        grad.sub_(q.mul_(grad_term))
        if grad.shape[-1]:
            grad.scatter_add_(-1, self.target, torch.where(self.has_target, -grad_data, 0.0))
        if (cap := self.reference.softcap) is not None:
            grad.mul_(capped_slope(self.rows, cap))
        # A row whose classes are all masked has no gradient.
        return torch.where(exp_z_sum == 0, 0.0, grad)

    def at_target(self) -> Tensor:
        """The shifted logit of each row's target (N,); 0 where it belongs to another rank."""
        if not self.shifted.shape[-1]:
            return self.shifted.sum(-1)
        return torch.where(self.has_target, self.shifted.gather(-1, self.target), 0.0).squeeze(-1)


class Measured(NamedTuple):
    """The classes of a rank, the sums over all ranks (see `sum_over_ranks`), and each rank's number of classes."""

    shard: Shard
    sums: Tensor
    sizes: Tensor

    def terms(self, plugin: bool) -> tuple[Tensor, Tensor, Tensor]:
        """CE(target, p), V (or CE(q*, p)) and the log-sum-exp of each row (N,), in working precision."""
        reference, dtype = self.shard.reference, self.shard.rows.dtype
        logsumexp = self.sums[0].log() + reference.top.squeeze(-1)
        data, term = combine(self.sums, reference, plugin)
        return data.to(dtype), term.to(dtype), logsumexp.to(dtype)

    def normalizers(self) -> tuple[Tensor, Tensor]:
        """The sum of exp(z) and the log of that of the label, (N, 1) each, for `Shard.gradient`."""
        exp_z_sum, label_sum = self.sums[:2].unsqueeze(-1)
        return exp_z_sum.to(self.shard.rows.dtype), label_sum.log().to(self.shard.rows.dtype)

    def statistics(self) -> Tensor:
        """The statistics (5, N) of rows, see statistics.py, float64."""
        return row_statistics(self.sums, self.shard.reference)


def measure(
    logits: Tensor, target: Tensor, options: Options, group: dist.ProcessGroup | None, *, statistics: bool = False
) -> Measured:
    """Measure rows over all ranks, by two all-reduces; `options` has this rank's slice of the prior."""
    wide = capped_rows(logits, options.softcap)
    r, prior_total = wide.new_ones(wide.shape[1]), wide.new_zeros(len(wide), dtype=torch.float64)
    if options.prior is not None:
        r, prior_total = options.prior.to(wide.dtype), prior_totals(options.prior).expand(len(wide))
    tops, sizes = maxima(wide, r, group)
    beta, first = inner.over_rows("beta", options.beta, wide), sizes[: dist.get_rank(group)].sum()
    shard = Shard(wide, RowReference(beta, r, *tops, target - first, options.softcap))
    sums = sum_over_ranks(shard, prior_total, options.value == "plugin", group, statistics=statistics)
    if options.prior is not None:
        check_prior(sums, options.prior.dtype)
    return Measured(shard, sums, sizes)


def capped_rows(logits: Tensor, softcap: float | None) -> Tensor:
    """The rows of a `Shard`."""
    return capped(inner.working(logits), softcap)


def maxima(logits: Tensor, r: Tensor, group: dist.ProcessGroup | None) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Maxima (N, 1) over all ranks of the logits and of those with prior mass, and each rank's number of classes."""
    count = logits.shape[0]
    local = torch.full((2 * count + dist.get_world_size(group),), -math.inf, dtype=torch.float64, device=logits.device)
    if logits.shape[-1]:
        local[:count] = logits.amax(-1)
        local[count : 2 * count] = torch.where(r > 0, logits, -math.inf).amax(-1)
    local[2 * count + dist.get_rank(group)] = logits.shape[-1]
    dist.all_reduce(local, op=dist.ReduceOp.MAX, group=group)
    tops = torch.where(local == -math.inf, 0.0, local)[: 2 * count].to(logits.dtype).view(2, count, 1)
    return (tops[0], tops[1]), local[2 * count :].long()


def sum_over_ranks(
    shard: Shard, prior_total: Tensor, plugin: bool, group: dist.ProcessGroup | None, *, statistics: bool = False
) -> Tensor:
    """The sums over all ranks for `combine`, float64 (6, N).

    With `statistics` there are two more, for `row_statistics`.
    """
    sums = (*_local_sums(shard, plugin), prior_total, *(_entropy_sums(shard) if statistics else ()))
    total = torch.stack(sums)
    dist.all_reduce(total, op=dist.ReduceOp.SUM, group=group)
    return total


def check_prior(sums: Tensor, dtype: torch.dtype) -> None:
    """Check the prior of all ranks, of which only the totals are known here: as distributions over one class."""
    checks.distribution("prior", sums[_PRIOR_TOTAL].to(dtype).unsqueeze(-1), -1)


def combine(sums: Tensor, reference: RowReference, plugin: bool) -> tuple[Tensor, Tensor]:
    """CE(target, p) and V (or CE(q*, p)) of each row from the sums over all ranks.

    With mean = sum r expm1(u) / mass, the log of sum r exp(u) / mass is log1p(mean), without cancellation unless the
    mean is below -1/2; there the plain log is accurate (as in `labo.inner`). At beta = inf the second sum is that of
    r * distance instead.
    """
    exp_z_sum, label_sum, pull, mass, target, _ = sums[:6]
    log_exp_z_sum = exp_z_sum.log()
    data = torch.where(exp_z_sum == 0, math.inf, log_exp_z_sum - target)
    if plugin:
        pull = pull / label_sum
    else:
        beta, mean = reference.beta.squeeze(-1).double(), pull / mass
        log_mean = torch.where(mean > -0.5, mean.clamp(min=-0.5).log1p(), (label_sum / mass).log())
        pull = torch.where(torch.isinf(beta), mean, beta * log_mean)
    gap = (reference.top - reference.support_top).squeeze(-1)  # 0 unless the prior excludes the largest logit
    return data, torch.where(mass == 0, math.inf, log_exp_z_sum + gap - pull)


def row_statistics(sums: Tensor, reference: RowReference) -> Tensor:
    """The statistics (5, N) of rows, see statistics.py, float64."""
    exp_z_sum, label_sum, _, _, target, _, entropy_sum, label_entropy_sum = sums
    logs, label_logs = exp_z_sum.log(), label_sum.log()
    nll = torch.where(exp_z_sum == 0, math.inf, logs - target)
    entropies = logs - entropy_sum / exp_z_sum, label_logs - label_entropy_sum / label_sum
    logsumexp = logs + reference.top.squeeze(-1)
    return torch.stack([nll, logsumexp, *entropies, (target == 0).double()])


def _entropy_sums(shard: Shard) -> tuple[Tensor, Tensor]:
    """This rank's part of the sums of w log w for the weights w of p and of the label before they are normalised."""
    logs = torch.where(shard.shifted == -math.inf, 0.0, shard.shifted)
    label_logs = torch.where(shard.support, shard.scores, 0.0)
    return (shard.exp_z * logs).sum(-1).double(), (shard.scores.exp() * label_logs).sum(-1).double()


def _local_sums(shard: Shard, plugin: bool) -> tuple[Tensor, ...]:
    """This rank's part of the sums for `combine`, float64 (N,) each."""
    log_label_sum = shard.scores.logsumexp(-1)
    label_sum = log_label_sum.double().exp()
    if plugin:
        pull = (inner.masked_softmax(shard.scores) * shard.distance).sum(-1).double() * label_sum
    else:
        terms = torch.where(torch.isinf(shard.reference.beta), shard.distance, torch.expm1(shard.u))
        pull = (shard.reference.r * torch.where(shard.support, terms, 0.0)).sum(-1).double()
    return (
        shard.exp_z.sum(-1).double(),
        label_sum,
        pull,
        shard.mass.sum(-1, dtype=torch.float64),
        shard.at_target().double(),
    )


def prior_totals(prior: Tensor) -> Tensor:
    """The total of a slice of each prior (…,), NaN where an entry is negative.

    NaN in the total raises the error on every rank; an error on this rank only would leave the others waiting.
    """
    return torch.where((prior < 0).any(-1), math.nan, prior.sum(-1, dtype=torch.float64))


def as_rows(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    *,
    gather: str,
    row_weight: Tensor | None = None,
    signed: bool = False,
) -> Rows:
    """Like `reduction.as_rows`, for targets over the classes of all ranks, whose range is checked later.

    `gather` says what to do with targets that are probabilities.
    """
    checks.floating("input", input)
    checks.tensor("target", target)
    if target.dtype.is_floating_point or target.dtype.is_complex or target.dtype == torch.bool:
        raise TypeError(
            f"Expected argument `target` to hold integer class indices, but got dtype {target.dtype}; for "
            f"probabilities {gather}."
        )
    if target.shape != input.shape[:-1]:
        raise ValueError(
            f"Expected argument `target` to be class indices of shape {tuple(input.shape[:-1])}, `input`'s without its "
            f"last dimension, that of classes, but got shape {tuple(target.shape)}."
        )
    checks.same_device("target", target, input)
    if weight is not None:
        checks.class_weight("weight", weight)
        checks.same_device("weight", weight, input)
    logits, shape = input.reshape(target.numel(), input.shape[-1]), target.shape
    target = checks.as_targets(target).reshape(-1)
    kept = target != ignore_index
    rows = Rows(logits, torch.where(kept, target, 0), kept, weight, shape)
    if row_weight is None:
        return rows
    checks.row_weight("row_weight", row_weight, shape, kept, signed=signed)
    checks.same_device("row_weight", row_weight, input)
    return replace(rows, row_weight=row_weight.reshape(-1))


def check_prior_slice(prior: Tensor | None, rows: Rows) -> None:
    """Check the shape of this rank's slice of the prior, (C_local,) or (…, C_local)."""
    if prior is None:
        return
    classes = rows.raw.shape[1]
    checks.floating("prior", prior)
    if prior.shape[-1] != classes:
        raise ValueError(
            f"Expected argument `prior` to hold this rank's {classes} classes in its last dimension, but got shape "
            f"{tuple(prior.shape)}."
        )
    checks.same_device("prior", prior, rows.raw)
    checks.broadcasts("prior", prior.detach().sum(-1), rows.shape)


def options_of_rows(given: LossOptions, rows: Rows) -> Options:
    """Like `LossOptions.of_rows`, with this rank's slice of the prior, whose total is checked over all ranks."""
    prior = given.prior
    check_prior_slice(prior, rows)
    if prior is not None and prior.dim() > 1:
        prior = prior.expand(*rows.shape, prior.shape[-1]).reshape(rows.raw.shape)
    return replace(replace(given, prior=None).of_rows(rows), prior=prior)


def check_over_ranks(rows: Rows, classes: Tensor) -> None:
    """Check targets and class weights against the classes of all ranks, without device synchronization."""
    if classes.device.type == "cpu" and not torch.compiler.is_compiling():
        checks.class_indices("target", rows.target, int(classes), None)
    else:
        fits = (rows.target >= 0) & (rows.target < classes)
        checks.require(fits, "Expected argument `target` to be indices of the classes of all ranks, but got others.")
    if rows.weight is not None:
        shape = tuple(rows.weight.shape)
        fits = (classes == rows.weight.numel()) & (rows.weight.dim() == 1)
        checks.require(fits, f"Expected argument `weight` to have the classes of all ranks, but got shape {shape}.")


def refuse_gradients(gather: str, **options: Any) -> None:
    """Raise an error for an option that requires grad; `gather` says what to do instead."""
    for name, option in options.items():
        if isinstance(option, Tensor) and option.requires_grad:
            raise ValueError(
                f"Expected argument `{name}` not to require grad: split classes have no gradient in it; {gather}."
            )


def refuse_transforms(gather: str, *tensors: Tensor) -> None:
    """Raise an error under torch.func, and for tensors with a tangent of forward-mode differentiation."""
    if checks.transformed() or checks.forward_mode(*tensors):
        raise UserError(
            "Expected no torch.func transform and no forward-mode differentiation of a loss whose classes are split "
            f"over ranks; {gather}."
        )


def require_initialized() -> None:
    """Raise an error unless torch.distributed is initialised."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("Expected torch.distributed to be initialised: call torch.distributed.init_process_group.")


def require_member(group: dist.ProcessGroup | None) -> None:
    """Raise an error unless this process is one of the group."""
    if dist.get_rank(group) < 0:
        raise ValueError("Expected argument `group` to include this process, but it is not among the group's ranks.")
