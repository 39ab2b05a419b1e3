from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

import labo
from labo.errors import UserError
from labo.kernels import triton

torch.set_num_threads(1)
settings.register_profile("labo", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("labo")
# A suite in the background, or under nohup, would hand ignored signals on to the commands that it interrupts.
for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(params=[name for name in labo.implementations() if name != "triton" or triton.interpreted()])
def impl(request: pytest.FixtureRequest) -> str:
    """Every implementation that runs on CPU tensors."""
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """A test over every implementation is skipped where one refuses what is asked and says which can do it."""
    try:
        return (yield)
    except UserError as error:
        if pyfuncitem.funcargs.get("impl") not in ("numba", "triton") or "; use impl=" not in str(error):
            raise
        pytest.skip(str(error))
