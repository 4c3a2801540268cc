"""Fig. 4: the mask as its terms come together. Low resolution, + fine features, + RFR, + RFA."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from self1e.figures.colours import diverging
from self1e.figures.looking import Seen, look
from self1e.figures.sheet import FAINT, Sheet, pixels_of
from self1e.structures import Segmentation

_SIDE, _GAP, _MARGIN, _TOP = 200, 18, 22, 122
_FILL = (230, 0, 140)


def draw_stages(
    segmenter: Any, image: Image.Image, queries: Sequence[str], *, max_tiles: int | None = 1, truths: Any = None
) -> Sheet:
    """Draw one row of masks and one of logits per query.

    The terms are those of one trained model, left out one after another; the paper's figure compares models that were
    trained without them.

    Args:
        segmenter: From ``self1e.load``.
        image: RGB.
        queries: One or several.
        max_tiles: See ``Self1E.encode``.
        truths: Bool ``(H, W)`` per query, drawn in the first column; none if left out.
    """
    seen = [look(segmenter, image, query, max_tiles=max_tiles) for query in queries]
    columns = 1 + len(seen[0].stages)
    shape = _shape(image)
    row_height = 2 * shape[1] + 52
    sheet = Sheet(2 * _MARGIN + columns * _SIDE + (columns - 1) * _GAP, _TOP + len(seen) * row_height + 34)
    sheet.text(_MARGIN, 26, "The mask, one term of the fused features after the other", 17, bold=True)
    words = (
        "One trained model with parts left out, nothing trained anew. Above: logit > 0. Below: the logits themselves"
    )
    sheet.text(_MARGIN, 48, f"{words}, red is above 0.", 11, FAINT)
    heads = [("the picture", ""), *((stage.name, stage.note) for stage in seen[0].stages)]
    for k, (name, note) in enumerate(heads):
        sheet.text(_x(k) + _SIDE / 2, _TOP - 34, name, 14, anchor="m", bold=True)
        last = " = the model" if k == columns - 1 and columns > 2 else ""
        sheet.text(_x(k) + _SIDE / 2, _TOP - 16, note + last, 11, FAINT, "m")
    for number, one in enumerate(seen):
        y = _TOP + number * row_height
        truth = None if truths is None else truths[number]
        _draw_row(sheet, y, one, shape, truth)
    _draw_scale(sheet, _TOP + len(seen) * row_height + 8)
    return sheet


def _x(column: int) -> float:
    return _MARGIN + column * (_SIDE + _GAP)


def _shape(image: Image.Image) -> tuple[float, float]:
    """Width and height of a panel, in units: no panel is higher than wide."""
    scale = _SIDE / max(image.size)
    return image.width * scale, image.height * scale


def _draw_row(sheet: Sheet, y: float, one: Seen, shape: tuple[float, float], truth: np.ndarray | None) -> None:
    width, height = shape
    left = (_SIDE - width) / 2
    sheet.panel(_x(0) + left, y, width, height, one.image)
    sheet.lines(_x(0) + 4, y + height + 8, f'"{one.query}"', _SIDE - 8, 13, (28, 32, 38))
    if truth is not None:
        shown = overlay_of(one.image, truth, one.query, pixels_of(width, height), (0, 150, 90))
        sheet.panel(_x(0) + left, y + height + 44, width, height - 38, shown)
    limit = float(np.percentile(one.stages[-1].logits.abs().numpy(), 98))
    for k, stage in enumerate(one.stages, 1):
        mask = full_size(stage.logits, one.image)
        sized = overlay_of(one.image, mask, one.query, pixels_of(width, height), _FILL)
        sheet.panel(_x(k) + left, y, width, height, sized)
        sheet.panel(_x(k) + left, y + height + 6, width, height, diverging(stage.logits, limit))
        rows, columns = stage.logits.shape
        sheet.text(_x(k) + _SIDE / 2, y + 2 * height + 22, f"{rows} x {columns}", 12, FAINT, "m")


def full_size(logits: torch.Tensor, image: Image.Image) -> np.ndarray:
    """Enlarge as the model does, then threshold: ``(h, w)`` to bool ``(H, W)`` of the picture."""
    size = (image.height, image.width)
    return (F.interpolate(logits[None, None], size=size, mode="bilinear", align_corners=False)[0, 0] > 0).numpy()


def overlay_of(
    image: Image.Image, mask: np.ndarray, query: str, size_wh: tuple[int, int], colour: tuple[int, int, int]
) -> Image.Image:
    """Bring picture and mask to the size they are shown at, so that contours are drawn in the figure's own pixels."""
    shown = np.asarray(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST))
    small = image.resize(size_wh, Image.Resampling.LANCZOS)
    return Segmentation.from_masks([shown], [1.0], [query], image=small).overlay(
        alpha=0.5, colors=[colour], legend=False
    )


def _draw_scale(sheet: Sheet, y: float) -> None:
    for step in range(120):
        colour = tuple(diverging(torch.tensor([[step / 59.5 - 1]]), 1.0)[0, 0].tolist())
        sheet.box(_MARGIN + 60 + step, y - 5, 1, 10, colour)
    sheet.text(_MARGIN, y, "logit  -", 11, FAINT)
    sheet.text(_MARGIN + 186, y, "+    one scale per query; beyond it colours saturate", 11, FAINT)
