"""``--set optim.learning_rate=2e-5``: settings of a recipe changed by their dotted names, each read as its type."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from math import isfinite
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from self1e.errors import SettingError, did_you_mean

R = TypeVar("R")


def change(recipe: R, settings: Iterable[str]) -> R:
    """Apply ``name=value`` settings to a recipe.

    All are applied before anything is checked together, so their order does not matter.

    Args:
        recipe: A frozen dataclass, whose fields may be such dataclasses.
        settings: ``optim.learning_rate=2e-5``, ``data.sets=refcoco,refcoco+``, ``optim.steps=none``, ...

    Raises:
        SettingError: There is no such setting, the value is of another type, or the result cannot work.
    """
    kinds = _kinds(recipe)
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting!r} has no '='; write it as name=value.")
        if name not in kinds:
            raise SettingError(f"Unknown setting {name!r}.{_suggest(name, kinds)} Known: {', '.join(kinds)}.")
        changes[name] = _read(name, text.strip(), kinds[name])
    return _apply(recipe, changes)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted names and values of a recipe, or of what was read back from its JSON; tuples become lists."""
    found: dict[str, Any] = {}
    items = (
        settings.items()
        if isinstance(settings, dict)
        else ((f.name, getattr(settings, f.name)) for f in fields(settings))
    )
    for name, value in items:
        if isinstance(value, dict) or (is_dataclass(value) and not isinstance(value, type)):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def differences(old: Any, new: Any) -> list[str]:
    """Tell what changed between two recipes, one ``name: old -> new`` each."""
    before, after = flatten(old), flatten(new)
    names = [*after, *(name for name in before if name not in after)]
    missing = object()
    return [
        f"{name}: {_shown(before, name)} -> {_shown(after, name)}"
        for name in names
        if before.get(name, missing) != after.get(name, missing)
    ]


def _shown(settings: dict[str, Any], name: str) -> str:
    return repr(settings[name]) if name in settings else "(not there)"


def _kinds(recipe: Any, prefix: str = "") -> dict[str, Any]:
    """Type of every setting by its dotted name."""
    hints = get_type_hints(type(recipe))
    kinds: dict[str, Any] = {}
    for each in fields(recipe):
        value = getattr(recipe, each.name)
        if is_dataclass(value):
            kinds |= _kinds(value, f"{prefix}{each.name}.")
        else:
            kinds[prefix + each.name] = hints[each.name]
    return kinds


def _suggest(name: str, kinds: Iterable[str]) -> str:
    """A group left out is a likelier mistake than a letter."""
    last = name.rpartition(".")[2]
    same = [known for known in kinds if known.rpartition(".")[2] == last]
    return f" Did you mean {same[0]!r}?" if same else did_you_mean(name, kinds)


def _apply(recipe: Any, changes: dict[str, Any]) -> Any:
    own = {name: value for name, value in changes.items() if "." not in name}
    for group in {name.partition(".")[0] for name in changes if "." in name}:
        inner = {name.partition(".")[2]: value for name, value in changes.items() if name.startswith(f"{group}.")}
        own[group] = _apply(getattr(recipe, group), inner)
    return replace(recipe, **own)


def _read(name: str, text: str, kind: Any) -> Any:
    if get_origin(kind) in (types.UnionType, Union):
        if text.lower() == "none":
            return None
        (kind,) = (other for other in get_args(kind) if other is not type(None))
    if get_origin(kind) is Literal:
        known = get_args(kind)
        if text not in known:
            raise SettingError(
                f"{name}={text!r} is unknown.{did_you_mean(text, known)} Choose one of {', '.join(known)}."
            )
        return text
    if get_origin(kind) is tuple:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if not parts:
            raise SettingError(f"{name}= names nothing; separate several by commas, or write none.")
        return parts
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise SettingError(f"{name}={text!r} must be true or false.")
        return text.lower() == "true"
    try:
        value = kind(text)
    except ValueError as error:
        raise SettingError(f"{name}={text!r} must be {'a whole number' if kind is int else 'a number'}.") from error
    if kind is float and not isfinite(value):
        raise SettingError(f"{name}={text!r} must be a finite number.")
    return value
