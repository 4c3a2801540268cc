"""What a report says of its making: command, commit, versions, machine. Written beside the rows while they are made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from self1e.data.files import read_json
from self1e.files import atomic_write
from self1e.machine import find_commit, processor_name

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
        "commit": find_commit() or "",
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


def hardware(device: Any) -> str:
    """Name processor and accelerator."""
    import torch

    found = f"{os.cpu_count()} cores of {processor_name()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, {found}" if device.type == "cuda" else found
