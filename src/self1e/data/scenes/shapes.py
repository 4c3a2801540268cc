"""What a scene is made of: kinds of shapes as unit polygons, colours, sizes, patterns.

Every kind is a polygon whose area equals that of a disc of diameter 1, so that "large" means the same
for a star and for a square. Rotations are limited where a turn would change the name: a square on its
corner is a diamond to most people.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Pair = tuple[str, str]
"""A colour and a kind."""

COLOURS: dict[str, RGB] = {
    "red": (214, 30, 36),
    "orange": (255, 135, 0),
    "yellow": (250, 225, 40),
    "green": (35, 155, 55),
    "blue": (35, 85, 220),
    "purple": (125, 40, 165),
    "pink": (255, 135, 195),
    "brown": (120, 70, 30),
    "black": (18, 18, 18),
    "white": (248, 248, 248),
}

SHADES: dict[str, RGB] = {
    "red": (125, 5, 20),
    "orange": (255, 200, 125),
    "yellow": (190, 160, 10),
    "green": (140, 220, 140),
    "blue": (140, 185, 255),
    "purple": (195, 145, 230),
    "pink": (220, 75, 145),
    "brown": (70, 35, 10),
    "black": (120, 120, 120),
    "white": (150, 150, 150),
}
"""The second tone of a striped or spotted shape: the same colour, lighter or darker, and less of it."""

SIZES: dict[str, tuple[float, float]] = {"small": (0.135, 0.165), "medium": (0.22, 0.27), "large": (0.36, 0.44)}
"""Diameter of the disc of equal area, as a fraction of the picture's geometric mean side."""

PATTERNS = ("plain", "striped", "spotted")

MAX_TURN: dict[str, float] = {
    "circle": 0,
    "square": 18,
    "triangle": 180,
    "rectangle": 180,
    "oval": 180,
    "pentagon": 180,
    "hexagon": 180,
    "star": 36,
    "heart": 25,
    "cross": 15,
    "ring": 0,
    "moon": 40,
    "diamond": 12,
    "arrow": 180,
}
"""Largest rotation in degrees, either way, that leaves a kind its name."""

KINDS = tuple(MAX_TURN)

HELD_OUT: frozenset[Pair] = frozenset(
    (tuple(COLOURS)[(3 * i + shift) % len(COLOURS)], kind) for i, kind in enumerate(KINDS) for shift in (0, 5)
)
"""Two colours of each kind that training neither shows nor names: 28 of the 140 pairs."""

_STRETCHABLE = {"triangle", "rectangle", "oval", "diamond", "heart", "arrow"}
_RING_HOLE = 0.55


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """One shape, rasterised on its bounding box."""

    origin_xy: tuple[int, int]
    """Upper left corner of the box in the picture."""
    mask: np.ndarray
    """Bool ``(h, w)``: the painted pixels."""
    silhouette: np.ndarray
    """Bool ``(h, w)``: the same with holes filled, to tell what lies inside a ring."""

    @property
    def window(self) -> tuple[slice, slice]:
        """The box as an index into an array of the picture."""
        (x, y), (h, w) = self.origin_xy, self.mask.shape
        return slice(y, y + h), slice(x, x + w)


@cache
def unit_polygon(kind: str) -> np.ndarray:
    """Return the outline of ``kind``, ``(P, 2)``: y down, centred on its box, area of a disc of diameter 1."""
    points = _outline(kind)
    points = points - (points.min(axis=0) + points.max(axis=0)) / 2
    x, y = points.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2
    return points * np.sqrt(np.pi / 4 / area)


def stamp(kind: str, *, diameter: float, centre_xy: tuple[float, float], turn: float, stretch: float = 1.0) -> Stamp:
    """Rasterise one shape without antialiasing, so that its mask is exact.

    Args:
        kind: One of `KINDS`.
        diameter: Pixels; that of the disc of equal area.
        centre_xy: Pixels; centre of the box before rotation.
        turn: Degrees, clockwise.
        stretch: Makes shapes that allow it taller (above 1) or wider, at equal area.
    """
    points = place(kind, diameter=diameter, turn=turn, stretch=stretch) + centre_xy
    x0, y0 = np.floor(points.min(axis=0)).astype(int)
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 1
    silhouette = _fill(points - (x0, y0), (int(x1 - x0), int(y1 - y0)))
    mask = silhouette
    if kind == "ring":
        hole = (points - centre_xy) * _RING_HOLE + centre_xy
        mask = silhouette & ~_fill(hole - (x0, y0), (int(x1 - x0), int(y1 - y0)))
    return Stamp(origin_xy=(int(x0), int(y0)), mask=mask, silhouette=silhouette)


def place(kind: str, *, diameter: float, turn: float, stretch: float = 1.0) -> np.ndarray:
    """Return the outline around the origin, in pixels, ``(P, 2)``."""
    points = unit_polygon(kind) * diameter
    if kind in _STRETCHABLE:
        points = points * (1 / stretch, stretch)
    angle = np.deg2rad(turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return points @ np.array([[cos, sin], [-sin, cos]])


def _fill(points: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    image = Image.new("L", size_wh)
    ImageDraw.Draw(image).polygon(points.ravel().tolist(), fill=1)
    return np.asarray(image).view(bool)


def _outline(kind: str) -> np.ndarray:
    match kind:
        case "circle" | "ring":
            return _around(48)
        case "oval":
            return _around(48) * (1.75, 1)
        case "triangle":
            return _around(3)
        case "square":
            return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
        case "rectangle":
            return np.array([(-2, -1), (2, -1), (2, 1), (-2, 1)], float)
        case "diamond":
            return _around(4) * (1, 1.5)
        case "pentagon":
            return _around(5)
        case "hexagon":
            return _around(6)
        case "star":
            return _around(10) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None]
        case "heart":
            t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
            return np.stack([16 * np.sin(t) ** 3, -y], axis=1)
        case "cross":
            quarter = np.array([(-1, -3), (1, -3), (1, -1)], float)
            turns = (((1, 0), (0, 1)), ((0, 1), (-1, 0)), ((-1, 0), (0, -1)), ((0, -1), (1, 0)))
            return np.concatenate([quarter @ np.array(turn, float) for turn in turns])
        case "moon":
            # A disc minus a disc shifted to its right: two arcs between the tips at +-50 degrees.
            outer = np.deg2rad(np.linspace(50, 310, 32))
            tip_x, tip_y = np.cos(np.deg2rad(50)), np.sin(np.deg2rad(50))
            bite_x = 0.5
            half = np.arctan2(tip_y, tip_x - bite_x)
            inner = np.linspace(2 * np.pi - half, half, 24)[1:-1]
            radius = np.hypot(tip_x - bite_x, tip_y)
            bite = np.stack([bite_x + radius * np.cos(inner), radius * np.sin(inner)], axis=1)
            return np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), bite])
        case "arrow":
            half = np.array([(-2, -0.45), (0.2, -0.45), (0.2, -1.25), (2, 0)])
            return np.concatenate([half, half[-2::-1] * (1, -1)])
    raise AssertionError(kind)


def _around(count: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)
