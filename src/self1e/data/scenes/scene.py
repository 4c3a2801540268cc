"""Compose one picture: a background, one to six things, who covers whom, and the pixels.

Things are laid down one after another, later ones on top. A new thing is tried elsewhere when it would
leave an earlier one mostly hidden, because then the words for it would no longer be fair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from self1e.data.scenes.shapes import COLOURS, HELD_OUT, KINDS, MAX_TURN, RGB, SHADES, SIZES, Pair, Stamp, place, stamp

HeldOut = Literal["never", "only", "any"]

MIN_VISIBLE = 0.7
"""A thing shows at least this part of itself..."""
MIN_AREA = 0.004
"""...and covers at least this part of the picture."""

_COUNT_WEIGHTS = (0.05, 0.12, 0.22, 0.25, 0.21, 0.15)
_TINTS: tuple[RGB, ...] = (
    (128, 128, 128),
    (196, 198, 202),
    (72, 76, 84),
    (226, 216, 196),
    (190, 208, 222),
    (200, 218, 196),
    (222, 202, 206),
    (62, 74, 98),
    (76, 92, 78),
    (236, 236, 238),
    (30, 32, 38),
    (152, 140, 126),
)
_MIN_CONTRAST = 120.0
_SIZES_TRIED = ("small", "medium", "medium", "large", "large")  # a large thing often finds no room
_RARE_COLOURS = ("green", "purple", "pink", "brown", "black", "white")  # too close to many backgrounds


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One object of a scene, with what words may say about it."""

    index: int
    """Its place in the stack: 0 was laid first."""
    kind: str
    colour: str
    size: str
    pattern: str
    centre_xy: tuple[float, float]
    """Centroid of the visible pixels."""
    box_xyxy: tuple[int, int, int, int]
    """Box of the visible pixels, half-open."""
    area: int
    """Pixels of the whole silhouette, hidden ones and a ring's hole included: how large it looks."""
    visible_area: int
    visible_fraction: float

    @property
    def pair(self) -> Pair:
        return self.colour, self.kind


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture and everything that is true about it."""

    size_wh: tuple[int, int]
    things: tuple[Thing, ...]
    owner: np.ndarray
    """uint8 ``(H, W)``: 0 is background, ``i + 1`` belongs to thing ``i``."""
    pixels: np.ndarray
    """uint8 ``(H, W, 3)``."""
    overlap: np.ndarray
    """int ``(n, n)``: pixels that things ``i`` and ``j`` would share if both were whole."""
    covered: np.ndarray
    """int ``(n, n)``: visible pixels of ``j`` that ``i`` hid when it was laid down."""
    contained: np.ndarray
    """float ``(n, n)``: the part of ``i`` that lies on top of the silhouette of ``j``."""

    @property
    def unit(self) -> float:
        """The length all margins are measured in: the geometric mean side."""
        return math.sqrt(self.size_wh[0] * self.size_wh[1])

    def mask(self, indices: frozenset[int]) -> np.ndarray:
        """Return the visible pixels of some things, bool ``(H, W)``."""
        mask = np.zeros(self.owner.shape, dtype=bool)
        for i in indices:
            mask |= self.owner == i + 1
        return mask

    def image(self) -> Image.Image:
        return Image.fromarray(self.pixels)


@dataclass(frozen=True)
class _Laid:
    kind: str
    colour: str
    size: str
    pattern: str
    stamp: Stamp


def compose(rng: np.random.Generator, size_wh: tuple[int, int], held_out: HeldOut) -> Scene:
    """Draw a scene.

    Args:
        rng: Where all chance comes from.
        size_wh: Picture size.
        held_out: ``"never"`` keeps `HELD_OUT` pairs away, ``"only"`` puts at least one in.
    """
    pixels, tints = _background(rng, size_wh)
    colours = [name for name, rgb in COLOURS.items() if all(_contrast(rgb, tint) > _MIN_CONTRAST for tint in tints)]
    colours += [name for name in colours if name in _RARE_COLOURS]  # twice as likely where they can be seen
    laid = _lay_things(rng, size_wh, held_out, colours)
    width, height = size_wh
    owner = np.zeros((height, width), dtype=np.uint8)
    overlap, covered, contained = (np.zeros((len(laid), len(laid))) for _ in range(3))
    for i, item in enumerate(laid):
        window = owner[item.stamp.window]
        covered[i] = np.bincount(window[item.stamp.mask], minlength=len(laid) + 1)[1:]
        for j, below in enumerate(laid[:i]):
            overlap[i, j] = overlap[j, i] = _shared(item.stamp, below.stamp, below.stamp.mask)
            contained[i, j] = _shared(item.stamp, below.stamp, below.stamp.silhouette) / item.stamp.mask.sum()
        window[item.stamp.mask] = i + 1
        _paint(rng, pixels, item, size_wh)
    if rng.random() < 0.3:
        _add_noise(rng, pixels, strength=int(rng.integers(3, 9)))
    things = tuple(_thing(i, item, owner) for i, item in enumerate(laid))
    return Scene(
        size_wh=size_wh,
        things=things,
        owner=owner,
        pixels=pixels.clip(0, 255).astype(np.uint8),
        overlap=overlap,
        covered=covered,
        contained=contained,
    )


def _thing(index: int, item: _Laid, owner: np.ndarray) -> Thing:
    x, y = item.stamp.origin_xy
    rows, columns = np.nonzero(owner[item.stamp.window] == index + 1)
    return Thing(
        index=index,
        kind=item.kind,
        colour=item.colour,
        size=item.size,
        pattern=item.pattern,
        centre_xy=(x + float(columns.mean()) + 0.5, y + float(rows.mean()) + 0.5),
        box_xyxy=(
            x + int(columns.min()),
            y + int(rows.min()),
            x + int(columns.max()) + 1,
            y + int(rows.max()) + 1,
        ),
        area=int(item.stamp.silhouette.sum()),
        visible_area=len(rows),
        visible_fraction=len(rows) / int(item.stamp.mask.sum()),
    )


def _lay_things(
    rng: np.random.Generator, size_wh: tuple[int, int], held_out: HeldOut, colours: list[str]
) -> list[_Laid]:
    """Choose things and places until the drawn number is reached or the picture is full."""
    count = 1 + int(rng.choice(len(_COUNT_WEIGHTS), p=_COUNT_WEIGHTS))
    # Scenes with a theme: repeated kinds and colours are what makes relations and ordinals necessary.
    repeat_kind, repeat_colour = ((0.85, 0.2), (0.2, 0.85), (0.3, 0.3), (0.3, 0.3))[int(rng.random() * 4)]
    owner = np.zeros(size_wh[::-1], dtype=np.uint8)
    whole: list[int] = []
    shown = np.zeros(count + 1, dtype=int)
    laid: list[_Laid] = []
    for i in range(count):
        forced = held_out == "only" and (i == 0 or rng.random() < 0.35)
        colour, kind = _choose_pair(rng, laid, colours, held_out, forced, repeat_kind, repeat_colour)
        may_overlap, may_nest = rng.random() < 0.45, rng.random() < 0.3
        for _ in range(10):
            nest = may_nest and any(item.size == "large" for item in laid)
            item = _throw(rng, size_wh, kind, colour, nest_in=laid if nest else None)
            if item is None:
                continue
            window, mask = owner[item.stamp.window], item.stamp.mask
            hidden = np.bincount(window[mask], minlength=count + 1)
            below = np.flatnonzero(hidden[1:])
            if len(below) and not (may_overlap or nest):
                continue
            if any(other.colour == colour and _touching(item.stamp, other.stamp) for other in laid):
                continue  # one colour on itself: nobody could tell where one ends
            if any(shown[j] - hidden[j + 1] < MIN_VISIBLE * whole[j] for j in below):
                continue
            floor = MIN_AREA * size_wh[0] * size_wh[1]
            if mask.sum() < floor or any(shown[j] - hidden[j + 1] < floor for j in below):
                continue
            shown[: len(laid)] -= hidden[1 : len(laid) + 1]
            shown[len(laid)] = int(mask.sum())
            whole.append(int(mask.sum()))
            laid.append(item)
            window[mask] = len(laid)
            break
    assert laid  # the first thing has the whole picture to itself
    return laid


def _choose_pair(
    rng: np.random.Generator,
    laid: list[_Laid],
    colours: list[str],
    held_out: HeldOut,
    forced: bool,
    repeat_kind: float,
    repeat_colour: float,
) -> Pair:
    if forced:
        pairs = sorted(pair for pair in HELD_OUT if pair[0] in colours)
        if laid and rng.random() < 0.6:
            return laid[0].colour, laid[0].kind  # a second one, for plurals and ordinals
        return pairs[int(rng.random() * len(pairs))]
    while True:
        kind = KINDS[int(rng.random() * len(KINDS))]
        if laid and rng.random() < repeat_kind:
            kind = laid[int(rng.random() * len(laid))].kind
        colour = colours[int(rng.random() * len(colours))]
        if laid and rng.random() < repeat_colour:
            colour = laid[int(rng.random() * len(laid))].colour
        if held_out == "any" or (colour, kind) not in HELD_OUT:
            return colour, kind
        # Allowed to loop: every kind has at least one colour that is neither held out nor background,
        # but a scene of one repeated colour may need a fresh one.
        repeat_kind, repeat_colour = repeat_kind / 2, repeat_colour / 2


def _throw(
    rng: np.random.Generator, size_wh: tuple[int, int], kind: str, colour: str, *, nest_in: list[_Laid] | None
) -> _Laid | None:
    """Give a shape a size, a turn, a pattern and a place wholly inside the picture, or None if it cannot fit."""
    width, height = size_wh
    size = "small" if nest_in else _SIZES_TRIED[int(rng.random() * len(_SIZES_TRIED))]
    # Stripes on a small shape are too fine to be seen.
    pattern = ("plain", "plain", "striped", "spotted")[int(rng.random() * 4)] if size != "small" else "plain"
    diameter = float(rng.uniform(*SIZES[size])) * math.sqrt(width * height)
    turn, stretch = float(rng.uniform(-1, 1)) * MAX_TURN[kind], float(rng.uniform(0.93, 1.07))
    points = place(kind, diameter=diameter, turn=turn, stretch=stretch)
    low, high = -points.min(axis=0) + 1, size_wh - points.max(axis=0) - 2
    if (low >= high).any():
        return None
    centre = rng.uniform(low, high)
    if nest_in:
        hosts = [item for item in nest_in if item.size == "large"]
        host = hosts[int(rng.random() * len(hosts))].stamp
        middle = np.add(host.origin_xy, np.divide(host.mask.shape[::-1], 2))
        centre = np.clip(middle + rng.uniform(-0.04, 0.04, size=2) * width, low, high)
    found = stamp(kind, diameter=diameter, centre_xy=(centre[0], centre[1]), turn=turn, stretch=stretch)
    return _Laid(kind, colour, size, pattern, found)


def _shared(top: Stamp, below: Stamp, below_mask: np.ndarray) -> int:
    """Count the pixels of ``top`` that lie on ``below_mask``."""
    (ax, ay), (ah, aw) = top.origin_xy, top.mask.shape
    (bx, by), (bh, bw) = below.origin_xy, below.mask.shape
    x0, x1, y0, y1 = max(ax, bx), min(ax + aw, bx + bw), max(ay, by), min(ay + ah, by + bh)
    if x0 >= x1 or y0 >= y1:
        return 0
    return int(
        (top.mask[y0 - ay : y1 - ay, x0 - ax : x1 - ax] & below_mask[y0 - by : y1 - by, x0 - bx : x1 - bx]).sum()
    )


def _touching(a: Stamp, b: Stamp, gap: int = 2) -> bool:
    """Say whether two shapes overlap or come within ``gap`` pixels, sideways or up and down."""
    x, y = a.origin_xy
    around = ((0, 0), (gap, 0), (-gap, 0), (0, gap), (0, -gap))
    return any(_shared(replace(a, origin_xy=(x + dx, y + dy)), b, b.mask) for dx, dy in around)


def _background(rng: np.random.Generator, size_wh: tuple[int, int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a background; return it as int16 ``(H, W, 3)`` with the tints that things must stand out from."""
    width, height = size_wh
    tint = np.array(_TINTS[int(rng.random() * len(_TINTS))]) + rng.integers(-6, 7, size=3)
    style = ("plain", "gradient", "texture", "noise")[int(rng.random() * 4)]
    if style in ("plain", "noise"):
        pixels = np.empty((height, width, 3), dtype=np.int16)
        pixels[:] = tint
        if style == "noise":
            _add_noise(rng, pixels, strength=int(rng.integers(8, 25)))
        return pixels, [tint]
    other = (tint + (1 if tint.mean() < 128 else -1) * int(rng.integers(15, 40))).clip(0, 255)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    if style == "gradient":
        angle = float(rng.uniform(0, 2 * np.pi))
        ramp = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
        weight = (ramp - ramp.min()) / np.ptp(ramp)
        pixels = (tint + weight[..., None] * (other - tint).astype(np.float32)).astype(np.int16)
    else:
        period = float(rng.uniform(0.06, 0.16)) * min(size_wh)
        pixels = np.array([tint, other], dtype=np.int16)[_texture(rng, x, y, period).astype(np.intp)]
    return pixels, [tint, other]


def _texture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, period: float) -> np.ndarray:
    """Return a two-tone texture, bool ``(H, W)``."""
    match int(rng.random() * 3):
        case 0:
            angle = float(rng.uniform(0, np.pi))
            return (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) % period < period / 2
        case 1:
            return (x % (2 * period) < period) ^ (y % (2 * period) < period)
        case _:
            return (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (period * 0.28) ** 2


def _paint(rng: np.random.Generator, pixels: np.ndarray, item: _Laid, size_wh: tuple[int, int]) -> None:
    jitter = rng.integers(-10, 11, size=3)
    colour, shade = np.array(COLOURS[item.colour]) + jitter, np.array(SHADES[item.colour]) + jitter
    window, mask = pixels[item.stamp.window], item.stamp.mask
    window[mask] = colour.clip(0, 255)
    if item.pattern == "plain":
        return
    h, w = mask.shape
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    scale = math.sqrt(size_wh[0] * size_wh[1])
    if item.pattern == "striped":
        angle, period = float(rng.uniform(0, np.pi)), max(5.0, 0.055 * scale)
        tone = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))) % period < 0.42 * period
    else:
        period = max(5.0, 0.06 * scale)
        x = x + (y // period % 2) * (period / 2)  # spots in staggered rows, unlike the background's
        tone = (x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (0.33 * period) ** 2
    window[mask & tone] = shade.clip(0, 255)


def _add_noise(rng: np.random.Generator, pixels: np.ndarray, *, strength: int) -> None:
    pixels += rng.integers(-strength, strength + 1, size=(*pixels.shape[:2], 1), dtype=np.int16)


def _contrast(a: RGB, b: np.ndarray) -> float:
    """Distance between two colours, weighted by what the eye sees ("redmean")."""
    delta = np.subtract(a, b).astype(float)
    red = (a[0] + float(b[0])) / 2
    weights = np.array([2 + red / 256, 4, 2 + (255 - red) / 256])
    return float(np.sqrt((weights * delta**2).sum() / 3))
