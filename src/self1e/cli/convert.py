"""``self1e convert``: a checkpoint of any origin becomes a complete folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import say


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, or a name on the Hugging Face hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; must not exist, or be empty.")],
    to: Annotated[str, typer.Option(help="Names of the tensors: self1e (ours), or published (the authors').")] = (
        "self1e"
    ),
    merge: Annotated[bool, typer.Option("--merge", help="Merge LoRA that is still attached.")] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="alpha of attached LoRA [default: what SRC says, else 2 x rank].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the base model, where SRC has no tokenizer.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most per weight file, such as 5GB or 500MB.")] = "5GB",
) -> None:
    """Convert a checkpoint of any origin into a complete folder: weights, configuration, tokenizer, processor."""
    from self1e.inference.converting import convert as run

    layout: Any = to
    done = run(
        source,
        target,
        layout=layout,
        merge=merge,
        lora_alpha=lora_alpha,
        tokenizer=tokenizer,
        max_shard_size=max_shard_size,
    )
    if done.num_adapters:
        alphas = ", ".join(f"rank {rank}, alpha {alpha:g}" for rank, alpha in done.lora_alpha.items())
        fate = "merged" if done.is_merged else "kept; --merge merges them"
        say(f"self1e: LoRA in {done.num_adapters} modules ({alphas}): {fate}")
    if done.is_base:
        say("self1e: a base model: its mask head is new, and its masks mean nothing before training")
    files = "1 file" if done.num_files == 1 else f"{done.num_files} files"
    typer.echo(f"{done.tensors} tensors, {done.nbytes / 1e9:.2f} GB in {files} -> {done.folder}")
