"""What is right on a GPU: every variant of the Triton kernels, and the public losses, beside the reference in float64.

`benchmarks/gpu.py` runs these checks. With TRITON_INTERPRET=1 they run on the CPU, which a test does on small sizes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from labo import labo_cross_entropy, linear_labo_cross_entropy
from labo.kernels import autograd, reference
from labo.kernels import triton as implementation
from labo.kernels.options import Options
from labo.kernels.statistics import CORRECT, new_buffer

DEVICE = "cpu" if implementation.interpreted() else "cuda"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ALPHA = 0.3

Line = dict[str, Any]

# (rows, classes): held rows, swept rows whose addresses are aligned and not, rows in parts.
SIZES = (
    (9, 1), (9, 2), (40, 10), (33, 252), (33, 507), (33, 1000), (33, 1024), (17, 2000), (300, 4097), (7, 32000),
    (300, 32000), (5, 128256), (280, 128256),
)  # fmt: skip
BETAS: tuple[float | str, ...] = (2.0, 3.0, 4.0, 1.5, 50.0, math.inf, "rows")


def correctness_cases() -> list[Line]:
    """What is checked, one kernel each."""
    cases = []
    for rows, classes in SIZES:
        for dtype in DTYPES:
            for beta in BETAS if dtype != "float16" else (2.0, "rows"):
                for prior in (
                    (False, True) if beta in (1.5, 50.0, math.inf, "rows") and dtype != "float16" else (False,)
                ):
                    options = "prior" if prior else ""
                    cases.append({"rows": rows, "classes": classes, "dtype": dtype, "beta": beta, "options": options})
    for options in ("strided", "in place", "no gradient", "per-row alpha", "scalar tensors", "far logits", "tiny beta"):
        for rows, classes in ((33, 1000), (300, 5000), (5, 32000)):
            for dtype in ("float32", "bfloat16"):
                cases.append({"rows": rows, "classes": classes, "dtype": dtype, "beta": 2.0, "options": options})
    cases += [{"rows": 64, "classes": 1000, "dtype": "float32", "beta": 2.0, "options": name} for name in CHECKS]
    return cases


# What is off by default, alone and together; row weights below 0 change the sign of a row's loss.
EXTRAS: dict[str, dict[str, float]] = {
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 5.0},
    "statistics": {},
    "row_weight": {},
    "z_loss, softcap, statistics, row_weight": {"z_loss": 1e-2, "softcap": 5.0},
}
# Held rows, swept rows, rows in parts: those of the section that times them are compiled here.
EXTRA_SIZES = ((40, 10), (300, 1000), (300, 32768), (7, 32768))


def option_cases() -> list[Line]:
    """What is checked of the options that are off by default."""
    cases = []
    for (rows, classes), options in product(EXTRA_SIZES, EXTRAS):
        for dtype, beta in product(("float32", "bfloat16"), (2.0, math.inf, "rows")):
            for prior in ("", "prior, ") if beta == math.inf else ("",):
                cases.append(
                    {"rows": rows, "classes": classes, "dtype": dtype, "beta": beta, "options": prior + options}
                )
    about = {"rows": 64, "classes": 1000, "dtype": "float32", "beta": 2.0}
    return cases + [{**about, "options": name} for name in OPTION_CHECKS]


def check_kernel(case: Line) -> Line:
    """Errors of one variant beside float64: losses by max(1, |loss|), gradients by row or by their dtype's rounding."""
    rows, classes, dtype, extra = case["rows"], case["classes"], DTYPES[case["dtype"]], case["options"]
    draw = torch.Generator(device=DEVICE).manual_seed(rows * 1000 + classes)
    scale = 1e4 if extra == "far logits" else 4.0
    logits = torch.randn(rows, classes, generator=draw, device=DEVICE) * scale
    if extra == "far logits":
        logits += 1e4
    target = torch.randint(classes, (rows,), generator=draw, device=DEVICE)
    logits[1] = torch.where(torch.rand(classes, generator=draw, device=DEVICE) < 0.4, -math.inf, logits[1])
    logits[1, target[1]] = 1.0
    weights = torch.rand(rows, generator=draw, device=DEVICE) + 0.1
    if "row_weight" in extra:
        weights[::2] *= -1
    weights[::5] = 0.0
    logits = logits.to(dtype)
    truth_logits = logits.double()
    logits[::5] = math.nan  # rows of weight 0 are not read
    if extra == "strided":
        logits = logits.T.contiguous().T
    alpha, beta, prior = _options(case, rows, classes, draw)
    wide: list[Any] = [value.double() if isinstance(value, Tensor) else value for value in (alpha, beta)]
    more: dict[str, Any] = EXTRAS.get(extra.removeprefix("prior, "), {})
    buffers: Line = {"statistics": new_buffer(weights)} if "statistics" in extra else {}
    truths: Line = {"statistics": new_buffer(weights.double())} if buffers else {}
    truth = reference.solve(
        truth_logits, target, weights.double(), Options(wide[0], wide[1], prior, **more), gradient=True, **truths
    )
    gradient = extra != "no gradient"
    out = {"out": logits} if extra == "in place" else {}
    losses, grads = implementation.solve(
        logits, target, weights, Options(alpha, beta, prior, **more), gradient=gradient, **out, **buffers
    )
    true_losses, true_grads = truth
    assert true_grads is not None
    loss_error = ((losses - true_losses).abs() / true_losses.abs().clamp(min=1)).max().item()
    if buffers:
        loss_error = max(loss_error, _statistics_error(buffers["statistics"], truths["statistics"]))
    grad_error = 0.0
    if grads is not None:
        off = (grads.double() - true_grads).abs()
        if dtype == torch.float32:
            grad_error = (off.norm(dim=-1) / true_grads.norm(dim=-1).clamp(min=1)).max().item()
        else:
            ulp = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}[dtype]
            floor = 6e-8 if dtype == torch.float16 else 0.0
            grad_error = ((off - 1e-6 - floor).clamp(min=0) / true_grads.abs().clamp(min=1e-30) / ulp).max().item()
    limit = 1e-5 if dtype == torch.float32 else 1.01
    ok = loss_error <= 1e-5 and grad_error <= limit and not math.isnan(loss_error + grad_error)
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


def _statistics_error(found: Tensor, truth: Tensor) -> float:
    """The largest error of the statistics by max(1, |value|); inf if `correct` or the rows that are not read differ."""
    read = ~truth.isnan()
    if not torch.equal(found.isnan(), ~read) or not torch.equal(found[CORRECT] == 1, truth[CORRECT] == 1):
        return math.inf
    return ((found - truth).abs() / truth.abs().clamp(min=1))[read].max().item()


def _options(
    case: Line, rows: int, classes: int, draw: torch.Generator
) -> tuple[float | Tensor, float | Tensor, Tensor | None]:
    beta: float | Tensor = case["beta"]
    alpha: float | Tensor = ALPHA
    if case["beta"] == "rows":
        some = torch.tensor([0.5, 2.0, 20.0, 1e5, math.inf], device=DEVICE)
        beta = some[torch.arange(rows, device=DEVICE) % 5]
    if case["options"] == "per-row alpha":
        alpha = torch.rand(rows, generator=draw, device=DEVICE)
    if case["options"] == "scalar tensors":
        alpha, beta = torch.tensor(ALPHA, device=DEVICE), torch.tensor(2.0, device=DEVICE)
    if case["options"] == "tiny beta":
        beta = 1e-30
    prior = None
    if case["options"].startswith("prior"):
        prior = torch.rand(classes, generator=draw, device=DEVICE, dtype=torch.float64) ** 6 + 1e-9
        prior = prior / prior.sum()
    return alpha, beta, prior


@contextlib.contextmanager
def _without_waits() -> Iterator[None]:
    """Any wait for the device in this context is an error."""
    if DEVICE == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _all_options(rows: int, draw: torch.Generator) -> Line:
    """Every option of the public losses that is off by default."""
    weights = torch.rand(rows, generator=draw, device=DEVICE) - 0.3
    return {
        "z_loss": 1e-2,
        "softcap": 5.0,
        "row_weight": weights,
        "denominator": torch.tensor(40.0, device=DEVICE),
        "return_statistics": True,
    }


def _total(found: Any) -> Tensor:
    """One number of all that a loss returns."""
    if isinstance(found, Tensor):
        return found
    return found.loss + sum(value.double().nansum().detach() for value in found[1:])


def check_public(inplace: bool = False, extras: bool = False) -> Line:
    """The public function trains, and waits for the device nowhere."""
    draw = torch.Generator(device=DEVICE).manual_seed(0)
    leaf = torch.randn(PUBLIC_ROWS, 1000, generator=draw, device=DEVICE).requires_grad_()
    target = torch.randint(1000, (PUBLIC_ROWS,), generator=draw, device=DEVICE)
    target[::5] = -100
    wide = leaf.detach().double().requires_grad_()
    options = _all_options(PUBLIC_ROWS, draw) if extras else {}
    true_loss = _total(labo_cross_entropy(wide, target, impl="reference", **options))
    (true_grad,) = torch.autograd.grad(true_loss, wide)
    with _without_waits():
        loss = _total(labo_cross_entropy(leaf * 1, target, inplace_backward=inplace, **options))
        (grad,) = torch.autograd.grad(loss, leaf)
    loss_error = ((loss - true_loss).abs() / true_loss.abs().clamp(min=1)).item()
    grad_error = (grad - true_grad).norm().item()
    ok = loss_error < 1e-5 and grad_error < 1e-5
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


def check_scale() -> Line:
    """The gradient is scaled where the scalar is not 1, and left alone where it is; neither waits."""
    grads = torch.randn(3, 100_003, device=DEVICE)
    before = grads.clone()
    factors = [torch.tensor(value, device=DEVICE) for value in (1.0, 0.3)]
    autograd.scale_gradient(grads, factors[0])  # compiles
    with _without_waits():
        same = autograd.scale_gradient(grads, factors[0]).clone()
        scaled = autograd.scale_gradient(grads, factors[1])
    return {"ok": int(torch.equal(same, before) and torch.equal(scaled, before * factors[1]))}


def check_layer(extras: bool = False) -> Line:
    """The loss through the last layer waits for the device nowhere, and is that of the product."""
    draw = torch.Generator(device=DEVICE).manual_seed(0)
    hidden, weight = (
        torch.randn(n, 64, generator=draw, device=DEVICE).requires_grad_() for n in (LAYER_ROWS, LAYER_CLASSES)
    )
    target = torch.randint(LAYER_CLASSES, (LAYER_ROWS,), generator=draw, device=DEVICE)
    target[::5] = -100
    options = _all_options(LAYER_ROWS, draw) if extras else {}
    wide = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    true_loss = _total(labo_cross_entropy(wide[0] @ wide[1].T, target, impl="reference", **options))
    true_grads = torch.autograd.grad(true_loss, wide)
    torch.backends.cuda.matmul.allow_tf32 = False
    # Compiles the kernels.
    torch.autograd.grad(_total(linear_labo_cross_entropy(hidden, weight, target, **options)), (hidden, weight))
    with _without_waits():
        loss = _total(linear_labo_cross_entropy(hidden, weight, target, **options))
        grads = torch.autograd.grad(loss, (hidden, weight))
    loss_error = ((loss - true_loss).abs() / true_loss.abs()).item()
    grad_error = max(((a - b).norm() / b.norm()).item() for a, b in zip(grads, true_grads, strict=True))
    ok = loss_error < 1e-5 and grad_error < 1e-4
    return {"loss_error": f"{loss_error:.2e}", "grad_error": f"{grad_error:.2e}", "ok": int(ok)}


PUBLIC_ROWS, LAYER_ROWS, LAYER_CLASSES = 64, 300, 5000
CHECKS: dict[str, Callable[[], Line]] = {
    "public": check_public,
    "public, in place": partial(check_public, inplace=True),
    "scale": check_scale,
    "layer": check_layer,
}
OPTION_CHECKS: dict[str, Callable[[], Line]] = {
    "public, all options": partial(check_public, extras=True),
    "public, all options, in place": partial(check_public, inplace=True, extras=True),
    "layer, all options": partial(check_layer, extras=True),
}


def run_case(section: str, case: Line) -> Line:
    """One line; an error is a line too."""
    try:
        check = (CHECKS | OPTION_CHECKS).get(case["options"])
        return {"section": section, **case, **(check() if check else check_kernel(case))}
    except Exception as error:
        return {"section": section, **case, "ok": 0, "note": error_note(error)}


def error_note(error: BaseException) -> str:
    """The last line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1] if text else ''}"[:300]
