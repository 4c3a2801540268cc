"""LoRA still attached: PEFT's names in a full checkpoint, merged or split with their module.

A training checkpoint of the published code holds (METHOD 1.4), beside what a merged one holds::

    language_model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight      (out, in)
    language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight  (r, in)
    language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight  (out, r)

The module's weight is ``W + scale * B A`` with ``scale = alpha / r``. r is the number of rows of A. alpha stands in
no tensor: the published code always takes 2 r (METHOD 6.3), and so does InternVL's own LoRA training.

PEFT can also train whole modules beside its adapters (``modules_to_save``); of each it stores what it was and what it
has become, and the latter counts::

    lm_head.original_module.weight    lm_head.modules_to_save.default.weight
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from self1e.errors import CheckpointError, SettingError

_WRAPPED = re.compile(r"^(language_model\.|vision_model\.|)base_model\.model\.")
_SIDE = re.compile(r"^(?P<module>.+)\.lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight$")
_SAVED = re.compile(r"\.modules_to_save\.(?P<adapter>[^.]+)\.")
_ORIGINAL = ".original_module."
_PUBLISHED_RATIO = 2.0


class Pair(NamedTuple):
    """The stored names of one module's A and B."""

    a: str
    b: str


@dataclass
class Attached:
    """What the names of a checkpoint say about its adapters."""

    plain: dict[str, str] = field(default_factory=dict)
    """Every tensor that is not an adapter's: its name without PEFT's additions, and the stored one."""
    pairs: dict[str, Pair] = field(default_factory=dict)
    """By module, named without PEFT's additions."""
    missing: list[str] = field(default_factory=list)
    """The other half of a pair."""
    unexpected: list[str] = field(default_factory=list)
    """Stored names that collide with others."""

    @property
    def is_wrapped(self) -> bool:
        """Whether any name has PEFT's additions: transformers' loader does not know them."""
        return bool(self.pairs) or any(plain != stored for plain, stored in self.plain.items())


def find_attached(names: Iterable[str]) -> Attached:
    """Sort the names of a checkpoint into plain tensors and adapters.

    Raises:
        CheckpointError: There are several adapters, of which one would have to be chosen.
    """
    found = Attached()
    sides: dict[str, dict[str, str]] = {}
    adapters: set[str] = set()
    for name in sorted(names):
        plain = _WRAPPED.sub(r"\1", name)
        match = _SIDE.match(plain)
        if match:
            adapters.add(match["adapter"] or "default")
            sides.setdefault(match["module"], {})[match["side"]] = name
            continue
        if saved := _SAVED.search(plain):
            adapters.add(saved["adapter"])
        is_original = _ORIGINAL in plain
        plain = _SAVED.sub(".", plain).replace(_ORIGINAL, ".").replace(".base_layer.", ".")
        if plain in found.plain:  # names are sorted: "modules_to_save" comes before "original_module"
            found.unexpected += [] if is_original else [name]
        else:
            found.plain[plain] = name
    if len(adapters) > 1:
        raise CheckpointError(
            f"The weights hold {len(adapters)} adapters ({', '.join(sorted(adapters))}); expected one. "
            "Merge or remove the others where they were trained."
        )
    for module, both in sides.items():
        if len(both) == 2:
            found.pairs[module] = Pair(both["A"], both["B"])
        else:
            ((side, stored),) = both.items()
            found.missing.append(stored.replace(f".lora_{side}", ".lora_B" if side == "A" else ".lora_A"))
    return found


def read_scale(folder: Path, rank: int, lora_alpha: float | None = None) -> float:
    """Find the factor of ``B A``.

    Args:
        folder: May say alpha, in config.json (``lora_alpha``) or in PEFT's adapter_config.json.
        rank: r, the number of rows of A.
        lora_alpha: alpha, if the caller knows it; it wins.

    Returns:
        ``alpha / r``; where nobody says alpha, 2 as published (METHOD 1.4, 6.3).

    Raises:
        SettingError: ``lora_alpha`` is not a positive number.
        CheckpointError: adapter_config.json describes something other than a plain LoRA of one rank.
    """
    if lora_alpha is not None:
        if isinstance(lora_alpha, bool) or not isinstance(lora_alpha, int | float) or not lora_alpha > 0:
            raise SettingError(
                f"lora_alpha={lora_alpha!r} must be a positive number; published: 2 x rank = {2 * rank}."
            )
        return lora_alpha / rank
    alpha = _read_json(folder / "config.json").get("lora_alpha")
    if alpha is not None:
        return float(alpha) / rank
    peft = _read_json(folder / "adapter_config.json")
    special = [name for name in ("use_dora", "rank_pattern", "alpha_pattern") if peft.get(name)]
    if special or peft.get("peft_type", "LORA") != "LORA" or peft.get("r", rank) != rank:
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: describes peft_type={peft.get('peft_type')!r}, r={peft.get('r')}"
            f"{''.join(f', {name}={peft[name]!r}' for name in special)}; expected a plain LORA of rank {rank}, as its "
            "tensors have. Merge it with PEFT where it was trained."
        )
    if "lora_alpha" in peft:
        return float(peft["lora_alpha"]) / (rank**0.5 if peft.get("use_rslora") else rank)
    return _PUBLISHED_RATIO


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); copy it again.") from error
    return found if isinstance(found, dict) else {}


def merge(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Compute ``W + scale * B A`` in float32 or wider.

    Args:
        weight: ``(out, in)``.
        a: ``(r, in)``.
        b: ``(out, r)``.
        scale: ``alpha / r``.

    Returns:
        ``(out, in)``, not yet rounded to the type of ``weight``.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    return torch.addmm(weight.to(wide), b.to(wide), a.to(wide), alpha=scale)
