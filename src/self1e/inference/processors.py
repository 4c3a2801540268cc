"""What a CPU is good for: as many threads as a container may use, and 16 bits where it has units for them.

Torch counts the machine's cores, also where only two of them are ours.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

_SET_BY_HAND = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_PROCESSOR = Path("/proc/cpuinfo")
_OLD_QUOTA = (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us"))


def fit_threads() -> int:
    """Lower torch's threads to what the container has, unless somebody chose them; never raise them.

    More threads than that take turns, and all wait for the one that is not running.

    Returns:
        Threads in use.
    """
    allowed = allowed_cores()
    is_chosen = any(os.environ.get(name) for name in _SET_BY_HAND)
    if not is_chosen and allowed is not None and allowed < torch.get_num_threads():
        torch.set_num_threads(allowed)
    return torch.get_num_threads()


def allowed_cores() -> int | None:
    """Cores that the container's quota is worth, at least 1; None without a quota."""
    try:
        quota, period = _QUOTA.read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = (path.read_text().strip() for path in _OLD_QUOTA)
        except OSError:
            return None
    if quota == "max" or int(quota) <= 0 or int(period) <= 0:
        return None
    return max(math.ceil(int(quota) / int(period)), 1)


def computes_in_bfloat16() -> bool:
    """Tell whether the processor multiplies matrices of bfloat16 in units made for it (AMX)."""
    try:
        told = _PROCESSOR.read_text("utf-8")
    except OSError:
        return False
    return "amx_bf16" in told.split()
