"""What commands share: options of the same meaning and spelling, and small helpers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="nano (inside the package), a folder, or a name on the Hugging Face hub.")
]
BaseOption = Annotated[
    Path | None,
    typer.Option(help="Folder of the base model, so that it can answer, too; MODEL is then a training checkpoint."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps ...")]
DtypeOption = Annotated[
    str, typer.Option(help="auto (bfloat16 on CUDA, else float32), float32, bfloat16, float16, int8 (smaller weights).")
]

NANO_KNOWS = (
    "nano knows drawn shapes, and people and 58 kinds of clothing in photographs; "
    "for anything else use a full model: --model FOLDER_OR_HUB_ID"
)


def load_quietly(name: str, device: str, dtype: str, base: Path | None = None) -> Any:
    """Load a model without the progress bars of transformers: commands have their own.

    With the folder of its base, its adapters stay apart, so that the base can answer, too.
    """
    from transformers.utils import logging

    import self1e

    logging.disable_progress_bar()
    if base is None:
        return self1e.load(name, device=device, dtype=dtype)
    from self1e.inference.base_answers import load_with_base

    return load_with_base(name, base, device=device, dtype=dtype)


def say(message: str) -> None:
    """Write a line for the person to stderr, so that stdout stays what was asked for."""
    typer.echo(message, err=True)


def summary(query: str, area: int, pixels: int, score: float) -> str:
    """Say in a few words what became of a query."""
    if not area:
        return f"{query!r} not there"
    percent = 100 * area / pixels
    return f"{query!r} {'<0.1' if percent < 0.1 else f'{percent:.1f}'}% (score {score:.2f})"
