"""Look at samples: every target as a picture with its mask and its words."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from self1e.data.sample import Sample

_TILE, _TEXT, _GAP = 192, 44, 6


def contact_sheet(samples: Iterable[Sample], columns: int = 6) -> Image.Image:
    """Lay out samples: for each the bare picture with its questions (or its source), then one tile per target.

    Pixels outside a mask are faded and its edge is drawn, so a tile that is pale all over is an absent target.
    """
    tiles = [tile for sample in samples for tile in _tiles(sample)]
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE + _GAP, _TILE + _TEXT + _GAP
    sheet = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), "white")
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + i % columns * step_x, _GAP + i // columns * step_y))
    return sheet


def _tiles(sample: Sample) -> Iterable[Image.Image]:
    asked = "\n".join(f"{question.text} {question.answer}" for question in sample.questions)
    yield _tile(sample.image, asked or sample.source)
    pixels = np.asarray(sample.image)
    for target in sample.targets:
        shown = np.where(target.mask[..., None], pixels, pixels // 4 + 150)
        shown[_edge(target.mask)] = (255, 0, 255)
        yield _tile(Image.fromarray(shown), f"[{target.tag}] {target.text}")


def _edge(mask: np.ndarray) -> np.ndarray:
    """Return the pixels just outside a mask."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown & ~mask


def _tile(picture: Image.Image, text: str) -> Image.Image:
    tile = Image.new("RGB", (_TILE, _TILE + _TEXT), "white")
    scale = _TILE / max(picture.size)
    small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST)
    tile.paste(small, ((_TILE - small.width) // 2, (_TILE - small.height) // 2))
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width=34)]
    ImageDraw.Draw(tile).text((1, _TILE + 1), "\n".join(lines), fill="black")
    return tile
