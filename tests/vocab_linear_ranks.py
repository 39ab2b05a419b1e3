"""Cases of the last layer whose classes are split over processes, and what each process makes of them."""

from __future__ import annotations

import functools
import traceback
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import labo
from labo.kernels.vocab_parallel_linear import vocab_parallel_linear_labo_cross_entropy
from vocab_ranks import EVEN, INF, NAN, PER_ROW, TINY, UNEVEN, prior

WIDTH = 5
Case = dict[str, Any]


def layer(classes: int = 9, **options: Any) -> Case:
    """Nine hidden states and a whole head with a bias, in float64, and the options of the loss."""
    draw = torch.Generator().manual_seed(classes)
    hidden, weight, bias = (
        torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in ((9, WIDTH), (classes, WIDTH), (classes,))
    )
    target = torch.arange(9) % classes
    return {"input": hidden, "linear_weight": weight, "linear_bias": bias, "target": target, **options}


def without_bias(**options: Any) -> Case:
    return {**layer(**options), "linear_bias": None}


def masked(**options: Any) -> Case:
    """Classes 1, 4 and 8 are masked, by their bias; the other classes are the targets."""
    case = layer(**options)
    case["linear_bias"][[1, 4, 8]] = -INF
    return {**case, "target": torch.tensor([0, 2, 3, 5, 6, 7, 0, 2, 3])}


def ignored(**options: Any) -> Case:
    case = layer(**options)
    case["input"][[1, 4]] = NAN
    return {**case, "target": torch.tensor([0, -100, 8, 3, -100, 7, 1, 2, -100])}


def sequences() -> Case:
    case = layer(reduction="none", alpha=torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    return {**case, "input": case["input"].reshape(3, 3, WIDTH), "target": case["target"].reshape(3, 3)}


ROW_WEIGHTS = torch.tensor([1.0, 2.0, 0.0, 0.5, 3.0, 1.5, 0.0, 1.0, 2.0], dtype=torch.float64)
CLASS_WEIGHTS = torch.arange(9.0, dtype=torch.float64)
CASES: dict[str, tuple[dict[int, tuple[int, ...]], Callable[[], Case]]] = {
    "even": (EVEN, functools.partial(layer, 8)),
    "uneven": (UNEVEN, layer),
    "three classes": (TINY, functools.partial(layer, 3)),
    "without bias": (UNEVEN, without_bias),
    **{f"chunks of {rows}": (UNEVEN, functools.partial(layer, chunk_rows=rows)) for rows in (1, 4)},
    **{f"beta {b}": (UNEVEN, functools.partial(layer, beta=b, alpha=0.7)) for b in (0.5, 1e4, INF)},
    **{f"alpha {a}": (UNEVEN, functools.partial(layer, alpha=a)) for a in (0.0, 1.0)},
    "alpha and beta per row": (UNEVEN, functools.partial(layer, reduction="none", chunk_rows=2, **PER_ROW)),
    **{
        f"{kind} prior, beta {b}": (UNEVEN, functools.partial(layer, prior=prior(kind), beta=b, chunk_rows=4))
        for kind in ("random", "one side", "per row")
        for b in (2.0, INF)
    },
    "z-loss": (UNEVEN, functools.partial(layer, z_loss=0.05, chunk_rows=4)),
    "softcap": (UNEVEN, functools.partial(layer, softcap=1.5, alpha=0.4)),
    "softcap and z-loss": (UNEVEN, functools.partial(masked, softcap=1.5, z_loss=0.05, prior=prior("random"))),
    **{
        f"row weights, {r}": (
            UNEVEN,
            functools.partial(ignored, row_weight=ROW_WEIGHTS, weight=CLASS_WEIGHTS, reduction=r),
        )
        for r in ("none", "mean")
    },
    "denominator": (UNEVEN, functools.partial(ignored, denominator=20.0)),
    "masked": (UNEVEN, masked),
    "masked, prior": (UNEVEN, functools.partial(masked, prior=prior("random"), alpha=0.4)),
    **{f"ignored, {r}": (UNEVEN, functools.partial(ignored, reduction=r)) for r in ("none", "mean", "sum")},
    **{
        f"weights, {r}": (UNEVEN, functools.partial(ignored, reduction=r, weight=CLASS_WEIGHTS, chunk_rows=2))
        for r in ("none", "mean")
    },
    "all ignored": (UNEVEN, lambda: layer() | {"target": torch.full((9,), -100)}),
    "no rows": (UNEVEN, lambda: layer() | {"input": torch.zeros(0, WIDTH).double(), "target": torch.zeros(0).long()}),
    "one row without a dimension": (
        UNEVEN,
        lambda: layer() | {"input": layer()["input"][0], "target": torch.tensor(8)},
    ),
    "sequences": (UNEVEN, sequences),
    "plugin": (UNEVEN, functools.partial(layer, value="plugin", beta=0.5)),
}
WITH_STATISTICS = ("uneven", "random prior, beta 2.0", "one side prior, beta inf", "masked, prior", "ignored, mean")
WITH_STATISTICS += ("softcap and z-loss", "row weights, mean", "sequences")
LEAVES = ("input", "linear_weight", "linear_bias")

# Arguments of each rank that do not fit together, and what every rank says; the first rank has an error of its own
# where there are two.
DISAGREE: dict[str, tuple[Callable[[int], Case], str, str]] = {
    "rows": (
        lambda rank: {"input": torch.zeros(2 + rank, WIDTH), "target": torch.zeros(2 + rank).long()},
        "the same rows of `input` on every rank.*but got 2, 3",
        "",
    ),
    "statistics": (lambda rank: {"return_statistics": bool(rank)}, "the same `return_statistics`", ""),
    "row weights": (lambda rank: {"row_weight": torch.tensor([1.0, rank])}, "the same `row_weight`", ""),
    "alpha": (lambda rank: {"alpha": 0.1 + 0.1 * rank}, "the same `alpha` on every rank.*0.1, 0.2", ""),
    "bias": (lambda rank: {"linear_bias": torch.zeros(4) if rank else None}, "presence of `linear_bias`.*0, 1", ""),
    "chunks": (lambda rank: {"chunk_rows": 1 + rank}, "the same `chunk_rows`.*1, 2", ""),
    "targets": (lambda rank: {"target": torch.tensor([0, rank])}, "the same `target`.*fully_shard", ""),
    "reduction": (lambda rank: {"reduction": "sum" if rank else "mean"}, "the same `reduction`", ""),
    "head's width": (
        lambda rank: {} if rank else {"linear_weight": torch.zeros(4, WIDTH + 1)},
        "`linear_weight` of shape",
        "rank 0 of the group raised an error",
    ),
    "prior on one rank": (lambda rank: {"prior": torch.full((4,), 0.125)} if rank else {}, "dimensions of `prior`", ""),
    "negative prior": (lambda rank: {"prior": torch.tensor([0.2, 0.1, 0.1, 0.1 - 0.2 * rank])}, "negative or NaN", ""),
}
# Arguments that no rank takes.
BAD: dict[str, tuple[Case, type, str]] = {
    "alpha": ({"alpha": 1.1}, ValueError, r"`alpha` to be in \[0, 1\]"),
    "alpha's shape": ({"alpha": torch.zeros(3)}, ValueError, "`alpha` to broadcast over the rows"),
    **{
        f"{name} that requires grad": (
            {name: torch.full((4,) if name == "prior" else (2,), 0.125, requires_grad=True)},
            ValueError,
            f"`{name}` not to require grad.*labo.linear_labo_cross_entropy",
        )
        for name in ("alpha", "beta", "prior", "weight")
    },
    "chunk_rows": ({"chunk_rows": 0}, ValueError, "`chunk_rows` to be a whole number of at least 1"),
    "accumulate": ({"accumulate": "float16"}, ValueError, "accumulate"),
    "target out of range": ({"target": torch.tensor([0, 99])}, ValueError, r"`target`.*\[0, (8|16)\).*99"),
    "target's shape": ({"target": torch.tensor([0, 1, 2])}, ValueError, r"`target`.*\(2,\).*\(3,\)"),
    "weight's shape": ({"weight": torch.ones(4)}, ValueError, "`weight` to have the classes of all ranks"),
    "probabilities": ({"target": torch.zeros(2, 4)}, TypeError, "`target`.*float32.*labo.linear_labo_cross_entropy"),
    "bias's shape": ({"linear_bias": torch.zeros(3)}, ValueError, r"`linear_bias` of shape \(4,\)"),
    "prior's shape": ({"prior": torch.full((3,), 0.1)}, ValueError, "`prior` to hold this rank's 4"),
    "prior's total": ({"prior": torch.full((4,), 0.5)}, ValueError, "`prior` to sum to 1"),
    "dtype": ({"input": torch.zeros(2, WIDTH).double()}, TypeError, "`linear_weight` of `input`'s dtype"),
}
PLAIN: Case = {"input": torch.ones(2, WIDTH), "linear_weight": torch.zeros(4, WIDTH), "target": torch.tensor([0, 3])}


def converted(case: Case, dtype: torch.dtype) -> Case:
    """A case whose tensors are of a dtype; the layer requires gradients, a prior stays as the user has it."""
    made = {
        name: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() and name != "prior" else value
        for name, value in case.items()
    }
    return {
        name: value.requires_grad_() if name in LEAVES and value is not None else value for name, value in made.items()
    }


def shard(case: Case, sizes: tuple[int, ...], rank: int) -> Case:
    """What a rank is given of a whole problem."""
    at = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    mine = dict(case)
    for name in ("linear_weight", "linear_bias"):
        mine[name] = None if case[name] is None else case[name].detach()[at].clone().requires_grad_()
    if mine.get("prior") is not None:
        mine["prior"] = case["prior"][..., at]
    return mine


def gradients(loss: Tensor, case: Case) -> list[Any]:
    """The gradients of the layer; of a loss per row, that of a sum with other factors."""
    factors = torch.linspace(0.5, 1.5, loss.numel(), dtype=loss.dtype).reshape(loss.shape) if loss.dim() else 1.0
    leaves = [case[name] for name in LEAVES if case[name] is not None]
    return list(torch.autograd.grad((loss * factors).sum(), leaves))


def work(rank: int, world: int, folder: Path) -> None:
    """One rank: every case, its results to a file, what went wrong included."""
    torch.set_num_threads(1)
    results: dict[Any, Any] = {}
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
        warnings.simplefilter("error")
        for name, (sizes, make) in CASES.items():
            for dtype in (torch.float64, torch.float32, torch.bfloat16):
                mine = shard(converted(make(), dtype), sizes[world], rank)
                loss: Any = vocab_parallel_linear_labo_cross_entropy(**mine)
                results[name, dtype] = loss.detach(), gradients(loss, mine)
        for name in WITH_STATISTICS:
            sizes, make = CASES[name]
            mine = shard(converted(make(), torch.float64), sizes[world], rank)
            results["statistics", name] = vocab_parallel_linear_labo_cross_entropy(**mine, return_statistics=True)
        results["bad"] = {name: error(**arguments) for name, (arguments, _, _) in BAD.items()}
        results["disagree"] = {name: error(**make(min(rank, 1))) for name, (make, _, _) in DISAGREE.items()}
        results["crossing"] = crossing()
        results["twice"] = twice()
        results |= dtensors(world)
        results["dtensor errors"] = dtensor_errors(rank, world)
        results |= fsdp(rank, world)
        dist.destroy_process_group()
    except Exception:
        results["failed"] = traceback.format_exc()
    torch.save(results, folder / f"{rank}.pt")


def error(function: Callable[..., Any] = vocab_parallel_linear_labo_cross_entropy, **arguments: Any) -> Any:
    """(type, message) of the error that the arguments raise, or None."""
    try:
        function(**(PLAIN | arguments))
    except (TypeError, ValueError) as raised:
        return type(raised), str(raised)
    return None


def crossing() -> tuple[list[int], list[int]]:
    """How many numbers cross in each collective of the forward, and of the backward pass, of five rows by two."""
    numbers: list[int] = []

    def seen(function: Any, tensor: Any, *rest: Any, **options: Any) -> Any:
        numbers.append(tensor.numel())
        return function(tensor, *rest, **options)

    hidden, weight = torch.randn(5, WIDTH, requires_grad=True), torch.randn(300, WIDTH, requires_grad=True)
    with ExitStack() as stack:
        for name in ("all_reduce", "all_gather", "all_gather_into_tensor", "broadcast", "reduce", "send"):
            stack.enter_context(patch.object(dist, name, functools.partial(seen, getattr(dist, name))))
        loss: Any = vocab_parallel_linear_labo_cross_entropy(hidden, weight, torch.arange(5), chunk_rows=2)
        forward = numbers[:]
        loss.backward()
    return forward, numbers[len(forward) :]


def twice() -> str:
    hidden = torch.ones(2, WIDTH, requires_grad=True)
    arguments: Case = {**PLAIN, "input": hidden}
    loss: Any = vocab_parallel_linear_labo_cross_entropy(**arguments)
    try:
        torch.autograd.grad(loss, hidden, create_graph=True)
    except RuntimeError as raised:
        return str(raised)
    return ""


def sharded(case: Case, mesh: Any) -> Case:
    """A case whose head is a DTensor, sharded on its classes."""
    made = {name: distribute_tensor(case[name].detach(), mesh, [Shard(0)]).requires_grad_() for name in LEAVES[1:]}
    return {**case, "input": case["input"].detach().clone().requires_grad_(), **made}


def dtensors(world: int) -> dict[str, Any]:
    """The public losses with a head that is a DTensor: their results, by the name of the loss."""
    mesh = init_device_mesh("cpu", (world,))
    case = converted(layer(prior=prior("random"), weight=CLASS_WEIGHTS), torch.float64)
    results: dict[str, Any] = {}
    for name, options in (("function", {}), ("replicated input", {}), ("module", {}), ("regularizer", {})):
        mine = sharded(case, mesh) | options
        hidden, weight, bias = (mine[leaf] for leaf in LEAVES)
        if name == "replicated input":
            mine["input"] = hidden = distribute_tensor(hidden.detach(), mesh, [Replicate()]).requires_grad_()
        if name == "module":
            criterion = labo.LinearLABOLoss(mine["weight"], prior=mine["prior"])
            loss = criterion(hidden, weight, mine["target"], bias)
        elif name == "regularizer":
            regularizer = labo.regularizers.create("labo")
            loss = labo.LabelRegularizedLoss(regularizer).linear(hidden, weight, mine["target"], bias)
        else:
            loss = labo.linear_labo_cross_entropy(**mine)
        assert isinstance(loss, Tensor)
        grads = [grad.full_tensor() if hasattr(grad, "full_tensor") else grad for grad in gradients(loss, mine)]
        results[name] = loss.detach(), grads
    return results


def dtensor_errors(rank: int, world: int) -> dict[str, Any]:
    """What is said of DTensors that are sharded otherwise."""
    mesh, other = init_device_mesh("cpu", (world,)), init_device_mesh("cpu", (1, world))
    weight = distribute_tensor(torch.zeros(8, WIDTH), mesh, [Shard(0)])
    hidden = torch.ones(2, WIDTH)
    wrong = {
        "replicated": {"linear_weight": distribute_tensor(torch.zeros(8, WIDTH), mesh, [Replicate()])},
        "width": {"linear_weight": distribute_tensor(torch.zeros(8, WIDTH), mesh, [Shard(1)])},
        "two dimensions": {"linear_weight": distribute_tensor(torch.zeros(8, WIDTH), other, [Replicate(), Shard(0)])},
        "other classes": {"linear_weight": slice_of(8 + 2 * min(rank, 1), mesh)},
        "plain bias": {"linear_bias": torch.zeros(8)},
        "bias on another mesh": {"linear_bias": distribute_tensor(torch.zeros(8), other, [Replicate(), Shard(0)])},
        "input on another mesh": {"input": distribute_tensor(hidden, other, [Replicate(), Replicate()])},
        "sharded input": {"input": distribute_tensor(hidden, mesh, [Shard(0)])},
        "impl": {"impl": "blocked"},
        "probabilities": {"target": torch.full((2, 8), 0.125)},
        "differentiable": {"return_statistics": True, "differentiable": True},
        "learnt alpha": {"alpha": torch.tensor(0.1, requires_grad=True)},
        "other examples": {"target": torch.tensor([0, min(rank, 1)])},
    }
    return {
        name: error(labo.linear_labo_cross_entropy, **({"linear_weight": weight} | arguments))
        for name, arguments in wrong.items()
    }


def slice_of(classes: int, mesh: Any) -> Any:
    """A slice of a head of so many classes, which need not be as many on every rank."""
    local, shape = torch.zeros(4, WIDTH), torch.Size([classes, WIDTH])
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=shape, stride=(WIDTH, 1))


class Whole(nn.Module):
    """A network that computes its loss in its forward pass, where fully_shard has its head whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 9)

    def forward(self, features: Tensor, target: Tensor | None = None) -> Tensor:
        hidden = self.body(features).tanh()
        if target is None:
            return hidden
        return labo.linear_labo_cross_entropy(
            hidden, self.head.weight, target, linear_bias=self.head.bias, impl="blocked"
        )


def examples(rank: int) -> tuple[Tensor, Tensor]:
    """Other examples for each rank."""
    draw = torch.Generator().manual_seed(rank)
    return torch.randn(6, WIDTH, generator=draw), torch.randint(9, (6,), generator=draw)


def fsdp(rank: int, world: int) -> dict[str, Any]:
    """Gradients under fully_shard, whose ranks have examples of their own, with the head whole in three ways."""
    mesh = init_device_mesh("cpu", (world,))
    results: dict[str, Any] = {}
    for name in ("within forward", "after forward", "gathered"):
        model: Any = Whole()
        if name == "gathered":
            fully_shard(model.head, mesh=mesh)
        fully_shard(model, mesh=mesh)
        features, target = examples(rank)
        if name == "within forward":
            loss = model(features, target)
        else:
            hidden, parts = model(features), (model.head.weight, model.head.bias)
            if name == "gathered":
                parts = tuple(part.full_tensor(grad_placements=[Partial("avg")]) for part in parts)
            loss = labo.linear_labo_cross_entropy(hidden, parts[0], target, linear_bias=parts[1], impl="blocked")
        loss.backward()
        results[name] = {key: parameter.grad.full_tensor() for key, parameter in model.named_parameters()}
    return results
