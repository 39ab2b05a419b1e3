"""What importing the package costs and gives."""

from __future__ import annotations

import torch

import labo
from launch import run_python


def test_importing_labo_imports_nothing_heavy():
    code = (
        "import labo, sys; print([m for m in ('torch', 'transformers', 'sklearn', 'matplotlib') if m in sys.modules])"
    )
    assert run_python("-c", code).stdout == "[]\n"


def test_every_public_name_is_there():
    for name in labo.__all__:
        assert getattr(labo, name) is not None


def test_modules_are_their_functions():
    z, y, h, w = torch.randn(4, 5), torch.tensor([0, 1, -1, 3]), torch.randn(4, 2), torch.randn(5, 2)
    options = {"alpha": 0.3, "beta": 4.0, "weight": torch.rand(5), "ignore_index": -1, "prior": torch.full((5,), 0.2)}
    torch.testing.assert_close(labo.LABOLoss(**options)(z, y), labo.labo_cross_entropy(z, y, **options))
    torch.testing.assert_close(
        labo.LinearLABOLoss(**options)(h, w, y), labo.linear_labo_cross_entropy(h, w, y, **options)
    )
    assert "alpha=0.3" in repr(labo.LABOLoss(**options))
