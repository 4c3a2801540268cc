"""``self1e info``: what a model is, without loading its weights."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

_ORIGINS = {
    "self1e": "",
    "published": ", in the published layout",
    "chat": ", original InternVLChat: a base, its mask head is new",
    "hf": ", InternVL of transformers: a base, its mask head is new",
}


def info(
    model: Annotated[str, typer.Argument(help="nano, a folder, or a name on the Hugging Face hub.")] = "nano",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a model's sizes, switches, vocabulary, and memory by dtype and tiles."""
    from self1e.inference.info import read_info

    facts = read_info(model)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    typer.echo(f"{facts['name']}: {_short(facts['parameters']['total'])} parameters{_ORIGINS[facts['origin']]}")
    _table(
        "parameters", {name: _short(count) for name, count in facts["parameters"].items() if name != "total" and count}
    )
    _table("sizes", facts["sizes"])
    _table("switches", facts["switches"])
    vocabulary = {name: "not known" if value is None else value for name, value in facts["vocabulary"].items()}
    _table("vocabulary", vocabulary | {"prompt template": facts["template"] or "no tokenizer in the folder"})
    memory = facts["memory_bytes"]
    tiles = list(next(iter(memory.values())))
    typer.echo("\nmemory for one query, estimated")
    typer.echo("  " + "".ljust(12) + "".join(f"{count + ' tile' + 's' * (count != '1'):>12}" for count in tiles))
    for dtype, by_tiles in memory.items():
        typer.echo("  " + dtype.ljust(12) + "".join(f"{_bytes(by_tiles[count]):>12}" for count in tiles))


def _table(title: str, rows: dict[str, Any]) -> None:
    typer.echo(f"\n{title}")
    width = max(len(name) for name in rows) + 2
    for name, value in rows.items():
        typer.echo(f"  {name.ljust(width)}{value}")


def _short(count: int) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.2f} {letter}"
    return str(count)


def _bytes(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
