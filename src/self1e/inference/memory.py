"""How much memory is free, by which the size of a batch is chosen; and what to do when it was too little."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import torch

FRACTION = 0.25
"""Of the free memory, what one batch may take: the estimates are rough, and others want some too."""
CPU_BATCH = 2**27
"""Most bytes of a batch on a CPU: larger ones leave its caches and gain nothing."""
_UNKNOWN = 2**31  # where a system does not say
_SHORTAGES = ("out of memory", "can't allocate memory", "not enough memory")  # of MPS and CPU allocators
_CGROUPS = (  # limit and use of a container, new and old layout
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def is_shortage(error: BaseException) -> bool:
    """Tell whether an error says that memory is short: CUDA's has a type of its own, those of others only words."""
    told = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in told for words in _SHORTAGES)


def release(device: torch.device) -> None:
    """Give back what torch, or the C library, holds for reuse: its pieces may be too small for what comes next."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        # Before 2.38 glibc could not reuse a freed block for an aligned one of the same size (its bug 14581), and torch
        # aligns all of them. Other C libraries have no such function.
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)


def batch_memory(device: torch.device) -> int:
    """Bytes that one batch may take on a device: a quarter of what is free, on a CPU at most 128 MB."""
    memory = int(free_memory(device) * FRACTION)
    return min(memory, CPU_BATCH) if device.type == "cpu" else memory


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device, those included that torch holds for reuse."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return max(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory(), 0)
    return _free_ram()


def _free_ram() -> int:
    """The least of what the system and its container have left."""
    found = [_available() or _installed() // 4 or _UNKNOWN]
    for limit, used in _CGROUPS:
        try:
            found.append(max(int(Path(limit).read_text()) - int(Path(used).read_text()), 0))
        except (OSError, ValueError):  # no container, or one without a limit ("max")
            continue
    return min(found)


def _available() -> int:
    """Linux: what could be had without swapping."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), "0")
    return int(kilobytes) * 1024


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0
