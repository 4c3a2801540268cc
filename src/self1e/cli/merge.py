"""``self1e merge``: adapters into their weights, as a complete model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from self1e.errors import SettingError


def merge(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run, or one of its checkpoints.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; must not exist, or be empty.")],
    dtype: Annotated[str, typer.Option(help="Of the weights: bfloat16, float32, or keep.")] = "bfloat16",
    push: Annotated[str | None, typer.Option(help="Upload it to the Hugging Face hub under this name.")] = None,
) -> None:
    """Merge the adapters of a run's newest checkpoint into a plain model, with its card."""
    import torch

    from self1e.training.merging import merge_checkpoint
    from self1e.training.merging import push as upload

    known = {"bfloat16": torch.bfloat16, "float32": torch.float32, "keep": None}
    if dtype not in known:
        raise SettingError(f"--dtype {dtype!r} is unknown; choose one of {', '.join(known)}.")
    if push is not None and push.count("/") != 1:
        raise SettingError(f"--push {push!r}: expected owner/model.")
    folder = merge_checkpoint(source, target, dtype=known[dtype])
    typer.echo(f"The model is in {folder}; try: self1e segment PICTURE -q 'the person' --model {folder}")
    if push is not None:
        typer.echo(f"Uploaded: {upload(folder, push)}")
