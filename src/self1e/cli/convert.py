"""``self1e convert``: a checkpoint of any origin becomes a complete folder, of weights or of an ONNX graph."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import load_quietly, say
from self1e.errors import SettingError, did_you_mean

_FORMS = ("self1e", "published", "onnx")
_SHARD_SIZE = "5GB"


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, or a name on the Hugging Face hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make; must not exist, or be empty.")],
    to: Annotated[
        str,
        typer.Option(
            help="Names of the tensors: self1e (ours), or published (the authors'). Or onnx: a graph for onnxruntime."
        ),
    ] = "self1e",
    merge: Annotated[bool, typer.Option("--merge", help="Merge LoRA that is still attached.")] = False,
    lora_alpha: Annotated[
        float | None, typer.Option(help="alpha of attached LoRA [default: what SRC says, else 2 x rank].")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder or hub name of the base model, where SRC has no tokenizer.")
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Most per weight file, such as 5GB or 500MB.")] = _SHARD_SIZE,
) -> None:
    """Convert a checkpoint of any origin into a complete folder: weights, configuration, tokenizer, processor."""
    if to not in _FORMS:
        raise SettingError(f"--to {to} is unknown; choose one of {', '.join(_FORMS)}.{did_you_mean(to, _FORMS)}")
    if to == "onnx":
        shard_size = None if max_shard_size == _SHARD_SIZE else max_shard_size
        given = {"merge": merge, "lora_alpha": lora_alpha, "tokenizer": tokenizer, "max_shard_size": shard_size}
        _to_onnx(source, target, given)
        return
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


def _to_onnx(source: str, target: Path, given: dict[str, Any]) -> None:
    """Export the model as it computes, attached LoRA merged, in float32."""
    unused = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if unused:
        raise SettingError(f"{', '.join(unused)}: not with --to onnx; convert to self1e first, and then that folder.")
    from self1e.files import check_is_new
    from self1e.inference.onnx_export import export_onnx, need_packages

    need_packages()
    check_is_new(target)
    folder = export_onnx(load_quietly(source, "cpu", "float32"), target)
    size = sum(path.stat().st_size for path in folder.glob("model.onnx*"))
    typer.echo(f"ONNX graph, float32, {size / 1e9:.2f} GB -> {folder}")
