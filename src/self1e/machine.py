"""What runs here: processes of one run, the commit and versions of the code, the processor. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def process_count() -> int:
    """Processes that ``torchrun`` or ``accelerate launch`` has started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def process_index() -> int:
    """Which of them this is."""
    return int(os.environ.get("RANK", "0"))


def find_commit() -> str | None:
    """Name the commit of the checkout that runs, with ``-dirty`` behind it if files changed since.

    Returns:
        None for an installed package, whatever repository its environment lies in: the version says it all.
    """
    here = Path(__file__).parents[2]
    if not (here / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def versions(*packages: str) -> dict[str, str]:
    """Versions of installed packages, by name."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def processor_name() -> str:
    """Name the CPU, as its vendor does where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
