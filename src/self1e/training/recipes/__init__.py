"""Recipes: one function is one complete run.

`nano` and its kin have flat settings of their own (`TrainRecipe`); everything else is a `Recipe` of nested ones.
Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from self1e.errors import SettingError, did_you_mean
from self1e.training.nano_run import run
from self1e.training.recipes.nano import TrainRecipe, nano, nano_polish, nano_smoke
from self1e.training.recipes.overriding import change, differences, flatten
from self1e.training.recipes.published import published_recipes
from self1e.training.recipes.settings import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    LossSettings,
    ModelSettings,
    OptimSettings,
    Recipe,
    SavingSettings,
)

RECIPES: dict[str, Callable[[], Any]] = {
    "nano": nano,
    "nano_polish": nano_polish,
    "nano_smoke": nano_smoke,
    **published_recipes(),
}
"""Recipes by name."""


def find_recipe(name: str) -> Any:
    """Make a recipe by its name.

    Raises:
        SettingError: There is none of that name.
    """
    if name not in RECIPES:
        raise SettingError(
            f"Unknown recipe {name!r}.{did_you_mean(name, RECIPES)} `self1e train --list` shows all {len(RECIPES)}."
        )
    return RECIPES[name]()


__all__ = [
    "RECIPES",
    "AdapterSettings",
    "DataSettings",
    "EvaluationSettings",
    "LossSettings",
    "ModelSettings",
    "OptimSettings",
    "Recipe",
    "SavingSettings",
    "TrainRecipe",
    "change",
    "differences",
    "find_recipe",
    "flatten",
    "nano",
    "nano_polish",
    "nano_smoke",
    "run",
]
