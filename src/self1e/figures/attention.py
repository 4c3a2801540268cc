"""Fig. 8: what [SEG] looks at in the picture under each attention rule of Table 7, and the mask that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from self1e.figures.colours import heat
from self1e.figures.looking import RULES, look
from self1e.figures.sheet import FAINT, Sheet, pixels_of
from self1e.figures.stages import full_size, overlay_of

_NAMES = {
    "causal": ("causal", ""),
    "image": ("[IMG] to [IMG]", ""),
    "image_seg": ("[IMG] to [IMG] and [SEG]", ""),
    "image_text": ("[IMG] to all words too", ""),
    "bidirectional": ("everybody to everybody", ""),
}
_SIDE, _GAP, _MARGIN, _TOP = 200, 18, 22, 112
_FILL = (230, 0, 140)


def draw_attention(
    segmenter: Any,
    image: Image.Image,
    queries: Sequence[str],
    *,
    layer: int | None = -1,
    rules: Sequence[str] = RULES,
    max_tiles: int | None = 1,
) -> Sheet:
    """Draw attention over the picture, and below it the mask: one column per rule.

    One trained model is asked under every rule; the paper's figure shows a model for each. The rule that it was trained
    with is marked.

    Args:
        segmenter: From ``self1e.load``.
        image: RGB.
        queries: One or several.
        layer: Of the language model, 1 to the last, or -1 for the last; None is the mean of all. Heads are averaged.
        rules: Columns, some of `RULES`.
        max_tiles: See ``Self1E.encode``.
    """
    own = segmenter.model.config.attention
    scale = _SIDE / max(image.size)
    width, height = image.width * scale, image.height * scale
    left, row_height = (_SIDE - width) / 2, 2 * height + 34
    columns = 1 + len(rules)
    sheet = Sheet(2 * _MARGIN + columns * _SIDE + (columns - 1) * _GAP, _TOP + len(queries) * row_height + 10)
    sheet.text(_MARGIN, 26, "What [SEG] looks at, under each attention rule", 17, bold=True)
    which = "mean of all layers" if layer is None else "last layer" if layer == -1 else f"layer {layer}"
    sheet.text(
        _MARGIN,
        48,
        f"Attention from [SEG] to the picture, {which}, mean over heads, each panel on its own scale. Below: the mask. "
        "One trained model, asked under other rules than its own: nothing is trained anew.",
        11,
        FAINT,
    )
    for k, rule in enumerate(rules, 1):
        sheet.text(_x(k) + _SIDE / 2, _TOP - 34, _NAMES[rule][0], 14, anchor="m", bold=True)
        if rule == own:
            sheet.text(_x(k) + _SIDE / 2, _TOP - 16, "trained with this rule", 11, FAINT, "m")
    for number, query in enumerate(queries):
        y = _TOP + number * row_height
        sheet.panel(_x(0) + left, y, width, height, image)
        sheet.lines(_x(0) + 4, y + height + 8, f'"{query}"', _SIDE - 8, 13, (28, 32, 38))
        for k, rule in enumerate(rules, 1):
            seen = look(segmenter, image, query, rule=rule, max_tiles=max_tiles)
            weights = seen.picture_attention(layer)
            size = pixels_of(width, height)
            sheet.panel(_x(k) + left, y, width, height, heat(image.resize(size), weights))
            mask = full_size(seen.stages[-1].logits, image)
            sheet.panel(_x(k) + left, y + height + 6, width, height, overlay_of(image, mask, query, size, _FILL))
            share = float(weights.sum())
            sheet.text(_x(k) + _SIDE / 2, y + 2 * height + 18, f"{share:.0%} of it goes to the picture", 11, FAINT, "m")
    return sheet


def _x(column: int) -> float:
    return _MARGIN + column * (_SIDE + _GAP)
