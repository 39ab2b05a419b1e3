"""What pytest leaves out of the doctests of the package."""

from __future__ import annotations

import importlib.util

# Its import needs Triton, which is there on machines with CUDA alone.
collect_ignore = [] if importlib.util.find_spec("triton") else ["labo/kernels/triton_kernels.py"]
