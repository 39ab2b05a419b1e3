from __future__ import annotations

import pytest
import torch
from hypothesis import settings

import labo

torch.set_num_threads(1)
settings.register_profile("labo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("labo")


@pytest.fixture(params=labo.implementations())
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation that this machine can run."""
    return request.param
