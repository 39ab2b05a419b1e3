"""Versions, processor, cores, memory and allocator of this machine, without importing the packages reported on."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
from functools import cache
from pathlib import Path

from labo import __version__

DISTRIBUTION = "torch-labo"
# Distributions whose import name differs, by that name.
_DISTRIBUTION_OF_IMPORT = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
# Distributions whose versions a record has, beside labo and Python.
RECORDED = ("torch", "transformers", "numba", "triton")
# Parameters of mallopt, from glibc's malloc.h, and what sets them or another allocator from outside.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
_ALLOCATOR_VARIABLES = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def package_version(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    import importlib.metadata  # slow, and --help does without

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """The distributions of each extra of this package, except "all" and "dev"."""
    import importlib.metadata

    distributions: dict[str, list[str]] = {}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and extra[1] not in ("all", "dev"):
            distributions.setdefault(extra[1], []).append(name[0])
    return distributions


def extra_of(module: str) -> str | None:
    """The extra that installs an importable module, or None."""
    name = _DISTRIBUTION_OF_IMPORT.get(module, module)
    return next((extra for extra, distributions in extras().items() if name in distributions), None)


def versions() -> dict[str, str]:
    """Versions and the processor, as stored in records."""
    installed = {"labo": __version__, "python": platform.python_version()}
    installed |= {name: version for name in RECORDED if (version := package_version(name))}
    return installed | {"processor": processor()}


def processor() -> str:
    """The name of the processor, as the operating system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


@cache
def keep_freed_memory() -> bool:
    """Let glibc's allocator keep the memory that this process frees, for its next buffers; whether it will.

    By default it returns freed buffers of some MiB to the system, and each training step gets its activations and
    gradients back page by page, with a page fault for each. The process then holds the most memory that it ever used.
    Whoever has set the allocator up in the environment, or uses another C library, keeps what there is.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(_ALLOCATOR_VARIABLES) for name in os.environ):
        return False
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    # glibc before 2.34 takes no threshold above 32 MiB.
    mapped = mallopt(_M_MMAP_THRESHOLD, 1 << 30) or mallopt(_M_MMAP_THRESHOLD, 1 << 25)
    return bool(mapped and mallopt(_M_TRIM_THRESHOLD, 1 << 30) and mallopt(_M_TOP_PAD, 1 << 26))


def launched() -> int:
    """The number of processes that torchrun started; 1 without torchrun."""
    world_size = os.environ.get("WORLD_SIZE", "")
    return int(world_size) if "RANK" in os.environ and world_size.isdigit() else 1


def fsdp_version() -> int | None:
    """The version of FSDP that `accelerate launch` was configured with; None without."""
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() != "true":
        return None
    return int(os.environ.get("FSDP_VERSION", "1"))


def cores() -> int:
    """The number of cores that this process may use, within the limit of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max" for no limit
        return count


def memory() -> int | None:
    """The bytes of memory that this process may use, within the limit of its container; None where it is unknown."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    except (OSError, ValueError):  # no such file, or "max" for no limit
        return total


def reset_peak_memory() -> None:
    """Begin to measure `peak_memory` anew, where the system can."""
    with contextlib.suppress(OSError):  # not Linux, or a container that does not allow it
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int | None:
    """The most memory, in bytes, that this process had since `reset_peak_memory`; None where it is unknown."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    peak = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(peak[1]) * 1024 if peak else None
