"""The tables of docs/losses.md, from the code: the options that each form of the loss and each implementation takes.

    python benchmarks/loss_pages.py docs/losses.md

An implementation is asked by `labo.kernels.choose`, as the losses ask it, and computes nothing; the forms whose classes
are split over ranks, which have no implementations to choose from, are called in a group of one process. The tables are
the same on every machine: what is not installed here is taken to be there.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

import labo
from labo import kernels, reduction
from labo.errors import UserError
from labo.kernels import numba, triton
from labo.kernels.options import ARGUMENTS, LossOptions

START, END = "<!-- made by benchmarks/loss_pages.py: {} -->", "<!-- end -->"
ROWS, CLASSES = 4, 6
SPLIT: dict[str, Any] = {
    "vocab_parallel_labo_cross_entropy": labo.vocab_parallel_labo_cross_entropy,
    "vocab_parallel_linear_labo_cross_entropy": labo.vocab_parallel_linear_labo_cross_entropy,
}
FORMS: dict[str, Any] = {
    "labo_cross_entropy": labo.labo_cross_entropy,
    "LABOLoss": labo.LABOLoss,
    "linear_labo_cross_entropy": labo.linear_labo_cross_entropy,
    "LinearLABOLoss": labo.LinearLABOLoss,
    **SPLIT,
}
# Arguments that some forms have besides those they share.
OWN_ARGUMENTS = ("inplace_backward", "linear_bias", "chunk_rows", "accumulate", "group", "examples")


def _learnt(*shape: int) -> Tensor:
    return torch.full(shape, 0.5, requires_grad=True)


def _cases() -> dict[str, dict[str, Any]]:
    """What is asked of an implementation, by the words of the page; `logits`, `target` and `under` are the call's."""
    per_row = torch.full((ROWS, CLASSES), 1 / CLASSES)
    with_zero = torch.tensor([0.0, *[1 / (CLASSES - 1)] * (CLASSES - 1)])
    return {
        "class indices": {},
        "probabilities as target": {"target": per_row},
        "`weight`, `ignore_index`, `row_weight`, `denominator`": {
            "weight": torch.ones(CLASSES), "row_weight": torch.ones(ROWS), "denominator": 2.0,
        },
        "`alpha`, `beta` per row": {"alpha": torch.full((ROWS,), 0.1), "beta": torch.full((ROWS,), 2.0)},
        "alpha · beta above 8": {"alpha": 0.5, "beta": 40.0},
        "`prior` (C,)": {"prior": per_row[0]},
        "`prior` (C,) with zeros": {"prior": with_zero},
        "`prior` per row": {"prior": per_row},
        "`prior` per row at beta = inf": {"prior": per_row, "beta": math.inf},
        '`value="plugin"`': {"value": "plugin"},
        "`z_loss`": {"z_loss": 1e-4},
        "`softcap`": {"softcap": 30.0},
        "`return_statistics`": {"return_statistics": True},
        "`differentiable`": {"return_statistics": True, "differentiable": True},
        "gradient in `alpha`, `beta`": {"alpha": _learnt(), "beta": _learnt()},
        "gradient in `prior`": {"prior": torch.full((CLASSES,), 1 / CLASSES, requires_grad=True)},
        "gradient in `weight`": {"weight": _learnt(CLASSES)},
        "gradient in `row_weight`": {"row_weight": _learnt(ROWS)},
        "bfloat16": {"logits": torch.bfloat16},
        "float16": {"logits": torch.float16},
        "float64": {"logits": torch.float64},
        "torch.func": {"under": "functional transform"},
        "forward mode": {"under": "forward mode"},
    }  # fmt: skip


def form_table() -> Iterator[str]:
    """Which argument each form has."""
    yield f"| argument | {' | '.join(f'`{name}`' for name in FORMS)} |"
    yield "|---" * (len(FORMS) + 1) + "|"
    for argument in (*ARGUMENTS, *OWN_ARGUMENTS):
        has = (_has(form, argument) for form in FORMS.values())
        yield f"| `{argument}` | {' | '.join(has)} |"


def _has(form: Any, argument: str) -> str:
    if argument in inspect.signature(form).parameters:
        return "yes"
    called = isinstance(form, type) and argument in inspect.signature(form.forward).parameters
    return "in the call" if called else "–"


def implementation_table() -> Iterator[str]:
    """What each implementation and each split form supports, else the one that its error names."""
    names = kernels.IMPLEMENTATIONS
    yield f"| what | {' | '.join(f'`{name}`' for name in (*names, *SPLIT))} |"
    yield "|---" * (len(names) + len(SPLIT) + 1) + "|"
    with _everything_is_installed(), _group_of_one():
        for words, case in _cases().items():
            answers = (*(_supported(name, **case) for name in names), *(_taken(name, **case) for name in SPLIT))
            yield f"| {words} | {' | '.join(answers)} |"


@contextmanager
def _everything_is_installed() -> Iterator[None]:
    with (
        mock.patch.object(numba, "unavailable_reason", return_value=None),
        mock.patch.object(triton, "unavailable_reason", return_value=None),
        mock.patch.object(triton, "interpreted", return_value=True),
    ):
        yield


@contextmanager
def _group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _supported(
    impl: str, *, logits: torch.dtype = torch.float32, target: Tensor | None = None, under: str = "", **options: Any
) -> str:
    given = LossOptions(impl=impl, **options)
    given.check()

    def ask(z: Tensor) -> Tensor:
        weights: dict[str, Any] = {"row_weight": given.row_weight, "signed": given.weights_signed}
        rows = reduction.as_rows(z, _target(target), given.weight, given.ignore_index, **weights)
        sources = reduction.weight_sources(rows, given.count(rows.raw))
        kernels.choose(impl, (rows.raw,), rows.target, given.of_rows(rows), sources)
        return z.sum()

    try:
        _call(ask, logits, under)
    except UserError as error:
        return f"→ `{str(error).rpartition('use impl=')[2].strip(chr(39) + '.')}`"
    return "yes"


def _taken(
    name: str, *, logits: torch.dtype = torch.float32, target: Tensor | None = None, under: str = "", **options: Any
) -> str:
    form = SPLIT[name]
    if not inspect.signature(form).parameters.keys() >= options.keys():
        return "–"

    def ask(z: Tensor) -> Tensor:
        layer = (torch.eye(CLASSES, dtype=logits),) if "linear" in name else ()
        form(z, *layer, _target(target), **options)
        return z.sum()

    try:
        _call(ask, logits, under)
    except (TypeError, ValueError) as error:
        (other,) = re.findall(r"use labo\.(\w+)", str(error))
        return f"→ `{other}`"
    return "yes"


def _target(target: Tensor | None) -> Tensor:
    return torch.zeros(ROWS, dtype=torch.long) if target is None else target


def _call(ask: Callable[[Tensor], Tensor], dtype: torch.dtype, under: str) -> None:
    """Ask with logits of a dtype, plain or under a transform."""
    logits = torch.zeros(ROWS, CLASSES, dtype=dtype)
    if under == "forward mode":
        with forward_ad.dual_level():
            ask(forward_ad.make_dual(logits, torch.ones_like(logits)))
    else:
        (torch.func.grad(ask) if under else ask)(logits)


def filled(page: str) -> str:
    """The page with its tables made anew."""
    for name, table in (("forms", form_table()), ("implementations", implementation_table())):
        before, start, rest = page.partition(START.format(name) + "\n")
        if not start:
            raise UserError(f"The page has no line '{START.format(name)}'.")
        page = before + start + "\n".join(table) + "\n" + END + rest.partition(END)[2]
    return page


def main() -> None:
    """Write the tables into the page."""
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
