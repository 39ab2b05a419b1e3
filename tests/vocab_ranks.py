"""Cases of the vocabulary-parallel loss, and what each process of a group makes of them."""

from __future__ import annotations

import functools
import math
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import labo
from labo.errors import UserError
from labo.kernels.vocab_parallel import vocab_parallel_labo_cross_entropy

INF, NAN = math.inf, math.nan
# Classes of each rank, by the number of ranks.
EVEN = {2: (4, 4), 4: (2, 2, 2, 2)}
UNEVEN = {2: (7, 2), 4: (1, 5, 0, 3)}
TINY = {2: (0, 3), 4: (0, 1, 0, 2)}
EVERYWHERE = torch.arange(9)  # a target in each class, so on every rank


def problem(classes: int = 9, scale: float = 3.0, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Nine rows of logits, whole, and the options of the loss as one process takes them."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(9, classes, generator=generator, dtype=torch.float64) * scale
    return {"z": z, "target": EVERYWHERE % classes, "reduction": "none", **options}


def prior(kind: str, classes: int = 9) -> torch.Tensor:
    r = torch.rand(classes, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.01
    if kind == "peaked":
        r = r**12
    if kind == "one side":
        r[:7] = 0
    if kind == "per row":
        r = r * torch.rand(9, classes, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    if kind == "tiny on one side":
        r[7:] = 1e-42
    return r / r.sum(-1, keepdim=True)


def masked(**options: Any) -> dict[str, Any]:
    """Classes masked: the first seven, the last two, single ones, a target, all; other rows are whole."""
    case = problem(seed=3, **options)
    case["z"][0, 1:7] = -INF
    case["z"][1, 7:] = -INF
    case["z"][2, [1, 4, 8]] = -INF
    case["z"][3, 3] = -INF
    case["z"][4] = -INF
    case["z"][8, :7] = -INF
    return case


def ignored(**options: Any) -> dict[str, Any]:
    case = problem(**options)
    case["target"] = torch.tensor([0, -100, 8, 3, -100, 7, 1, 2, -100])
    case["z"][1] = NAN
    case["z"][4, 2] = INF
    return case


def weighted(**options: Any) -> dict[str, Any]:
    """Rows have weights; one of weight 0 holds NaN, and ignored rows have NaN as theirs."""
    case = ignored(row_weight=torch.tensor([1.0, NAN, 2.0, 0.5, 3.0, 1.5, 0.0, 1.0, NAN], dtype=torch.float64))
    case["z"][6] = NAN
    return case | options


def sequences() -> dict[str, Any]:
    case = problem(reduction="none", alpha=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    return {**case, "z": case["z"].reshape(3, 3, 9), "target": case["target"].reshape(3, 3)}


PER_ROW = {
    "alpha": torch.linspace(0, 1, 9, dtype=torch.float64),
    "beta": torch.tensor([0.5, 1.0, 2.0, 1e4, INF, 1e-3, 1e6, 4.0, 30.0], dtype=torch.float64),
}
CLIFF = torch.tensor([-200.0] * 7 + [0.0, -0.3], dtype=torch.float64).repeat(9, 1)
FAR = torch.zeros(9, 9, dtype=torch.float64).index_fill_(1, torch.tensor([5]), -1e4)

CASES: dict[str, tuple[dict[int, tuple[int, ...]], Callable[[], dict[str, Any]]]] = {
    "even": (EVEN, functools.partial(problem, 8)),
    "uneven": (UNEVEN, problem),
    "three classes": (TINY, functools.partial(problem, 3)),
    **{f"beta {b}": (UNEVEN, functools.partial(problem, beta=b, alpha=0.7)) for b in (0.5, 1.0, 2.0, 1e4, INF)},
    **{f"wide logits, beta {b}": (UNEVEN, functools.partial(problem, scale=40.0, beta=b)) for b in (0.5, 2.0, 1e4)},
    **{f"alpha {a}": (UNEVEN, functools.partial(problem, alpha=a)) for a in (0.0, 1.0)},
    "alpha and beta per row": (UNEVEN, functools.partial(problem, **PER_ROW)),
    "one far class": (UNEVEN, lambda: problem(alpha=1.0, beta=1e4) | {"z": FAR.clone()}),
    **{
        f"{kind} prior, beta {b}": (UNEVEN, functools.partial(problem, prior=prior(kind), beta=b, alpha=0.6))
        for kind in ("random", "peaked", "one side", "per row")
        for b in (0.5, 2.0, 1e4, INF)
    },
    "tiny prior of the best": (
        UNEVEN,
        lambda: problem(prior=prior("tiny on one side"), beta=1.0) | {"z": CLIFF.clone()},
    ),
    "excluded best": (UNEVEN, lambda: problem(prior=prior("one side"), beta=1.0) | {"z": problem()["z"] - 0.1 * FAR}),
    **{f"masked, beta {b}": (UNEVEN, functools.partial(masked, beta=b, alpha=0.4)) for b in (0.5, 2.0, 1e4, INF)},
    **{f"masked, alpha {a}": (UNEVEN, functools.partial(masked, alpha=a)) for a in (0.0, 1.0)},
    "masked, prior": (UNEVEN, functools.partial(masked, prior=prior("random"))),
    "masked, prior without mass": (UNEVEN, functools.partial(masked, prior=prior("one side"))),
    "masked, per row": (UNEVEN, functools.partial(masked, **PER_ROW)),
    **{f"ignored, {r}": (UNEVEN, functools.partial(ignored, reduction=r)) for r in ("none", "mean", "sum")},
    **{
        f"weights, {r}": (UNEVEN, functools.partial(ignored, reduction=r, weight=torch.arange(9.0).double()))
        for r in ("none", "mean", "sum")
    },
    "all ignored": (UNEVEN, lambda: problem(reduction="mean") | {"target": torch.full((9,), -100)}),
    "no rows": (UNEVEN, lambda: {"z": torch.zeros(0, 9).double(), "target": torch.zeros(0).long()}),
    "one row without a dimension": (UNEVEN, lambda: {"z": problem()["z"][0], "target": torch.tensor(8)}),
    "sequences": (UNEVEN, sequences),
    **{
        f"plugin, {name}": (UNEVEN, functools.partial(make, value="plugin", **options))
        for name, make, options in (
            ("beta 0.5", problem, {"beta": 0.5}),
            ("beta inf", problem, {"beta": INF, "prior": prior("random")}),
            ("masked", masked, {"prior": prior("one side")}),
        )
    },
    "z-loss": (UNEVEN, functools.partial(masked, z_loss=0.05, beta=1e4)),
    "softcap": (UNEVEN, functools.partial(problem, softcap=2.5, alpha=0.4)),
    "softcap, z-loss, plugin": (
        UNEVEN,
        functools.partial(masked, softcap=2.5, z_loss=0.05, prior=prior("per row"), value="plugin"),
    ),
    **{
        f"row weights, {r}": (
            UNEVEN,
            functools.partial(weighted, reduction=r, z_loss=0.05, weight=torch.arange(1.0, 10).double()),
        )
        for r in ("none", "mean", "sum")
    },
    "denominator": (UNEVEN, functools.partial(weighted, reduction="mean", denominator=20.0)),
    "NaN": (UNEVEN, lambda: problem() | {"z": problem()["z"].index_fill_(1, torch.tensor([8]), NAN)}),
}

# Cases whose statistics are compared, with a gradient through them.
WITH_STATISTICS = ("sequences", "masked, per row", "masked, prior without mass", "softcap, z-loss, plugin")
WITH_STATISTICS += ("row weights, mean", "weights, mean")

Z, Y = torch.zeros(2, 2), torch.tensor([0, 3])  # each rank's shard in the cases of bad input
BAD: dict[str, tuple[Callable[[int], Any], type, str]] = {
    "alpha": (lambda rank: {"alpha": 1.1}, ValueError, r"`alpha` to be in \[0, 1\], but got 1.1"),
    "alpha's shape": (lambda rank: {"alpha": torch.zeros(3)}, ValueError, "`alpha` to broadcast over the rows"),
    "beta": (lambda rank: {"beta": 0.0}, ValueError, "`beta` to be above 0"),
    "beta's shape": (lambda rank: {"beta": torch.ones(5)}, ValueError, "`beta` to broadcast over the rows"),
    **{
        f"{name} that requires grad": (
            lambda rank, name=name: {name: torch.full((2,), 0.25, requires_grad=True)},
            ValueError,
            f"`{name}` not to require grad.*labo.labo_cross_entropy",
        )
        for name in ("alpha", "beta", "prior")
    },
    "negative prior on one rank": (
        lambda rank: {"prior": torch.tensor([1.2, -0.2]) if rank == 0 else torch.zeros(2)},
        ValueError,
        "`prior` to have no negative or NaN",
    ),
    "prior's total": (lambda rank: {"prior": torch.full((2,), 0.5)}, ValueError, "`prior` to sum to 1.*but got [24]"),
    "prior's shape": (lambda rank: {"prior": torch.full((3,), 0.1)}, ValueError, "`prior` to hold this rank's 2"),
    "prior's rows": (lambda rank: {"prior": torch.full((5, 2), 0.1)}, ValueError, "`prior` to broadcast"),
    "prior's dtype": (lambda rank: {"prior": torch.ones(2).long()}, TypeError, "`prior` to be floating point"),
    "weight's shape": (lambda rank: {"weight": torch.ones(2)}, ValueError, "`weight`.*all ranks.*(2,)"),
    "z_loss": (lambda rank: {"z_loss": -1.0}, UserError, r"`z_loss`.*\[0, inf\).*-1"),
    "softcap": (lambda rank: {"softcap": 0.0}, UserError, r"`softcap`.*\(0, inf\).*0"),
    "row_weight's shape": (lambda rank: {"row_weight": torch.ones(3)}, ValueError, r"`row_weight`.*\(2,\).*\(3,\)"),
    "negative row_weight": (lambda rank: {"row_weight": -torch.ones(2)}, ValueError, "`row_weight` to be >= 0.*mean"),
    "denominator": (lambda rank: {"denominator": 2.0, "reduction": "sum"}, UserError, "`denominator` only with.*mean"),
    "differentiable": (lambda rank: {"differentiable": True}, UserError, "`differentiable` only with return_stat"),
    "reduction": (lambda rank: {"reduction": "average"}, ValueError, "`reduction`"),
    "value": (lambda rank: {"value": "outer"}, ValueError, "`value`.*inner, plugin.*outer"),
    "target out of range": (lambda rank: {"target": torch.tensor([0, 8])}, ValueError, r"`target`.*\[0, [48]\).*8"),
    "negative target": (lambda rank: {"target": torch.tensor([0, -1])}, ValueError, "`target`.*-1"),
    "target's shape": (lambda rank: {"target": torch.tensor([0, 1, 2])}, ValueError, r"`target`.*\(2,\).*\(3,\)"),
    "classes in the middle": (
        lambda rank: {"input": torch.zeros(2, 2, 3), "target": torch.zeros(2, 3).long()},
        ValueError,
        r"`target`.*\(2, 2\).*last dimension",
    ),
    "probabilities": (lambda rank: {"target": torch.zeros(2, 2)}, TypeError, "`target`.*float32.*labo_cross_entropy"),
    "list of targets": (lambda rank: {"target": [0, 1]}, TypeError, "`target` to be a tensor"),
    "integers": (lambda rank: {"input": Z.long()}, TypeError, "`input` to be floating point"),
    "scalar": (lambda rank: {"input": torch.tensor(1.0), "target": torch.tensor(0)}, ValueError, "`input`"),
}


def shard(case: dict[str, Any], sizes: tuple[int, ...], rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """What a rank is given of a whole problem."""
    at = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    mine = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in case.items()}
    mine["input"] = mine.pop("z")[..., at].clone().requires_grad_()
    if mine.get("prior") is not None:
        mine["prior"] = case["prior"][..., at]  # a prior is as wide as the user has it
    return mine


def work(rank: int, world: int, folder: Path) -> None:
    """One rank: every case, its results to a file, what went wrong included."""
    torch.set_num_threads(1)
    results: dict[Any, Any] = {}
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
        warnings.simplefilter("error")
        for name, (sizes, make) in CASES.items():
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                results[name, dtype] = loss_and_gradient(shard(make(), sizes[world], rank, dtype))
        for name in WITH_STATISTICS:
            sizes, make = CASES[name]
            results["statistics", name] = statistics(shard(make(), sizes[world], rank, torch.float64))
        results["row weight's gradient"] = row_weight_gradient(rank, world)
        results["bad"] = {name: unavailable_reason(rank, make) for name, (make, _, _) in BAD.items()}
        results["crossing"] = {classes: crossing(world, classes) for classes in (3, 3000)}
        results["twice"] = twice()
        results["replicated"] = replicated(world)
        results["dtensor"] = dtensor(world)
        results["group"] = subgroup(rank, world)
        dist.destroy_process_group()
    except Exception:
        results["failed"] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")


def loss_and_gradient(arguments: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    loss = vocab_parallel_labo_cross_entropy(**arguments)
    (gradient,) = torch.autograd.grad(loss.sum(), arguments["input"])
    return loss.detach(), gradient


def statistics(
    arguments: dict[str, Any], loss: Callable[..., labo.LossStatistics] = vocab_parallel_labo_cross_entropy
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The statistics, and the gradient in the logits of all that has one."""
    found = loss(**arguments, return_statistics=True, differentiable=True)
    total = torch.where(found.loss.isfinite(), found.loss, 0.0).sum() + found.logsumexp.nan_to_num(0, 0, 0).sum()
    total = total - 0.5 * torch.where(found.nll.isfinite(), found.nll, 0.0).sum()
    (gradient,) = torch.autograd.grad(total, arguments["input"])
    return {name: value.detach() for name, value in found._asdict().items()}, gradient


def row_weight_gradient(rank: int, world: int) -> torch.Tensor:
    weights = torch.tensor([1.0, 0.0, 2.0] * 3, dtype=torch.float64, requires_grad=True)
    mine: Any = shard(problem(reduction="mean", alpha=0.0), UNEVEN[world], rank, torch.float64)
    loss = vocab_parallel_labo_cross_entropy(**mine, row_weight=weights)
    return torch.autograd.grad(loss, weights)[0]


def unavailable_reason(rank: int, make: Callable[[int], Any]) -> tuple[type, str] | None:
    arguments: dict[str, Any] = {"input": Z, "target": Y, **make(rank)}
    try:
        vocab_parallel_labo_cross_entropy(**arguments)
    except (TypeError, ValueError) as error:
        return type(error), str(error)
    return None


def crossing(world: int, classes: int) -> tuple[list[int], list[int]]:
    """How many numbers cross in each collective of the forward, and of the backward pass."""
    numbers: list[int] = []

    def seen(function: Any, tensor: Any, *rest: Any, **options: Any) -> Any:
        numbers.append(tensor.numel())
        return function(tensor, *rest, **options)

    z = torch.randn(5, classes, requires_grad=True)
    r = torch.full((classes,), 1 / (classes * world))
    with ExitStack() as stack:
        for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "send"):
            stack.enter_context(patch.object(dist, name, functools.partial(seen, getattr(dist, name))))
        loss = vocab_parallel_labo_cross_entropy(z, torch.arange(5), prior=r)
        forward = numbers[:]
        loss.backward()
    return forward, numbers[len(forward) :]


def twice() -> str:
    z = torch.zeros(2, 3, requires_grad=True)
    try:
        torch.autograd.grad(vocab_parallel_labo_cross_entropy(z, Y), z, create_graph=True)
    except RuntimeError as error:
        return str(error)
    return ""


def dtensor(world: int) -> tuple[torch.Tensor, torch.Tensor]:
    mesh = init_device_mesh("cpu", (world,))
    case = problem()
    z: Any = distribute_tensor(case["z"], mesh, [Shard(1)]).requires_grad_()
    loss = vocab_parallel_labo_cross_entropy(z, case["target"])
    loss.backward()
    return loss.detach(), z.grad.full_tensor()


def replicated(world: int) -> str:
    z = distribute_tensor(Z, init_device_mesh("cpu", (world,)), [Replicate()])
    try:
        vocab_parallel_labo_cross_entropy(z, Y)
    except ValueError as error:
        return str(error)
    return ""


def subgroup(rank: int, world: int) -> Any:
    """The last two ranks as a group of their own; the others are told that they are not in it."""
    group: Any = dist.new_group([world - 2, world - 1])
    arguments = shard(problem(), UNEVEN[2], max(0, rank - world + 2), torch.float64)
    try:
        return vocab_parallel_labo_cross_entropy(group=group, **arguments).detach()
    except ValueError as error:
        return str(error)
