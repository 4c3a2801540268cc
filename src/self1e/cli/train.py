"""``self1e train``: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import DeviceOption
from self1e.cli.training import DryRun, How, ReportTo, Resume, Settings, list_settings
from self1e.errors import SettingError
from self1e.machine import process_index


def train(
    recipe: Annotated[str | None, typer.Argument(help="Name of a recipe, e.g. nano; --list shows all.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the published data, which holds dataset/ and data/; for nano, of the photographs."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoints, log, model [default: runs/RECIPE].")] = None,
    settings: Settings = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Start from this folder or hub name, not the recipe's base.")
    ] = None,
    resume: Resume = "auto",
    report_to: ReportTo = None,
    device: DeviceOption = "auto",
    save_steps: Annotated[
        int | None, typer.Option(help="Steps between checkpoints [default: 200, or the recipe's].")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Show every recipe and stop.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Train a model by RECIPE; run it again to go on where it stopped."""
    from self1e.training.recipes import TrainRecipe, change, find_recipe

    if list_all:
        typer.echo(list_recipes())
        return
    if recipe is None:
        raise SettingError(
            "Which recipe? `self1e train --list` shows all; `self1e train nano` trains the model inside."
        )
    chosen = change(find_recipe(recipe), settings or [])
    folder = out or Path("runs") / recipe
    if isinstance(chosen, TrainRecipe):
        _train_nano(chosen, data, folder, resume, model, 200 if save_steps is None else save_steps, dry_run=dry_run)
        return
    if save_steps is not None:
        chosen = change(chosen, [f"saving.every={save_steps}"])
    from self1e.training.run import with_base

    final = How(folder, resume, report_to or [], device, dry_run).train(with_base(chosen, model), data)
    if final is not None:
        _tell(final)


def _train_nano(
    recipe: Any, data: Path | None, out: Path, resume: str, model: str | None, save_steps: int, *, dry_run: bool
) -> None:
    from dataclasses import replace

    from self1e.training.recipes import run

    if model is not None:
        recipe = replace(recipe, start=model)
    if data is not None and not data.is_dir():
        raise SettingError(f"--data {data} is not a folder; it should hold ccp/ (and coco_mini/).")
    if resume not in ("auto", "never"):
        raise SettingError(
            f"--resume {resume}: {recipe.name} knows auto and never; --set start=MODEL starts from a model."
        )
    if dry_run:
        list_settings(recipe)
        return
    _tell(run(recipe, data=data, out=out, resume=resume == "auto", save_steps=save_steps))


def _tell(final: Path) -> None:
    if process_index():
        return
    typer.echo(f"The model is in {final}; try: self1e segment PICTURE -q 'the person' --model {final}")


def list_recipes() -> str:
    """Make a table of all recipes: name, row of the paper, base, data."""
    from self1e.training.recipes import RECIPES, TrainRecipe

    rows = [("recipe", "paper", "base", "data")]
    for name, make in RECIPES.items():
        recipe = make()
        if isinstance(recipe, TrainRecipe):
            rows.append((name, "", recipe.start or "from scratch", "drawn scenes, photographs"))
        else:
            rows.append((name, recipe.paper, recipe.model.base, describe_data(recipe)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe_data(recipe: Any) -> str:
    """Say in a few words what a recipe trains on."""
    data = recipe.data
    if data.source != "published":
        return data.source
    if data.sets is not None:
        return ", ".join(data.sets)
    copies = (data.semantic, data.referring_copies, data.reasoning, data.instructions)
    told = "all sets" if set(copies) == {1} else f"all sets, copies {','.join(map(str, copies))}"
    return f"{told}, with refclef" if data.referring == "code" else told
