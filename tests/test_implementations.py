"""Which implementation is taken, and what each refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import labo
from labo import kernels
from labo.errors import UserError
from labo.kernels import blocked, choose, numba, triton
from labo.kernels.options import Options

TARGET = torch.tensor([0, 1])


def test_on_the_cpu_it_is_the_compiled_one_or_the_blocked_one():
    fastest = numba.solve if numba.unavailable_reason() is None else blocked.solve
    assert choose("auto", (torch.zeros(2, 3),), TARGET, Options(0.1, 2.0)) is fastest
    assert choose("auto", (torch.zeros(2, 3).double(),), TARGET, Options(0.1, 2.0)) is blocked.solve
    assert choose("reference", (torch.zeros(2, 3),), TARGET, Options(0.1, 2.0)) is None


def test_elsewhere_it_is_not():
    logits = torch.zeros(2, 3, device="meta")
    assert choose("auto", (logits,), TARGET, Options(0.1, 2.0)) is None
    with pytest.raises(UserError, match="cannot be traced"):
        choose("blocked", (logits,), TARGET, Options(0.1, 2.0))


@pytest.mark.skipif(triton.unavailable_reason() is None, reason="Triton runs here")
def test_triton_says_what_it_lacks():
    assert "triton" not in labo.implementations()
    with pytest.raises(UserError, match=r"impl='triton' cannot run here: (the package|there is no CUDA device)"):
        labo.labo_cross_entropy(torch.zeros(2, 3), TARGET, impl="triton")


@pytest.mark.skipif(triton.unavailable_reason() is not None, reason=f"no Triton here: {triton.unavailable_reason()}")
def test_triton_trains_as_the_reference_does():
    device = "cpu" if triton.interpreted() else "cuda"
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    target = torch.tensor([0, -100, 3, 8, 2, 2], device=device)
    assert "triton" in labo.implementations()
    cases: list[dict[str, Any]] = [
        {},
        {"reduction": "none"},
        {"beta": 1e4},
        {"prior": torch.rand(9).softmax(-1).to(device)},
    ]
    for options in cases:
        found, expected = (
            labo.labo_cross_entropy(logits, target, impl=impl, **options) for impl in ("triton", "reference")
        )
        torch.testing.assert_close(found, expected)
        ours, theirs = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, expected))
        torch.testing.assert_close(ours, theirs)
    hidden, weight = (torch.randn(n, 4, device=device).requires_grad_() for n in (6, 9))
    found, expected = (
        labo.linear_labo_cross_entropy(hidden, weight, target, impl=impl) for impl in ("triton", "reference")
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, (hidden, weight)) for loss in (found, expected)))


@pytest.mark.skipif(triton.unavailable_reason() is not None, reason=f"no Triton here: {triton.unavailable_reason()}")
@pytest.mark.parametrize(
    ("dtype", "options", "told"),
    [
        (torch.float64, {}, "takes float32, bfloat16 and float16, but got torch.float64"),
        (torch.float32, {"value": "plugin"}, "not the plug-in value"),
        (torch.float32, {"prior": torch.full((2, 3), 1 / 3)}, "one prior for all rows"),
        (torch.float32, {"target": torch.full((2, 3), 1 / 3)}, "class indices, not probabilities"),
    ],
)
def test_what_triton_cannot_do_names_what_can(dtype, options, told):
    logits = torch.zeros(2, 3, dtype=dtype)
    given: dict[str, Any] = {"target": TARGET, **options}
    with pytest.raises(UserError, match=rf"impl='triton' .*{told}; use impl='reference'"):
        labo.labo_cross_entropy(logits, impl="triton", **given)


@pytest.mark.skipif(triton.unavailable_reason() is not None, reason=f"no Triton here: {triton.unavailable_reason()}")
@pytest.mark.parametrize(
    ("dtype", "options", "reason"),
    [
        (torch.float64, {}, "takes float32, bfloat16 and float16, but got torch.float64"),
        (torch.float32, {"prior": torch.full((2, 3), 1 / 3)}, "takes one prior for all rows"),
        (torch.float32, {"target": torch.full((2, 3), 1 / 3)}, "takes class indices, not probabilities"),
    ],
)
def test_on_a_gpu_the_slow_one_is_taken_with_one_warning(dtype, options, reason, monkeypatch):
    monkeypatch.setattr(kernels, "_fastest", lambda tensor: "triton")
    kernels._warn_of_reference.cache_clear()
    logits = torch.zeros(2, 3, dtype=dtype)
    given: dict[str, Any] = {"target": TARGET, **options}
    with pytest.warns(UserWarning, match=f"impl='reference', which is many times slower here: impl='triton' {reason}"):
        labo.labo_cross_entropy(logits, **given)
    labo.labo_cross_entropy(logits, **given)  # warnings are errors: there is no second one
