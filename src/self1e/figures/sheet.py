"""Paper and pen of the figures: a white card, text with indices, pictures in frames. PIL only."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from self1e.files import atomic_write

ZOOM = 2
"""Pixels per unit: figures stay sharp on dense screens."""
PAPER, INK, FAINT, LINE = (255, 255, 255), (28, 32, 38), (104, 112, 122), (206, 211, 217)


def pixels_of(width: float, height: float) -> tuple[int, int]:
    """Size of a panel in pixels; of a picture that is one line, one pixel is left."""
    return max(1, round(width * ZOOM)), max(1, round(height * ZOOM))


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
        image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), how)
        left, top = round(x * ZOOM), round(y * ZOOM)
        self.image.paste(image, (left + (pixels - image.width) // 2, top + (pixels - image.height) // 2))
        self.pen.rectangle((left, top, left + pixels - 1, top + pixels - 1), outline=LINE, width=ZOOM // 2)

    def panel(self, x: float, y: float, width: float, height: float, what: Image.Image | np.ndarray) -> None:
        """Put a picture into a frame of its own shape; small maps keep their hard pixels."""
        how = Image.Resampling.NEAREST if isinstance(what, np.ndarray) else Image.Resampling.LANCZOS
        image = Image.fromarray(what) if isinstance(what, np.ndarray) else what
        left, top = round(x * ZOOM), round(y * ZOOM)
        image = image.resize(pixels_of(width, height), how)
        self.image.paste(image, (left, top))
        self.pen.rectangle((left, top, left + image.width - 1, top + image.height - 1), outline=LINE, width=ZOOM // 2)

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
        buffer = io.BytesIO()
        self.card().save(buffer, "PNG", optimize=True)
        atomic_write(path, buffer.getvalue())

    def card(self) -> Image.Image:
        """Round the corners: RGBA."""
        mask = Image.new("L", self.image.size, 0)
        edge = (0, 0, self.image.width - 1, self.image.height - 1)
        ImageDraw.Draw(mask).rounded_rectangle(edge, 12 * ZOOM, 255)
        card = self.image.convert("RGBA")
        ImageDraw.Draw(card).rounded_rectangle(edge, 12 * ZOOM, outline=LINE, width=ZOOM // 2)
        card.putalpha(mask)
        return card


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
