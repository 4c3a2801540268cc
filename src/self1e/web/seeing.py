"""How the model sees: the mask after each stage of the mask head, and what [SEG] looks at."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from self1e.errors import PromptError
from self1e.web.finding import check_length, shrunk

if TYPE_CHECKING:
    from torch import Tensor

SIGHT_SIDE = 512
"""Longest side of each panel."""
_FILL = (230, 0, 140)


@dataclass(frozen=True, eq=False)
class Sight:
    """What was seen while the model answered one query."""

    image: Image.Image
    query: str
    stages: tuple[tuple[str, Image.Image], ...]
    """What each is called, and the mask on the picture; the last is the model's."""
    attention: Tensor = field(repr=False)
    """Of [SEG] to the coarse tokens of the picture per layer, ``(L, H, W)``; mean over heads."""

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.attention)


def read_query(text: str | None) -> str:
    """Read the one query; of several lines the first.

    Raises:
        PromptError: There is none.
    """
    check_length(text)
    lines = [" ".join(line.split()) for line in (text or "").splitlines() if line.strip()]
    if not lines:
        raise PromptError("Say what the model should look for, for example: the person")
    return lines[0]


def see(model: Any, image: Image.Image, query: str) -> Sight:
    """Ask once, as one tile, and keep what passes by.

    The model is asked in a twin that shares its weights: looking hooks into modules and changes how attention is
    computed, which nobody who uses the model meanwhile should notice.
    """
    import torch

    from self1e.figures.looking import look
    from self1e.figures.stages import full_size, overlay_of

    small = shrunk(image, SIGHT_SIDE)
    seen = look(twin(model), small, query, max_tiles=1)
    stages = tuple(
        (
            _plain(f"{stage.name}: {stage.note}"),
            overlay_of(small, full_size(stage.logits, small), query, small.size, _FILL),
        )
        for stage in seen.stages
    )
    attention = torch.stack([seen.picture_attention(layer + 1) for layer in range(len(seen.attention))])
    return Sight(small, query, stages, attention)


def twin(model: Any) -> Any:
    """Make modules and settings anew around the same weights."""
    from self1e.inference.segmenter import Self1E

    tensors = {id(tensor): tensor for tensor in (*model.model.parameters(), *model.model.buffers())}
    return Self1E(copy.deepcopy(model.model, tensors), model.processor, name=model.name)


def attention_of(sight: Sight, layer: int) -> Image.Image:
    """Lay what [SEG] looks at over the greyed picture.

    Args:
        sight: From ``see``.
        layer: 1 to the last, 0 for the mean of all.
    """
    from self1e.figures.colours import heat

    weights = sight.attention.mean(0) if layer <= 0 else sight.attention[min(layer, sight.num_layers) - 1]
    return heat(sight.image, weights)


def attention_share(sight: Sight, layer: int) -> float:
    """How much of its attention [SEG] gives to the picture, 0 to 1; the rest goes to words."""
    weights = sight.attention.mean(0) if layer <= 0 else sight.attention[min(layer, sight.num_layers) - 1]
    return float(weights.sum())


def _plain(name: str) -> str:
    """Write ``F_{V1}^{HQ}`` without markup."""
    return name.replace("_{", "_").replace("^{", "^").replace("}", "")
