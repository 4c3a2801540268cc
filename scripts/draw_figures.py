"""Draw the pictures of README and docs from what a model really computes: nothing in them is made up.

    python scripts/draw_figures.py                        # nano, into docs/assets
    python scripts/draw_figures.py --model FOLDER --out FOLDER

teaser.png           words and masks: a drawn scene, and a photograph
dual-perception.png  the attention mask of a real prompt, and who looks at whom
rfr.png              the language model's input, output and difference, beside the fine features
rfa.png              mask logits, one term of the fused map after the other

The photograph is NASA's portrait of Eileen Collins (public domain); scenes are of the test split. What is shown
was chosen by the pictures, before the results were known.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

import self1e
from self1e.data.scenes import Scenes
from self1e.model.attention import language_attention_mask
from self1e.model.mask_head import upsample

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / "src" / "self1e" / "assets" / "astronaut.jpg"
SCENE, SCENE_SIZE = 219, (500, 500)
SCENE_QUERY, PHOTOGRAPH_QUERY = "the square above the brown circle", "the person"
TEASER_QUERIES = ("the square above the brown circle", "the smallest thing")

ZOOM = 2  # everything below is in units of half a pixel's side: figures stay sharp on dense screens
PAPER, INK, FAINT, LINE = (255, 255, 255), (28, 32, 38), (104, 112, 122), (206, 211, 217)
CAUSAL, ADDED, BLOCKED = (96, 110, 130), (238, 120, 20), (240, 242, 245)
TEASER_COLOURS = ((230, 0, 140), (0, 200, 230), (140, 70, 255))  # none of them is in the scene
WORDS, PICTURE, SEG = (96, 110, 130), (20, 130, 90), (200, 30, 110)

# --------------------------------------------------------------------------- what the model computes


@dataclass
class Seen:
    """Every tensor that the figures show, of one query on one picture."""

    image: Image.Image
    query: str
    tokens: list[str]
    is_image: np.ndarray
    """Bool ``(N,)``, like ``is_seg``."""
    is_seg: np.ndarray
    readout: int
    """Position whose hidden state is F_SEG."""
    allowed: np.ndarray
    """Who sees whom, as the language model got it, bool ``(N, N)``; rows ask."""
    causal: np.ndarray
    attention: torch.Tensor
    """Mean over layers and heads, ``(N, N)``."""
    fine: torch.Tensor
    """F_V1^HQ ``(2H, 2W, D)``."""
    coarse_in: torch.Tensor
    """F_V1 ``(H, W, D)``."""
    coarse_out: torch.Tensor
    """F_IMG ``(H, W, D)``."""
    stages: list[torch.Tensor]
    """Mask logits: F_IMG alone, fine features alone, with the plain residual, with the amplified one."""


@torch.inference_mode()
def look(segmenter: Any, image: Image.Image, query: str) -> Seen:
    """Ask once, and keep what passes by."""
    model, processor = segmenter.model, segmenter.processor
    config = model.config
    if (config.unshuffle, config.fine, config.residual) != ("two", "replicate", True):
        raise SystemExit(f"{segmenter.name}: the figures show the published switches only; see `self1e info`.")
    kept: dict[str, Any] = {}
    hooks = [
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: kept.update(mask=kwargs["attention_mask"]), with_kwargs=True
        ),
        model.mask_head.register_forward_pre_hook(
            lambda module, args, kwargs: kept.update(head=kwargs), with_kwargs=True
        ),
    ]
    try:
        encoded = segmenter.encode(image, max_tiles=1)
        inputs = processor.segmentation_inputs([query], num_tiles=1)
        output = model(**inputs, vision=encoded.vision, output_attentions=True)
    finally:
        for hook in hooks:
            hook.remove()
    ids = inputs["input_ids"][0]
    is_image, is_seg = ids == config.image_token_id, ids == config.seg_token_id
    mask = kept["mask"][0, 0]
    causal = language_attention_mask(
        config.text_config,
        is_image=is_image[None],
        is_seg=is_seg[None],
        is_real=inputs["attention_mask"].bool(),
        rule="causal",
        dtype=torch.float32,
    )[0, 0]
    return Seen(
        image=image,
        query=query,
        tokens=[processor.tokenizer.decode([index]) for index in ids.tolist()],
        is_image=is_image.numpy(),
        is_seg=is_seg.numpy(),
        readout=int(is_seg.nonzero()[0]) - (config.seg_readout == "before"),
        allowed=_allowed(mask),
        causal=_allowed(causal),
        attention=torch.stack([layer[0].float().mean(0) for layer in output.attentions]).mean(0),
        fine=kept["head"]["fine"][0],
        coarse_in=kept["head"]["coarse_in"][0],
        coarse_out=kept["head"]["coarse_out"][0],
        stages=_stages(model.mask_head, kept["head"], output.mask_logits[0][0]),
    )


def _allowed(mask: torch.Tensor) -> np.ndarray:
    """Read an additive mask (eager attention) or a bool one."""
    return (mask if mask.dtype == torch.bool else mask == 0).numpy()


def _stages(head: Any, given: dict[str, Any], final: torch.Tensor) -> list[torch.Tensor]:
    """Score parts of Eq. 5 with the same weights and the same query: what each term carries.

    Nothing is trained anew, so these are not the rows of the paper's Table 5.
    """
    scale = head.expand_language.scale
    query = head._query(given["seg"])[0]
    language = head.expand_language.unfold(given["coarse_out"])
    residual = language - head.expand_vision.unfold(given["coarse_in"])
    fine = head.expand_vision.unfold(given["fine"])

    def plain(x: torch.Tensor) -> torch.Tensor:
        """Average the sub-pixels of each token: what is left without amplifying."""
        batch, height, width, dim = x.shape
        return x.reshape(batch, height // scale, scale, width // scale, scale, dim).mean((2, 4))

    def score(pixels: torch.Tensor, final_mlp: Any = head.final_mlp) -> torch.Tensor:
        pixels = pixels if final_mlp is None else final_mlp(pixels)
        return pixels[0] @ query / query.shape[-1] ** 0.5

    size = (fine.shape[1], fine.shape[2])
    through = head.final_mlp if head.auxiliary == "through_final_mlp" else None
    stages = [
        score(plain(language), through),  # as the auxiliary loss trains it
        score(fine),
        score(fine + upsample(plain(residual), size)),
        score(fine + upsample(residual, size)),
    ]
    torch.testing.assert_close(stages[-1], final, rtol=1e-4, atol=1e-4)  # the figure shows the model, or nothing
    return stages


# --------------------------------------------------------------------------- numbers to colours


def principal_colours(maps: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Show features as RGB: their three strongest directions, fitted on all maps together.

    Args:
        maps: ``(h, w, D)`` each.

    Returns:
        uint8 ``(h, w, 3)`` each; equal colours mean like features, also across these maps.
    """
    rows = [x.double().flatten(0, 1).numpy() for x in maps]
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in rows])  # a finer map counts no more
    values = np.concatenate(rows)
    values = values - np.average(values, axis=0, weights=weights)
    _, _, directions = np.linalg.svd(values * np.sqrt(weights)[:, None], full_matrices=False)
    directions = directions[:3]
    strongest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), strongest])[:, None]  # sign is arbitrary
    colours = values @ directions.T
    low, high = np.percentile(colours, (2, 98), axis=0)
    colours = np.clip((colours - low) / np.maximum(high - low, 1e-9), 0, 1)
    parts = np.split(colours, np.cumsum([len(x) for x in rows])[:-1])
    return [
        (255 * part).round().astype(np.uint8).reshape(*x.shape[:2], -1) for part, x in zip(parts, maps, strict=True)
    ]


def diverging(values: torch.Tensor, limit: float) -> np.ndarray:
    """Blue below 0, white at 0, red above: ``(h, w)`` to uint8 ``(h, w, 3)``."""
    x = np.clip(values.double().numpy() / max(limit, 1e-9), -1, 1)[..., None]
    warm, cold = np.array([202, 32, 40.0]), np.array([40, 90, 180.0])
    colours = 255 + np.maximum(x, 0) * (warm - 255) + np.maximum(-x, 0) * (cold - 255)
    return colours.round().astype(np.uint8)


def heat(image: Image.Image, weights: torch.Tensor) -> Image.Image:
    """Lay attention over a greyed picture: more is brighter orange."""
    side = round(len(weights) ** 0.5)
    x = weights.double().numpy().reshape(side, side)
    x = (x - x.min()) / max(x.max() - x.min(), 1e-9)
    amount = Image.fromarray((215 * x).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, (20, 24, 30)), 0.45)
    grey.paste(Image.new("RGB", image.size, (255, 150, 20)), mask=amount)
    return grey


# --------------------------------------------------------------------------- paper and pen


class Sheet:
    """A white card with rounded corners: reads well on white and on dark pages."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (round(width * ZOOM), round(height * ZOOM)), PAPER)
        self.pen = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, words: str, size: float = 13, ink: Any = INK, anchor: str = "l", bold: bool = False
    ) -> float:
        """Write a line whose middle is at ``y``; ``_{...}`` is low and ``^{...}`` high. Returns its width."""
        runs = list(_runs(words))
        fonts = [ImageFont.load_default(size * ZOOM * (0.72 if shift else 1)) for _, shift in runs]
        widths: list[float] = []
        position = 0.0
        # An upper index stands above the lower one before it, not behind it.
        places: list[float] = []
        for number, ((part, shift), font) in enumerate(zip(runs, fonts, strict=True)):
            stacked = shift > 0 and number and runs[number - 1][1] < 0
            start = position - widths[-1] if stacked else position
            places.append(start)
            widths.append(font.getlength(part))
            position = max(position, start + widths[-1])
        left = x * ZOOM - {"l": 0, "m": position / 2, "r": position}[anchor]
        for (part, shift), font, place in zip(runs, fonts, places, strict=True):
            spot = (left + place, (y - shift * size * 0.38) * ZOOM)
            self.pen.text(spot, part, ink, font, anchor="lm", stroke_width=ZOOM * 0.25 if bold else 0)
        return position / ZOOM

    def lines(self, x: float, y: float, words: str, width: float, size: float = 11, ink: Any = FAINT) -> float:
        """Write a paragraph from ``y`` down, wrapped to ``width``. Returns where it ends."""
        line = ""
        for word in words.split():
            longer = f"{line} {word}".strip()
            if line and self.measure(longer, size) > width:
                self.text(x, y + size / 2, line, size, ink)
                line, y = word, y + 1.35 * size
            else:
                line = longer
        self.text(x, y + size / 2, line, size, ink)
        return y + 1.35 * size

    @staticmethod
    def measure(words: str, size: float) -> float:
        """How wide a line will be."""
        return (
            sum(
                ImageFont.load_default(size * ZOOM * (0.72 if shift else 1)).getlength(part)
                for part, shift in _runs(words)
            )
            / ZOOM
        )

    def picture(self, x: float, y: float, side: float, what: Image.Image | np.ndarray) -> None:
        """Put a picture into a square frame; small maps keep their hard pixels."""
        image = Image.fromarray(what) if isinstance(what, np.ndarray) else what
        pixels = round(side * ZOOM)
        how = Image.Resampling.NEAREST if isinstance(what, np.ndarray) else Image.Resampling.LANCZOS
        scale = pixels / max(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), how)
        left, top = round(x * ZOOM), round(y * ZOOM)
        self.image.paste(image, (left + (pixels - image.width) // 2, top + (pixels - image.height) // 2))
        self.pen.rectangle((left, top, left + pixels - 1, top + pixels - 1), outline=LINE, width=ZOOM // 2)

    def box(self, x: float, y: float, width: float, height: float, fill: Any) -> None:
        """Fill a rectangle."""
        self.pen.rectangle(
            (round(x * ZOOM), round(y * ZOOM), round((x + width) * ZOOM) - 1, round((y + height) * ZOOM) - 1), fill
        )

    def sign(self, x: float, y: float, words: str) -> None:
        """Write an operator between two pictures."""
        self.text(x, y, words, 20, FAINT, "m")

    def save(self, path: Path) -> None:
        """Write a PNG with rounded, transparent corners."""
        mask = Image.new("L", self.image.size, 0)
        edge = (0, 0, self.image.width - 1, self.image.height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(edge, 12 * ZOOM, 255)
        card = self.image.convert("RGBA")
        ImageDraw.Draw(card).rounded_rectangle(edge, 12 * ZOOM, outline=LINE, width=ZOOM // 2)
        card.putalpha(mask)
        card.save(path, optimize=True)


def _runs(words: str) -> list[tuple[str, int]]:
    """Split ``F_{V1}^{HQ}`` into parts and their height: 0, -1 low, 1 high."""
    runs: list[tuple[str, int]] = []
    while words:
        starts = [(words.find(mark), shift) for mark, shift in (("_{", -1), ("^{", 1)) if mark in words]
        if not starts:
            return [*runs, (words, 0)]
        start, shift = min(starts)
        end = words.index("}", start)
        if start:
            runs.append((words[:start], 0))
        runs.append((words[start + 2 : end], shift))
        words = words[end + 1 :]
    return runs


# --------------------------------------------------------------------------- the figures


def scene() -> Image.Image:
    """The drawn scene of all figures."""
    return Scenes("test", size_wh=SCENE_SIZE)[SCENE].image


def photograph() -> Image.Image:
    """The photograph of all figures."""
    with Image.open(PHOTOGRAPH) as image:
        return image.convert("RGB")


def draw_teaser(segmenter: Any) -> Sheet:
    """Pictures, words, masks."""
    side, gap, margin = 250, 12, 18
    asked = [(scene(), TEASER_QUERIES), (photograph(), (PHOTOGRAPH_QUERY,))]
    sheet = Sheet(4 * side + 2 * gap + 30 + 2 * margin, side + 92 + 2 * margin)
    x = float(margin)
    for image, queries in asked:
        result = segmenter.segment(image, queries)
        colours = TEASER_COLOURS[: len(queries)]
        enlarged = _enlarged(result, (side * ZOOM, side * ZOOM))
        sheet.picture(x, margin, side, image)
        sheet.picture(x + side + gap, margin, side, enlarged.overlay(alpha=0.6, colors=colours, legend=False))
        y = margin + side + 22
        for k, query in enumerate(queries):
            sheet.box(x, y - 6, 12, 12, LINE if result.is_empty[k] else colours[k])
            note = "not there" if result.is_empty[k] else ""
            width = sheet.text(x + 20, y, f'"{query}"', 15)
            sheet.text(x + 28 + width, y, note, 12, FAINT)
            y += 25
        x += 2 * side + gap + 30
    return sheet


def _enlarged(result: Any, size_wh: tuple[int, int]) -> Any:
    """Bring a result to the size it is shown at, so that contours are drawn in the figure's own pixels."""
    masks = [
        np.asarray(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST))
        for mask in (one.mask() for one in result)
    ]
    return self1e.Segmentation.from_masks(
        masks, result.scores, result.queries, image=result.image.resize(size_wh, Image.Resampling.LANCZOS)
    )


def draw_dual_perception(seen: Seen) -> Sheet:
    """Two attention masks of one prompt, and what the pathways carry."""
    shown, blocks = _shorten(seen)
    count = len(shown)
    cell = max(2.0, min(12.0, 470 / count))
    side, left, top, gap = cell * count, 150, 106, 46
    small, margin = 172, 22
    sheet = Sheet(left + 2 * side + gap + margin, top + side + 56 + small + 36)
    sheet.text(margin, 26, f'Who sees whom, for the prompt of "{seen.query}"', 17, bold=True)
    sheet.text(
        margin,
        48,
        "Rows ask, columns answer. Every token of the prompt is shown, but only eight of the picture's.",
        11,
        FAINT,
    )
    for number, (allowed, title) in enumerate(((seen.causal, "Causal"), (seen.allowed, "Dual perception (SELF1E)"))):
        x = left + number * (side + gap)
        sheet.text(x + side / 2, top - 30, title, 14, anchor="m", bold=True)
        _draw_mask(sheet, x, top, cell, allowed[np.ix_(shown, shown)], seen.causal[np.ix_(shown, shown)])
        for name, colour, start, end in blocks:
            sheet.box(x + start * cell, top - 9, (end - start) * cell - 1, 5, colour)
            if (end - start) * cell > Sheet.measure(name, 10):
                sheet.text(x + (start + end) / 2 * cell, top - 16, name, 10, colour, "m")
    for _, colour, start, end in blocks:
        sheet.box(left - 9, top + start * cell, 5, (end - start) * cell - 1, colour)
    if cell >= 8:
        for row, index in enumerate(shown):
            word = _visible(seen, index)
            sheet.text(left - 14, top + (row + 0.5) * cell, word, cell * 0.86, _colour(seen, index), "r")
    y = top + side + 26
    x = float(left)
    for colour, words in (
        (CAUSAL, "may attend: causal"),
        (ADDED, "may attend: added by dual perception"),
        (BLOCKED, "may not"),
    ):
        sheet.box(x, y - 6, 12, 12, colour)
        x += 18 + sheet.text(x + 18, y, words, 11, FAINT) + 22
    y += 30
    seg = int(np.flatnonzero(seen.is_seg)[0])
    image = seen.is_image
    panels = [
        (seen.image, "the picture"),
        (heat(seen.image, seen.attention[seg, image]), "[SEG] looks at the picture"),
        (heat(seen.image, seen.attention[image, seg]), "the picture looks at [SEG]"),
    ]
    x = float(left)
    for panel, words in panels:
        sheet.picture(x, y, small, panel)
        sheet.text(x + small / 2, y + small + 14, words, 12, anchor="m")
        x += small + 26
    sheet.lines(
        x,
        y + 6,
        "Attention weights, mean over layers and heads; brighter is more, each panel on its own scale. The last panel "
        "exists only with dual perception: under a causal mask the picture comes before [SEG] and never sees it.",
        left + 2 * side + gap - x,
    )
    return sheet


def _shorten(seen: Seen) -> tuple[list[int], list[tuple[str, Any, int, int]]]:
    """Choose tokens to show (all words if they are few, eight of the picture) and name the blocks they form."""
    image = np.flatnonzero(seen.is_image)
    seg = int(np.flatnonzero(seen.is_seg)[0])
    before, after = np.arange(image[0]), np.arange(image[-1] + 1, seg)
    parts = [
        ("words", WORDS, _some(before, 18)),
        ("picture", PICTURE, _some(image, 8)),
        ("question", WORDS, _some(after, 26)),
        ("[SEG]", SEG, [seg]),
    ]
    shown: list[int] = []
    blocks = []
    for name, colour, chosen in parts:
        blocks.append((name, colour, len(shown), len(shown) + len(chosen)))
        shown += chosen
    return shown, blocks


def _some(indices: np.ndarray, most: int) -> list[int]:
    """Evenly spaced ones, the first and last among them."""
    if len(indices) <= most:
        return indices.tolist()
    return indices[np.linspace(0, len(indices) - 1, most).round().astype(int)].tolist()


def _visible(seen: Seen, index: int) -> str:
    """Spell a token so that it can be read."""
    if seen.is_image[index]:
        return f"image {index - int(np.flatnonzero(seen.is_image)[0])}"
    token = seen.tokens[index].replace("\n", "\\n").strip() or "space"
    token = f'"{token}"' if len(token) == 1 else token
    return f"F_{{SEG}} is read here:  {token}" if index == seen.readout else token


def _colour(seen: Seen, index: int) -> Any:
    return PICTURE if seen.is_image[index] else SEG if seen.is_seg[index] or index == seen.readout else WORDS


def _draw_mask(sheet: Sheet, x: float, y: float, cell: float, allowed: np.ndarray, causal: np.ndarray) -> None:
    for row, column in np.ndindex(*allowed.shape):
        colour = (CAUSAL if causal[row, column] else ADDED) if allowed[row, column] else BLOCKED
        sheet.box(x + column * cell, y + row * cell, cell - 0.5, cell - 0.5, colour)


def draw_rfr(seen: Sequence[Seen]) -> Sheet:
    """What the language model changed, beside what it never saw."""
    side, gap, margin, top = 172, 40, 22, 108
    sheet = Sheet(2 * margin + 5 * side + 4 * gap, top + len(seen) * (side + 44) + 34)
    sheet.text(margin, 26, "RFR: what the language model changed, added to what it never saw", 17, bold=True)
    sheet.text(
        margin, 48, "Each map as its three strongest directions in RGB (PCA): like colours, like features.", 11, FAINT
    )
    heads = ["the picture", "F_{V1}: coarse, in", "F_{IMG}: coarse, out", "F_{R}: the residual", "F_{V1}^{HQ}: fine"]
    for k, words in enumerate(heads):
        sheet.text(margin + k * (side + gap) + side / 2, top - 20, words, 14, anchor="m", bold=True)
    for row, one in enumerate(seen):
        y = top + row * (side + 44)
        # The fine and the coarse map come from one projector: fitted together, their colours compare.
        coarse_in, fine = principal_colours([one.coarse_in, one.fine])
        (coarse_out,), (residual,) = (principal_colours([x]) for x in (one.coarse_out, one.coarse_out - one.coarse_in))
        for k, panel in enumerate((one.image, coarse_in, coarse_out, residual, fine)):
            x = margin + k * (side + gap)
            sheet.picture(x, y, side, panel)
            note = f'"{one.query}"' if k == 0 else f"{panel.shape[0]} x {panel.shape[1]}"  # type: ignore[union-attr]
            sheet.text(x + side / 2, y + side + 14, note, 12, INK if k == 0 else FAINT, "m")
        middle = y + side / 2
        for k, words in ((1, "LLM"), (3, "+")):
            sheet.sign(margin + (k + 1) * (side + gap) - gap / 2, middle, words) if words == "+" else sheet.text(
                margin + (k + 1) * (side + gap) - gap / 2, middle, words, 13, FAINT, "m"
            )
    y = top + len(seen) * (side + 44)
    sheet.text(
        margin,
        y + 6,
        "F_{R} = F_{IMG} - F_{V1}  (Eq. 2), upsampled and added to F_{V1}^{HQ}  (Eq. 3). "
        "The model expands all of them before it subtracts and adds: that is RFA.",
        12,
        FAINT,
    )
    return sheet


def draw_rfa(seen: Sequence[Seen]) -> Sheet:
    """Mask logits, one term after the other."""
    side, gap, margin, top = 172, 22, 22, 126
    sheet = Sheet(2 * margin + 6 * side + 5 * gap, top + len(seen) * (side + 44) + 40)
    sheet.text(margin, 26, "RFA: the mask, one term of the fused map after the other", 17, bold=True)
    sheet.text(
        margin,
        48,
        "Mask logits of one trained model with parts left out; nothing is trained anew. Red is above 0: foreground.",
        11,
        FAINT,
    )
    heads = [
        ("the picture", ""),
        ("F_{IMG} alone", "the language model's tokens"),
        ("F_{V1}^{HQ} alone", "fine, but has read no words"),
        ("+ residual (RFR)", "interpolated"),
        ("+ residual (RFA)", "amplified: this is the model"),
        ("the mask", "logit > 0, at full size"),
    ]
    for k, (words, more) in enumerate(heads):
        sheet.text(margin + k * (side + gap) + side / 2, top - 34, words, 14, anchor="m", bold=True)
        sheet.text(margin + k * (side + gap) + side / 2, top - 16, more, 11, FAINT, "m")
    for row, one in enumerate(seen):
        y = top + row * (side + 44)
        limit = float(np.percentile(one.stages[-1].abs().numpy(), 98))
        panels: list[Image.Image | np.ndarray] = [one.image]
        panels += [diverging(stage, limit) for stage in one.stages]
        panels.append(_masked(one, side))
        for k, panel in enumerate(panels):
            x = margin + k * (side + gap)
            sheet.picture(x, y, side, panel)
            if k == 0:
                sheet.text(x + side / 2, y + side + 14, f'"{one.query}"', 12, anchor="m")
            elif isinstance(panel, np.ndarray):
                sheet.text(x + side / 2, y + side + 14, f"{panel.shape[0]} x {panel.shape[1]}", 12, FAINT, "m")
            else:
                width, height = one.image.size
                sheet.text(x + side / 2, y + side + 14, f"{width} x {height}", 12, FAINT, "m")
    y = top + len(seen) * (side + 44) + 8
    for step in range(120):
        colour = tuple(diverging(torch.tensor([[step / 59.5 - 1]]), 1.0)[0, 0].tolist())
        sheet.box(margin + 60 + step, y - 5, 1, 10, colour)
    sheet.text(margin, y, "logit  -", 11, FAINT)
    sheet.text(margin + 186, y, "+    one scale per row; beyond it colours saturate", 11, FAINT)
    return sheet


def _masked(one: Seen, side: float) -> Image.Image:
    """Outline the final mask on the picture."""
    width = round(side * ZOOM)
    image = one.image.resize((width, round(width * one.image.height / one.image.width)), Image.Resampling.LANCZOS)
    logits = torch.nn.functional.interpolate(
        one.stages[-1][None, None], size=(image.height, image.width), mode="bilinear", align_corners=False
    )
    result = self1e.Segmentation.from_masks((logits[0] > 0).numpy(), [1.0], [one.query], image=image)
    return result.overlay(colors=[(230, 0, 140)], legend=False)


def draw_all(segmenter: Any, out: Path, only: Sequence[str] = ()) -> list[Path]:
    """Draw the figures and say where they are."""
    out.mkdir(parents=True, exist_ok=True)
    segmenter.model.set_attn_implementation("eager")  # the only one that tells its weights
    seen: list[Seen] = []

    def both() -> list[Seen]:
        if not seen:
            seen.append(look(segmenter, scene(), SCENE_QUERY))
            seen.append(look(segmenter, photograph(), PHOTOGRAPH_QUERY))
        return seen

    figures: dict[str, Callable[[], Sheet]] = {
        "teaser": lambda: draw_teaser(segmenter),
        "dual-perception": lambda: draw_dual_perception(both()[0]),
        "rfr": lambda: draw_rfr(both()),
        "rfa": lambda: draw_rfa(both()),
    }
    unknown = set(only) - set(figures)
    if unknown:
        raise SystemExit(f"No figure {', '.join(sorted(unknown))}; choose from {', '.join(figures)}.")
    paths = []
    for name, draw in figures.items():
        if not only or name in only:
            draw().save(out / f"{name}.png")
            paths.append(out / f"{name}.png")
    return paths


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Draw the figures of README and docs.")
    parser.add_argument("--model", default="nano", help="nano, or a folder with the published switches")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--only", nargs="*", default=[], help="names without .png; all if left out")
    given = parser.parse_args(arguments)
    segmenter = self1e.load(given.model, device="cpu", dtype="float32")
    for path in draw_all(segmenter, given.out, given.only):
        print(path)


if __name__ == "__main__":
    main()
