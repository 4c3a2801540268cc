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
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import self1e
from self1e.data.scenes import Scenes
from self1e.figures import looking
from self1e.figures.colours import diverging, heat, principal_colours
from self1e.figures.looking import Seen
from self1e.figures.sheet import FAINT, INK, LINE, ZOOM, Sheet

ROOT = Path(__file__).parents[1]
PHOTOGRAPH = ROOT / "src" / "self1e" / "assets" / "astronaut.jpg"
SCENE, SCENE_SIZE = 219, (500, 500)
SCENE_QUERY, PHOTOGRAPH_QUERY = "the square above the brown circle", "the person"
TEASER_QUERIES = ("the square above the brown circle", "the smallest thing")

CAUSAL, ADDED, BLOCKED = (96, 110, 130), (238, 120, 20), (240, 242, 245)
TEASER_COLOURS = ((230, 0, 140), (0, 200, 230), (140, 70, 255))  # none of them is in the scene
WORDS, PICTURE, SEG = (96, 110, 130), (20, 130, 90), (200, 30, 110)

# --------------------------------------------------------------------------- what the model computes


def look(segmenter: Any, image: Image.Image, query: str) -> Seen:
    """Ask once, and keep what passes by; the texts of these figures tell of the published switches."""
    config = segmenter.model.config
    if (config.unshuffle, config.fine, config.residual) != ("two", "replicate", True):
        raise SystemExit(f"{segmenter.name}: the figures show the published switches only; see `self1e info`.")
    return looking.look(segmenter, image, query)


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
    image = torch.from_numpy(seen.is_image)
    mean = seen.attention.mean(0)
    panels = [
        (seen.image, "the picture"),
        (heat(seen.image, mean[seg, image].reshape(seen.grid_hw)), "[SEG] looks at the picture"),
        (heat(seen.image, mean[image, seg].reshape(seen.grid_hw)), "the picture looks at [SEG]"),
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
        assert one.fine is not None  # `look` refuses models without
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
        limit = float(np.percentile(one.stages[-1].logits.abs().numpy(), 98))
        panels: list[Image.Image | np.ndarray] = [one.image]
        panels += [diverging(stage.logits, limit) for stage in one.stages]
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
        one.stages[-1].logits[None, None], size=(image.height, image.width), mode="bilinear", align_corners=False
    )
    result = self1e.Segmentation.from_masks((logits[0] > 0).numpy(), [1.0], [one.query], image=image)
    return result.overlay(colors=[(230, 0, 140)], legend=False)


def draw_all(segmenter: Any, out: Path, only: Sequence[str] = ()) -> list[Path]:
    """Draw the figures and say where they are."""
    out.mkdir(parents=True, exist_ok=True)
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
