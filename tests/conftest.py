from __future__ import annotations

import pytest
import torch
from hypothesis import settings

import labo

torch.set_num_threads(1)
settings.register_profile("labo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("labo")


@pytest.fixture(params=[name for name in labo.implementations() if name != "triton"])
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation that takes all options; test_triton.py has the suite of the one that does not."""
    return request.param
