"""The timed steps: forward and backward of the losses of this package and of installed peers."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import labo
from labo import functional, reduction
from labo.kernels.options import Options

ALPHA, BETA = 0.1, 2.0
# All ratios are relative to this implementation.
BASELINE = "torch, smoothed"
# Except these, relative to the loss without statistics: what the statistics cost.
BASELINES = {"labo, statistics / labo": "labo", "labo, blocked, statistics / blocked": "labo, blocked"}
# The reference is written for correctness, so it is only timed on small batches.
_REFERENCE_ELEMENTS = 2**20
# (rows per chunk, accumulation dtype of the weight gradient), besides the defaults.
_LAYER_OPTIONS = ((1024, "float32"), (4096, "float32"), (1024, "input"), (2048, "input"), (4096, "input"))

Step = Callable[[], None]


@dataclass(frozen=True)
class ProblemShape:
    """N rows of V classes; D is the width of the last layer, 0 for a loss of logits."""

    rows: int
    classes: int
    width: int = 0
    dtype: torch.dtype = torch.float32

    @property
    def logits_bytes(self) -> int:
        """The size of the logits in bytes."""
        return self.rows * self.classes * self.dtype.itemsize


def naive(logits: Tensor, target: Tensor) -> Tensor:
    """LABO written naively: q* detached, three softmaxes."""
    label = (logits.detach().float() / BETA).softmax(-1)
    log_p = logits.float().log_softmax(-1)
    data = F.nll_loss(log_p, target)
    return (1 - ALPHA) * data - ALPHA * (label * log_p).sum(-1).mean()


def implementations(shape: ProblemShape, *, device: str = "cpu", compiled: bool = False) -> dict[str, Step]:
    """Timed steps by name for a shape, the baseline first."""
    generator = torch.Generator(device=device).manual_seed(0)
    target = torch.randint(shape.classes, (shape.rows,), generator=generator, device=device)
    if shape.width:
        return _layer_implementations(shape, target, generator)
    logits = torch.randn(shape.rows, shape.classes, generator=generator, device=device)
    logits = logits.to(shape.dtype).requires_grad_()
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        BASELINE: lambda z, y: F.cross_entropy(z, y, label_smoothing=ALPHA),
        "torch": F.cross_entropy,
        "labo": _labo(beta=BETA),
        "labo, beta 3": _labo(beta=3.0),
        "labo, smoothing": _labo(beta=math.inf),
        "labo, statistics / labo": _labo_statistics(),
        "naive": naive,
    }
    if device != "cpu":
        uniform = torch.full((shape.classes,), 1 / shape.classes, device=device)
        losses |= {
            "labo, beta 2.5": _labo(beta=2.5),
            "labo, beta 50": _labo(beta=50.0),
            "labo, prior": _labo(beta=BETA, prior=uniform),
        }
    if device == "cpu" and "numba" in labo.implementations():
        losses["labo, blocked"] = _labo(beta=BETA, impl="blocked")
        losses["labo, blocked, statistics / blocked"] = _labo_statistics(impl="blocked")
    if logits.numel() <= _REFERENCE_ELEMENTS:
        losses["labo, reference"] = _labo(beta=BETA, impl="reference")
    if compiled:
        losses |= {"naive, compiled": torch.compile(naive), "labo, compiled": torch.compile(_labo(beta=BETA))}
    steps = {name: _step(loss, (logits,), target) for name, loss in losses.items()}
    if device != "cpu":
        # These overwrite the logits with their gradient, so each gets a copy.
        inplace = {"labo, in place": _labo_inplace}
        if importlib.util.find_spec("liger_kernel"):
            inplace["liger, smoothed"] = _liger_logits
        for name, loss in inplace.items():
            steps[name] = _step(loss, (logits.detach().clone().requires_grad_(),), target)
    return steps


def _labo(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: labo.labo_cross_entropy(z, y, alpha=ALPHA, **options)


def _labo_statistics(**options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    given: dict[str, Any] = {"alpha": ALPHA, "beta": BETA, **options}
    return lambda z, y: labo.labo_cross_entropy(z, y, return_statistics=True, **given).loss


def _layer_statistics(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    given: dict[str, Any] = {"alpha": ALPHA, "beta": BETA}
    return labo.linear_labo_cross_entropy(hidden, weight, target, return_statistics=True, **given).loss


def _labo_inplace(logits: Tensor, target: Tensor) -> Tensor:
    # The public function rejects a leaf, whose values would be lost; here they are not needed.
    rows = reduction.as_rows(logits, target, None, -100)
    return functional.reduced(rows, Options(ALPHA, BETA), "mean", logits.dtype, inplace=True)


def _liger_logits(logits: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_cross_entropy  # pyright: ignore[reportMissingImports]

    return liger_cross_entropy(logits, target, label_smoothing=ALPHA)


def _labo_layer(chunk_rows: int, accumulate: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    options: dict[str, Any] = {"alpha": ALPHA, "beta": BETA, "chunk_rows": chunk_rows, "accumulate": accumulate}
    return lambda h, w, y: labo.linear_labo_cross_entropy(h, w, y, **options)


def _liger_layer(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from liger_kernel.transformers import functional  # pyright: ignore[reportMissingImports]

    return functional.liger_fused_linear_cross_entropy(hidden, weight, target, label_smoothing=ALPHA)


def _cut_layer(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy  # pyright: ignore[reportMissingImports]

    return linear_cross_entropy(hidden, weight, target)


def _layer_implementations(shape: ProblemShape, target: Tensor, generator: torch.Generator) -> dict[str, Step]:
    device = target.device
    hidden = torch.randn(shape.rows, shape.width, generator=generator, device=device)
    hidden = hidden.to(shape.dtype).requires_grad_()
    weight = torch.randn(shape.classes, shape.width, generator=generator, device=device)
    weight = weight.div_(math.sqrt(shape.width)).to(shape.dtype).requires_grad_()
    losses: dict[str, Callable[..., Tensor]] = {
        BASELINE: lambda h, w, y: F.cross_entropy(h @ w.T, y, label_smoothing=ALPHA),
        "torch": lambda h, w, y: F.cross_entropy(h @ w.T, y),
        "labo": lambda h, w, y: labo.linear_labo_cross_entropy(h, w, y, alpha=ALPHA, beta=BETA),
        "labo, smoothing": lambda h, w, y: labo.linear_labo_cross_entropy(h, w, y, alpha=ALPHA, beta=math.inf),
        "labo, statistics / labo": _layer_statistics,
    }
    if device.type != "cpu":
        for rows, accumulate in _LAYER_OPTIONS:
            losses[f"labo, {rows} rows, {accumulate}"] = _labo_layer(rows, accumulate)
    fused = getattr(F, "linear_cross_entropy", None)
    if fused is not None:
        losses["torch, linear_cross_entropy"] = fused
    if device.type != "cpu" and importlib.util.find_spec("liger_kernel"):
        losses["liger, smoothed"] = _liger_layer
    if device.type != "cpu" and importlib.util.find_spec("cut_cross_entropy"):
        losses["cut cross-entropy"] = _cut_layer
    return {name: _step(loss, (hidden, weight), target) for name, loss in losses.items()}


def _step(loss: Callable[..., Tensor], leaves: tuple[Tensor, ...], target: Tensor) -> Step:
    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(*leaves, target).backward()
        for leaf in leaves:
            leaf.grad = None

    return step
