"""The numerical solver, which knows no closed form, beside the closed forms."""

from __future__ import annotations

import pytest
import torch

import labo


@pytest.mark.parametrize("beta", [0.2, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("with_prior", [False, True])
def test_the_closed_form_is_what_the_solver_finds(beta, with_prior):
    generator = torch.Generator().manual_seed(int(beta * 10))
    z = torch.randn(6, 8, generator=generator, dtype=torch.float64) * 4
    prior = torch.rand(8, generator=generator, dtype=torch.float64) + 0.05
    prior = prior / prior.sum() if with_prior else None
    q = labo.inner.solve(z, beta=beta, prior=prior)
    assert (q - labo.optimal_labels(z, beta=beta, prior=prior)).abs().max() < 1e-8


def test_another_divergence_meets_its_optimality_conditions():
    z = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = labo.inner.solve(z, beta=2.0, divergence="squared", tolerance=1e-9)
    # The projection of prior + log p / beta onto the simplex: sort and threshold (Held, Wolfe & Crowder 1974).
    v = 1 / 5 + z.log_softmax(-1) / 2.0
    ordered = v.sort(-1, descending=True).values
    excess = (ordered.cumsum(-1) - 1) / torch.arange(1, 6)
    threshold = excess.gather(-1, ((ordered > excess).sum(-1, keepdim=True) - 1))
    torch.testing.assert_close(q, (v - threshold).clamp(min=0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beta": float("inf")}, "finite"),
        ({"beta": 1.0, "divergence": "k"}, "divergence"),
        ({"beta": 1.0, "prior": torch.tensor([1.0, 0.0])}, "prior"),
    ],
)
def test_what_the_solver_cannot_do_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        labo.inner.solve(torch.zeros(2), **options)


def test_giving_up_is_told():
    with pytest.raises(RuntimeError, match="not solved"):
        labo.inner.solve(torch.tensor([3.0, 0.0]), beta=2.0, max_iterations=2)
