"""Overlays: fill, contour and a small legend, with PIL and numpy only."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from self1e.errors import SettingError
from self1e.structures import mask_image

if TYPE_CHECKING:
    from self1e.structures import Segmentation

Color = tuple[int, int, int]

# Far apart for most eyes, and from skin, grass, sky and asphalt; no grey, which the legend uses for "not there".
_FIRST_COLORS: tuple[Color, ...] = (
    (0, 120, 255),
    (255, 128, 0),
    (230, 0, 140),
    (0, 190, 120),
    (140, 70, 255),
    (230, 200, 0),
    (220, 30, 30),
    (0, 200, 230),
)
_HALO: Color = (255, 255, 255)
_NOT_THERE: Color = (205, 205, 205)


def distinct_colors(count: int) -> list[Color]:
    """Return ``count`` RGB colours, all different; the first few are far apart."""
    colors = list(_FIRST_COLORS[:count])
    for k in range(len(colors), count):
        hue = (k * 0.61803398875) % 1  # golden ratio: each new hue falls into the widest gap so far
        saturation, value = ((0.9, 0.95), (0.6, 1.0), (1.0, 0.65))[k % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colors


def draw_overlay(
    result: Segmentation, *, alpha: float, colors: Sequence[str | Color] | None, legend: bool
) -> Image.Image:
    """Draw ``result`` on its picture; ``Segmentation.overlay`` documents the arguments."""
    assert result.image is not None  # the caller says so more kindly
    if not 0 <= alpha <= 1:
        raise SettingError(f"overlay: alpha={alpha}, expected 0 (contour only) to 1 (picture covered).")
    palette = _palette(colors, len(result))
    canvas = result.image.copy()
    covered = np.zeros((canvas.height, canvas.width), dtype=bool)
    for k, (x0, y0, x1, y1), mask in _present(result):
        covered[y0:y1, x0:x1] |= mask
        canvas.paste(palette[k], (x0, y0, x1, y1), mask_image(mask, round(255 * alpha)))
    line = max(1, round(min(canvas.size) / 300))
    for k, box, mask in _present(result):  # after all fills, so that no fill hides a contour
        _draw_contour(canvas, box, mask, palette[k], line)
    if legend:
        _draw_legend(canvas, result, palette, covered)
    return canvas


def _palette(colors: Sequence[str | Color] | None, count: int) -> list[Color]:
    if colors is None:
        return distinct_colors(count)
    if isinstance(colors, str) or len(colors) != count:
        raise SettingError(
            f"overlay: colors={colors!r:.80} for {count} queries; pass a list with one colour per query."
        )
    try:
        rgb = [ImageColor.getrgb(color) if isinstance(color, str) else color for color in colors]
        return [(int(color[0]), int(color[1]), int(color[2])) for color in rgb]
    except (ValueError, TypeError, IndexError) as error:
        raise SettingError(f"overlay: colors={colors!r:.80}; expected names or (red, green, blue): {error}.") from error


def _present(result: Segmentation) -> Iterator[tuple[int, tuple[int, int, int, int], np.ndarray]]:
    """Yield query number, box and the mask within its box, for the masks that are not empty."""
    for k, (x0, y0, x1, y1) in enumerate(result.boxes_xyxy.tolist()):
        if x1 > x0:
            yield k, (x0, y0, x1, y1), result.mask(k)[y0:y1, x0:x1]


def _draw_contour(
    canvas: Image.Image, box: tuple[int, int, int, int], mask: np.ndarray, color: Color, line: int
) -> None:
    """Draw a coloured line inside the mask's edge and a thinner white one outside.

    On a background of the line's own colour the white one shows, on a white background the coloured one.
    """
    halo = (line + 1) // 2
    margin = line + 1
    padded = np.pad(mask, margin)
    x0, y0, x1, y1 = box
    around = (x0 - margin, y0 - margin, x1 + margin, y1 + margin)  # paste clips what lies beyond the picture
    canvas.paste(_HALO, around, mask_image(_grow(padded, halo) & ~padded))
    canvas.paste(color, around, mask_image(padded & _grow(~padded, line)))


def _grow(mask: np.ndarray, reach: int) -> np.ndarray:
    """Dilate by a square of ``2 * reach + 1`` pixels, each axis in a logarithmic number of shifts."""
    for axis in (0, 1):
        done = 0
        while done < reach:
            step = min(reach - done, 2 * done + 1)
            grown = mask.copy()
            there, back = np.moveaxis(grown, axis, 0), np.moveaxis(mask, axis, 0)
            there[step:] |= back[:-step]
            there[:-step] |= back[step:]
            mask, done = grown, done + step
    return mask


def _draw_legend(canvas: Image.Image, result: Segmentation, palette: list[Color], covered: np.ndarray) -> None:
    """Write the queries into the corner where the panel hides the fewest mask pixels."""
    size = max(10, round(min(canvas.size) / 26))
    if min(canvas.size) < 8 * size or not len(result):
        return  # on such a small picture a legend hides more than it says
    panel = _legend_panel(result, palette, size, canvas.width * 0.5, canvas.height * 0.3)
    if panel.width > 0.6 * canvas.width:
        return  # narrow pictures
    gap = size // 2
    right, bottom = canvas.width - panel.width - gap, canvas.height - panel.height - gap
    corners = [(gap, gap), (right, gap), (gap, bottom), (right, bottom)]

    def hidden(corner: tuple[int, int]) -> int:
        x, y = corner
        return int(np.count_nonzero(covered[y : y + panel.height, x : x + panel.width]))

    canvas.paste(panel, min(corners, key=hidden), panel)


def _legend_panel(
    result: Segmentation, palette: list[Color], size: int, max_width: float, max_height: float
) -> Image.Image:
    """Draw the legend itself, RGBA: a swatch, the query and its score per row, as many rows as fit."""
    font = ImageFont.load_default(size)
    gap, row = size // 2, round(1.35 * size)
    rows = max(1, int((max_height - 2 * gap) // row))
    shown = len(result) if len(result) <= rows else max(1, rows - 1)
    room = max_width - row - 2 * gap
    empty = result.is_empty
    lines = []
    for k in range(shown):
        ending = " (not there)" if empty[k] else f"  {result.scores[k]:.2f}"
        words = " ".join(result.queries[k].split())
        lines.append(_fit(words, font, room - font.getlength(ending)) + ending)
    if shown < len(result):
        lines.append(f"and {len(result) - shown} more")
    width = max(font.getlength(line) for line in lines)
    panel = Image.new("RGBA", (round(row + width + 2 * gap), row * len(lines) + gap), (0, 0, 0, 175))
    pen = ImageDraw.Draw(panel)
    for k, line in enumerate(lines):
        top = gap // 2 + k * row
        if k < shown:
            swatch = (gap, top + (row - size) // 2, gap + size, top + (row + size) // 2)
            border = _NOT_THERE if empty[k] else _HALO
            pen.rectangle(swatch, None if empty[k] else palette[k], border, max(1, size // 12))
        ink = (255, 255, 255) if k < shown and not empty[k] else _NOT_THERE
        pen.text((gap + row, top + row / 2), line, ink, font, anchor="lm")
    return panel


def _fit(words: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Shorten ``words`` until they are at most ``room`` pixels wide."""
    words = words[:200]  # a line never holds more, and measuring a novel takes long
    if font.getlength(words) <= room:
        return words
    while words and font.getlength(words + "...") > room:
        words = words[:-1].rstrip()
    return words + "..."
