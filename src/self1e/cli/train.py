"""``self1e train``: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from self1e.errors import SettingError


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, e.g. nano.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the photographs [default: drawn scenes alone].")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoints, log, model [default: runs/RECIPE].")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set seed=1.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in --out.")] = True,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Train a model by RECIPE; run it again to go on where it stopped."""
    from self1e.training.recipes import change, find_recipe, run

    chosen = change(find_recipe(recipe), settings or [])
    if data is not None and not data.is_dir():
        raise SettingError(f"--data {data} is not a folder; it should hold ccp/ (and coco_mini/).")
    final = run(chosen, data=data, out=out or Path("runs") / recipe, resume=resume, save_steps=save_steps)
    typer.echo(f"The model is in {final}; try: self1e segment PICTURE -q 'the person' --model {final}")
