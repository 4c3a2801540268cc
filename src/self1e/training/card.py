"""The model card of a trained model: what it was trained on, how, and what was measured; nothing that is not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from self1e.training.recipes import RECIPES, differences

_HEAD = """---
library_name: transformers
pipeline_tag: image-segmentation
tags: [self1e, referring-segmentation]
---
"""
_DATA_NOTE = (
    "The sets keep their own licences; `self1e data prepare` names each. The base model keeps its licence too, which "
    "these weights follow from."
)
_OWN_NOTE = "The pictures are the trainer's own. The base model keeps its licence, which these weights follow from."


def write_card(folder: Path, run: Path) -> Path:
    """Write ``README.md`` of a model folder.

    Args:
        folder: Of the model; its ``config.json`` is read.
        run: A checkpoint or model folder of the run; ``run.json`` and ``trainer_state.json`` in it are read.
    """
    facts = _read(run / "run.json") or {}
    state = _read(run / "trainer_state.json") or {}
    config = _read(folder / "config.json") or {}
    path = folder / "README.md"
    path.write_text(card(facts, config, state.get("log_history", []), state.get("global_step")), "utf-8")
    return path


def card(facts: dict[str, Any], config: dict[str, Any], log: list[dict[str, Any]], step: int | None = None) -> str:
    """Compose a model card.

    Args:
        facts: ``run.json``; empty where a model is not of `self1e train`.
        config: ``config.json``.
        log: Entries of the trainer's log.
        step: Optimiser step that the weights are of.
    """
    recipe = facts.get("recipe", {})
    title = recipe.get("name", "self1e model")
    parts = [_HEAD, f"# {title}\n", _about(recipe)]
    if recipe:
        parts.append(_training(facts, step))
    measured = [line for line in log if "eval_ciou" in line]
    if measured:
        parts.append(_measured(measured, recipe))
    switches = ("seg_readout", "fine", "residual", "unshuffle", "attention", "final_mlp", "num_seg_tokens")
    parts.append("## Switches\n\n" + ", ".join(f"`{n}={config[n]}`" for n in switches if n in config) + "\n")
    parts.append(_use())
    return "\n".join(parts)


def _about(recipe: dict[str, Any]) -> str:
    told = "A SELF1E model: asked for a thing in words, it answers with a mask, without a mask decoder."
    base = recipe.get("model", {}).get("base")
    if base:
        # A folder on the machine that trained says nothing to others.
        told += f" It starts from {'a local model' if Path(base).is_absolute() else base}."
    changed = _changes(recipe)
    if recipe.get("paper") and not changed:
        told += f" Recipe: {recipe['paper']}."
    elif changed:
        told += f" Recipe, with changes: {'; '.join(changed)}."
    return f"{told}\n"


def _changes(recipe: dict[str, Any]) -> list[str]:
    """Say in what a run differs from the recipe of its name: a changed one is not the paper's."""
    if recipe.get("name") not in RECIPES:
        return []
    found = differences(RECIPES[recipe["name"]](), recipe)
    return [change for change in found if not change.startswith(("model.base:", "saving.", "evaluation."))]


def _training(facts: dict[str, Any], step: int | None) -> str:
    recipe = facts["recipe"]
    optim, adapters = recipe["optim"], recipe["adapters"]
    versions = ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items())
    taken = f"{step:,} of {facts['steps']:,}" if step is not None else f"{facts['steps']:,}"
    told = (
        f"{taken} steps of {optim['global_batch']} pictures, AdamW, learning rate {optim['learning_rate']:g} "
        f"({optim['schedule']}). Language model: {adapters['language']}, vision encoder: {adapters['vision']}, rank "
        f"{adapters['rank']}. Seed {recipe['seed']}, commit {facts.get('commit') or 'unknown'}; {versions}."
    )
    rows = [f"| {name} | {count:,} |" for name, count in facts.get("data", {}).get("counts", {}).items()]
    table = "\n".join(["| part | pictures per epoch |", "|---|---|", *rows])
    note = _OWN_NOTE if recipe.get("data", {}).get("source") == "own" else _DATA_NOTE
    return f"## Training\n\n{told}\n\n{table}\n\n{note}\n"


def _measured(log: list[dict[str, Any]], recipe: dict[str, Any]) -> str:
    settings, last = recipe.get("evaluation", {}), log[-1]
    told = (
        f"At step {last['step']:,} on at most {settings.get('pictures', '?')} pictures of {settings.get('on', '?')}: "
        f"cIoU {last['eval_ciou']:.4f}, gIoU {last['eval_giou']:.4f}. A figure to follow a run by: `self1e eval` gives "
        "the published protocols'."
    )
    return f"## Measured while training\n\n{told}\n"


def _use() -> str:
    return (
        '## Use\n\n```python\nimport self1e\n\nmodel = self1e.load("THIS FOLDER OR REPOSITORY")\n'
        'result = model.segment("street.jpg", "the cyclist")\nresult.overlay().save("street.mask.png")\n```\n'
    )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
