"""``self1e train``: run a recipe."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.errors import SettingError, did_you_mean


def train(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, e.g. nano.")],
    data: Annotated[Path | None, typer.Option(help="Folder of the photographs [default: drawn scenes alone].")] = None,
    out: Annotated[Path | None, typer.Option(help="Checkpoints, log, model [default: runs/RECIPE].")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set seed=1.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in --out.")] = True,
    save_steps: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
) -> None:
    """Train a model by RECIPE; run it again to go on where it stopped."""
    from self1e.training.recipes import RECIPES, run

    if recipe not in RECIPES:
        raise SettingError(f"Unknown recipe {recipe!r}.{did_you_mean(recipe, RECIPES)} Known: {', '.join(RECIPES)}.")
    chosen = change(RECIPES[recipe](), settings or [])
    if data is not None and not data.is_dir():
        raise SettingError(f"--data {data} is not a folder; it should hold ccp/ (and coco_mini/).")
    final = run(chosen, data=data, out=out or Path("runs") / recipe, resume=resume, save_steps=save_steps)
    typer.echo(f"The model is in {final}; try: self1e segment PICTURE -q 'the person' --model {final}")


def change(recipe: Any, settings: list[str]) -> Any:
    """Apply ``name=value`` settings to a recipe, each read as the type that the setting has."""
    kinds = {field.name: field.type for field in fields(recipe)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting!r} has no '='; write it as name=value.")
        if name not in kinds:
            raise SettingError(f"Unknown setting {name!r}.{did_you_mean(name, kinds)} Known: {', '.join(kinds)}.")
        changes[name] = _read(name, text, str(kinds[name]))
    return replace(recipe, **changes)


def _read(name: str, text: str, annotation: str) -> Any:
    kind_name, _, other = annotation.partition(" | ")
    if other == "None" and text.lower() == "none":
        return None
    if kind_name == "bool":
        if text.lower() not in ("true", "false"):
            raise SettingError(f"{name}={text!r} must be true or false.")
        return text.lower() == "true"
    kind: Any = {"int": int, "float": float, "str": str}[kind_name]
    try:
        return kind(text)
    except ValueError as error:
        raise SettingError(f"{name}={text!r} must be {'a whole number' if kind is int else 'a number'}.") from error
