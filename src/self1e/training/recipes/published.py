"""What the paper trains, one recipe per model and per row of its tables; made by rule, so that they differ as told.

Common to all (METHOD 6): AdamW, 160 pictures per step, LoRA on both towers, one epoch of one tile per picture. A
base decides rank and learning rate, and for InternLM2 that the input embeddings stay frozen. A strategy decides the
data. An ablation changes the switches of Table 5, 6, 7 or 11 on SELF1E-2B with all of its data: the default rows of
Tables 6 and 7 are, to the digit, the means of SELF1E-2B's results in the main table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from self1e.training.recipes.bases import BASES, Base, find_base
from self1e.training.recipes.settings import (
    AdapterSettings,
    DataSettings,
    EvaluationSettings,
    ModelSettings,
    OptimSettings,
    Recipe,
)

REFCOCO = ("refcoco", "refcoco+", "refcocog")
_MAIN = find_base("InternVL3-2B")

ABLATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "table5": (
        {"fine": "none", "unshuffle": "none"},
        {"residual": False, "unshuffle": "none"},
        {"unshuffle": "none"},
        {"fine": "none"},
        {},
    ),
    "table6": (
        {"unshuffle": "none"},
        {"unshuffle": "residual_only"},
        {"unshuffle": "one"},
        {},
        {"unshuffle": "three"},
    ),
    "table7": tuple({"attention": rule} for rule in ("causal", "image", "image_seg", "image_text", "bidirectional")),
    "table11": tuple({"fine": fine, "unshuffle": "none"} for fine in ("none", "scan", "replicate")),
}
"""Switches of each row, in the paper's order."""


def self1e(base: Base) -> Recipe:
    """SELF1E: every task in equal measure."""
    return Recipe(
        name=f"self1e-{base.slug}",
        paper=_row("SELF1E", base),
        model=ModelSettings(base=base.hub),
        adapters=AdapterSettings(
            rank=64 if base.large else 128,
            input_embeddings="frozen" if base.language == "internlm2" else "full",
        ),
        optim=OptimSettings(learning_rate=6e-5 if base.large else 1e-4),
    )


def self1e_seg(base: Base) -> Recipe:
    """SELF1E-SEG: the sets with masks come 6 and 20 times."""
    recipe = self1e(base)
    data = replace(recipe.data, semantic=6, referring_copies=20, reasoning=6)
    return replace(recipe, name=f"self1e-seg-{base.slug}", paper=_row("SELF1E-SEG", base), data=data)


def self1e_star(base: Base) -> Recipe:
    """SELF1E*: RefCOCO, RefCOCO+ and RefCOCOg alone (Table 4, zero-shot)."""
    recipe = self1e(base)
    return replace(
        recipe,
        name=f"self1e-star-{base.slug}",
        paper=_row("SELF1E*", base),
        data=DataSettings(sets=REFCOCO),
        evaluation=EvaluationSettings(on="refcoco/val", metric="ciou"),
    )


def with_refclef(recipe: Recipe) -> Recipe:
    """The same with refCLEF, which the published code's list has and the paper's has not."""
    return replace(
        recipe,
        name=recipe.name.replace("-internvl", "-refclef-internvl"),
        paper="",
        data=replace(recipe.data, referring="code"),
    )


def ablation(table: str, row: int) -> Recipe:
    """One row of Table 5, 6, 7 or 11, counted from 1."""
    recipe = self1e(_MAIN)
    return replace(
        recipe,
        name=f"{table}-row{row}",
        paper=f"Table {table.removeprefix('table')}, row {row}",
        model=replace(recipe.model, **ABLATIONS[table][row - 1]),
    )


def sixteen_tokens(base: Base) -> Recipe:
    """The paradigm of many [SEG] tokens: 16 of them score the coarse map, one per sub-pixel, for masks of 64 x 64."""
    recipe = self1e(base)
    model = replace(recipe.model, fine="none", unshuffle="none", num_seg_tokens=16)
    return replace(recipe, name=f"sixteen-tokens-{base.slug}", paper="multi-token paradigm, 16 [SEG]", model=model)


def _row(method: str, base: Base) -> str:
    """Name the model as the paper does, with the table that has it."""
    size = base.name.rpartition("-")[2]
    if base.name in ("InternVL3-2B", "InternVL3-8B"):
        where = "Table 4" if method == "SELF1E*" else "Table 1"
    else:
        where = "Table 10" if base.name in ("InternVL2-2B", "InternVL2.5-2B") else "not in the paper"
    name = f"SELF1E-{size}*" if method == "SELF1E*" else f"{method}-{size}"
    return f"{name} ({where})"


def published_recipes() -> dict[str, Callable[[], Recipe]]:
    """Every recipe of the paper by its name."""
    return dict(_all())


def _all() -> Iterator[tuple[str, Callable[[], Recipe]]]:
    for make in (self1e, self1e_seg):
        for base in BASES:
            yield _entry(make, base)
    for make in (self1e_star, sixteen_tokens):
        yield _entry(make, _MAIN)
    for make in (self1e, self1e_seg):
        for base in (_MAIN, find_base("InternVL3-8B")):
            yield _entry(lambda base, make=make: with_refclef(make(base)), base, doc=make.__doc__ or "")
    for table, rows in ABLATIONS.items():
        for row in range(1, len(rows) + 1):
            yield _entry(lambda table, row=row: ablation(table, row), table, doc=ablation.__doc__ or "")


def _entry(make: Callable[[Any], Recipe], of: Any, doc: str = "") -> tuple[str, Callable[[], Recipe]]:
    def recipe() -> Recipe:
        return make(of)

    recipe.__doc__ = doc or make.__doc__
    return recipe().name, recipe
