"""What a report says of its making: command, commit, versions, machine. Written beside the rows while they are made."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from self1e.data.files import read_json
from self1e.files import atomic_write

FILE = "provenance.json"


def record(out: Path, segmenter: Any, arguments: Sequence[str]) -> None:
    """Add this run of the command to those that made the rows.

    Args:
        out: Folder of the rows.
        segmenter: The model.
        arguments: Of the command, without the program's name.
    """
    import torch
    import transformers

    import self1e

    entry = {
        "command": " ".join(["self1e", *arguments]),
        "model": segmenter.name,
        "parameters": sum(parameter.numel() for parameter in segmenter.model.parameters()),
        "commit": commit(),
        "versions": f"self1e {self1e.__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
        "hardware": hardware(segmenter.device),
        "dtype": str(segmenter.dtype).removeprefix("torch."),
    }
    entries = [*read(out), entry]
    out.mkdir(parents=True, exist_ok=True)
    kept = [json.loads(text) for text in dict.fromkeys(json.dumps(one) for one in entries)]
    atomic_write(out / FILE, (json.dumps(kept, indent=1) + "\n").encode())


def read(out: Path) -> list[dict[str, Any]]:
    """Read what is known; nothing if the rows come from elsewhere."""
    path = out / FILE
    found = read_json(path, "a list of runs") if path.is_file() else []
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def commit() -> str:
    """Name the commit of a checkout, with a mark if files changed since; "" for an installed package."""
    here = Path(__file__).parents[4]
    if not (here / ".git").exists():
        return ""  # installed: the version says it all
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def hardware(device: Any) -> str:
    """Name processor and accelerator."""
    import torch

    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = f"{os.cpu_count()} cores of {models[0] if models else name}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, {found}" if device.type == "cuda" else found
