"""Classes to a map in which every pixel has one class, or none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from self1e.errors import PromptError
from self1e.web.finding import Row, check_length, shrunk

if TYPE_CHECKING:
    from self1e.inference.semantic import SemanticMap

MAX_CLASSES = 60
"""Most classes at once."""


def read_classes(text: str | None) -> list[str]:
    """Read class names, one per line or between commas.

    Raises:
        PromptError: There is none, or there are too many. What else can be wrong with names, the model says.
    """
    check_length(text)
    names = [" ".join(name.split()) for line in (text or "").splitlines() for name in line.split(",")]
    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise PromptError("Name the classes, one per line or between commas, for example: person, hair, clothes")
    if len(names) > MAX_CLASSES:
        raise PromptError(
            f"{len(names)} classes; the page takes {MAX_CLASSES}. The command self1e semantic takes more."
        )
    return names


def draw_map(found: SemanticMap, opacity: float) -> Image.Image:
    """Lay the colours over the picture, at the size of the page."""
    return shrunk(found.overlay(alpha=opacity, legend=False))


def class_rows(found: SemanticMap) -> list[Row]:
    """Tell share and score of each class, the largest first, those without a pixel at the end."""
    areas, pixels = found.areas.tolist(), found.labels.size
    told = [
        Row(name, _color(found, k), areas[k] > 0, float(found.scores[k]), areas[k], areas[k] / pixels, 0.0)
        for k, name in enumerate(found.classes)
    ]
    return sorted(told, key=lambda row: -row.area)


def _color(found: SemanticMap, k: int) -> tuple[int, int, int]:
    red, green, blue = found.palette[k + 1].tolist()
    return red, green, blue
