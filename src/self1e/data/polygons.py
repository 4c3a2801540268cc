"""Polygons to pixels, in the two ways that published masks are made: COCO's, and OpenCV's.

COCO's (pycocotools) serves every set with COCO annotations. OpenCV's serves ReasonSeg, whose masks are its outline of
thickness 1 together with its even-odd fill (METHOD section 7.1). `paint_polygon` is that raster in NumPy, bit for bit,
so that one mask does not cost a second imaging library. Releases 4.8 to 4.10 of OpenCV differ in places from those
before and after (opencv/opencv pull requests 23076 and 26187); this is the raster of 4.11 and later, which for
polygons inside the picture is also that of 4.7 and before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as rle_codec

from self1e.errors import DatasetError
from self1e.structures import decode_rle

_ONE = 1 << 16  # OpenCV's fixed point: 16 bits after the point

Point = tuple[int, int]


def decode_segmentation(segmentation: Any, size_wh: tuple[int, int], source: str = "") -> np.ndarray:
    """Decode a COCO ``segmentation`` to one mask: the union of its polygons.

    Args:
        segmentation: Polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, or an RLE whose ``counts`` are a list, a
            string or bytes. None, no polygon, and polygons of fewer than three points give an empty mask, as
            published.
        size_wh: Of the picture.
        source: What an error names.

    Returns:
        Bool ``(H, W)``.

    Raises:
        DatasetError: An RLE that is malformed or of another size.
    """
    return np.logical_or.reduce(_decode_each(segmentation, size_wh, source), axis=0)


def count_segmentation(segmentation: Any, size_wh: tuple[int, int], source: str = "") -> np.ndarray:
    """Count the polygons that cover each pixel, uint8 ``(H, W)``: what the published evaluation compares with.

    There a pixel of two overlapping polygons holds 2 and can never be right (METHOD section 7.1).
    """
    return _decode_each(segmentation, size_wh, source).sum(axis=0, dtype=np.uint8)


def compact_segmentation(segmentation: Any) -> Any:
    """Return the same with polygons as arrays: an eighth of the memory, over half a million annotations."""
    if isinstance(segmentation, list):
        return [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
    return segmentation


def _decode_each(segmentation: Any, size_wh: tuple[int, int], source: str) -> np.ndarray:
    """Decode polygon by polygon, or one RLE: bool ``(n, H, W)``."""
    width, height = size_wh
    if isinstance(segmentation, dict):
        return _decode_rle(segmentation, size_wh, source)[None]
    polygons = [polygon for polygon in segmentation or () if len(polygon) >= 6]
    if not polygons:
        return np.zeros((1, height, width), dtype=bool)
    codec: Any = rle_codec  # its stubs know less than it accepts
    return np.stack([decode_rle(rle) for rle in codec.frPyObjects(polygons, height, width)])


def _decode_rle(rle: dict[str, Any], size_wh: tuple[int, int], source: str) -> np.ndarray:
    width, height = size_wh
    codec: Any = rle_codec
    if list(rle.get("size", ())) != [height, width]:
        raise DatasetError(
            f"{source}: a mask's RLE has size {rle.get('size')}, expected [{height}, {width}] as the picture; "
            "check that the annotations belong to these pictures."
        )
    counts = rle.get("counts")
    try:
        if isinstance(counts, list):
            return decode_rle(codec.frPyObjects(rle, height, width))
        return decode_rle({**rle, "counts": counts.encode() if isinstance(counts, str) else counts})
    except (ValueError, TypeError) as error:
        raise DatasetError(f"{source}: a mask's RLE cannot be decoded ({error}); download the file anew.") from error


def paint_polygon(points: Sequence[Sequence[float]], size_wh: tuple[int, int]) -> np.ndarray:
    """Paint a closed polygon as OpenCV's ``polylines`` and ``fillPoly`` together do.

    Args:
        points: ``(x, y)`` in pixels, anywhere; cut to integers towards zero.
        size_wh: Of the picture.

    Returns:
        Bool ``(H, W)``.
    """
    width, height = size_wh
    painted = np.zeros((height, width), dtype=bool)
    corners = [(int(x), int(y)) for x, y in points]
    edges = []
    for start, end in zip(corners[-1:] + corners[:-1], corners, strict=True):
        clipped = _clip(start, end, size_wh)
        inside = all(0 <= x < width and 0 <= y < height for x, y in clipped)
        if inside:
            _paint_line(painted, *clipped)
        if start[1] != end[1]:
            edges.append(_edge(start, end, clipped))
    if edges:
        _fill(painted, edges)
    return painted


def _clip(start: Point, end: Point, size_wh: tuple[int, int]) -> tuple[Point, Point]:
    """Clip a line to the picture, with OpenCV's rounding; what lies wholly outside may come back moved, but outside."""
    right, bottom = size_wh[0] - 1, size_wh[1] - 1
    (x1, y1), (x2, y2) = start, end
    side1, side2 = _side_x(x1, right) | _side_y(y1, bottom), _side_x(x2, right) | _side_y(y2, bottom)
    if side1 & side2 or not side1 | side2:
        return start, end
    if side1 & 12:
        border = 0 if side1 < 8 else bottom
        x1 += int(float(border - y1) * (x2 - x1) / (y2 - y1))
        y1, side1 = border, _side_x(x1, right)
    if side2 & 12:
        border = 0 if side2 < 8 else bottom
        x2 += int(float(border - y2) * (x2 - x1) / (y2 - y1))
        y2, side2 = border, _side_x(x2, right)
    if not side1 & side2:
        if side1:
            border = 0 if side1 == 1 else right
            y1 += int(float(border - x1) * (y2 - y1) / (x2 - x1))
            x1 = border
        if side2:
            border = 0 if side2 == 1 else right
            y2 += int(float(border - x2) * (y2 - y1) / (x2 - x1))
            x2 = border
    return (x1, y1), (x2, y2)


def _side_x(x: int, right: int) -> int:
    return 1 * (x < 0) | 2 * (x > right)


def _side_y(y: int, bottom: int) -> int:
    return 4 * (y < 0) | 8 * (y > bottom)


def _paint_line(painted: np.ndarray, start: Point, end: Point) -> None:
    """Bresenham's line in closed form, always from left to right: ties are broken by the direction."""
    (x1, y1), (x2, y2) = (start, end) if start[0] <= end[0] else (end, start)
    dx, dy = x2 - x1, abs(y2 - y1)
    down = 1 if y2 >= y1 else -1
    major, minor = max(dx, dy), min(dx, dy)
    step = np.arange(major + 1)
    aside = -((major - 2 * minor * step) // (2 * major)) if major else step
    along_x, along_y = (aside, step) if dy > dx else (step, aside)
    painted[y1 + down * along_y, x1 + along_x] = True


def _edge(start: Point, end: Point, clipped: tuple[Point, Point]) -> tuple[int, int, int, int]:
    """First row, row after the last, x at the first row, and its change per row: x in fixed point."""
    (x1, y1), (x2, y2) = clipped
    if y1 == y2:  # clipped to one row: the slope is then that of the whole line's rows
        y1, y2 = start[1], end[1]
    rise, rows = (x2 - x1) * _ONE, y2 - y1
    slope = abs(rise) // abs(rows) * (1 if (rise < 0) == (rows < 0) else -1)  # towards zero, as in C
    if start[1] < end[1]:
        return start[1], end[1], x1 * _ONE + (start[1] - y1) * slope, slope
    return end[1], start[1], x2 * _ONE + (end[1] - y2) * slope, slope


def _fill(painted: np.ndarray, edges: Sequence[tuple[int, int, int, int]]) -> None:
    """Even-odd fill: in each row, from the first crossing to the second, and so on."""
    height, width = painted.shape
    rows = np.concatenate([np.arange(max(first, 0), min(last, height)) for first, last, _, _ in edges])
    crossings = np.concatenate(
        [
            x + (np.arange(max(first, 0), min(last, height), dtype=np.int64) - first) * slope
            for first, last, x, slope in edges
        ]
    )
    order = np.lexsort((crossings, rows))
    rows, crossings = rows[order][::2], crossings[order]
    left = np.clip(-(-crossings[::2] // _ONE), 0, width)
    right = np.clip(crossings[1::2] // _ONE + 1, 0, width)
    for row, start, stop in zip(rows.tolist(), left.tolist(), right.tolist(), strict=True):
        painted[row, start:stop] = True
