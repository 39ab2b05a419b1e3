"""What this machine is and has: versions, processor, cores. Imports none of what it reports on."""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import re
from pathlib import Path

from labo import __version__

DISTRIBUTION = "torch-labo"
# Imports that are called otherwise than the distribution that brings them.
_OTHER_NAMES = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# What a record tells of, beside labo and Python.
RECORDED = ("torch", "transformers", "numba", "triton")


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """The extras of this package, "dev" and collections aside, and the distributions that each brings."""
    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and extra[1] not in ("all", "dev"):
            found.setdefault(extra[1], []).append(name[0])
    return found


def extra_of(module: str) -> str | None:
    """The extra that brings an import, or None."""
    name = _OTHER_NAMES.get(module, module)
    return next((extra for extra, distributions in extras().items() if name in distributions), None)


def versions() -> dict[str, str]:
    """What a record says it was made with: versions, and the processor."""
    found = {"labo": __version__, "python": platform.python_version()}
    found |= {name: version for name in RECORDED if (version := package_version(name))}
    return found | {"processor": processor()}


def processor() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def launched() -> int:
    """How many processes were started to train together, as torchrun tells each of them; 1 without it."""
    world_size = os.environ.get("WORLD_SIZE", "")
    return int(world_size) if "RANK" in os.environ and world_size.isdigit() else 1


def cores() -> int:
    """How many cores this process may use, a container's share of them included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no limit
        return count
