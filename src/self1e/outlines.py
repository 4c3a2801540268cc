"""A mask's outline as polygons along its pixels' edges: nothing is rounded, so nothing is lost.

A grid point is a vertex where the outline turns: one or three of its four pixels are foreground, or two
that touch only there (a saddle, where two pieces of outline turn at once)::

    1 .     . .     1 1     1 .
    . .     . 1     1 .     . 1   <- saddle: listed twice

Along a row of grid points, edges start and end at vertices alternately, so in row-major order vertices
``2i`` and ``2i + 1`` are the ends of one horizontal edge; in column-major order, of one vertical edge.
Following both in turn walks along a loop. Pixels that touch at a corner only count as apart (4-connected
foreground), which is the choice of partner at a saddle.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Polygon(TypedDict):
    """One connected piece of a mask; rings are int32 ``(N, 2)`` x, y on pixel edges, first point not repeated."""

    exterior: np.ndarray
    """Clockwise on the screen (y down)."""
    holes: list[np.ndarray]
    """Counter-clockwise."""


def trace_polygons(mask: np.ndarray) -> list[Polygon]:
    """Trace a mask exactly, from top to bottom.

    Args:
        mask: Bool ``(H, W)``.

    Returns:
        One polygon per 4-connected piece; the even-odd fill of all rings is ``mask``. Coordinates run
        from 0 to W and 0 to H: pixel (x, y) covers x..x+1 and y..y+1.
    """
    x, y, partner = _link_vertices(mask)
    loops = _walk(partner)
    xy = np.stack([x, y], axis=1).astype(np.int32)
    # A loop begins at its topmost, leftmost vertex, with an edge to the right. Below it is foreground if
    # the loop is an exterior, background if it is a hole.
    is_exterior = [bool(mask[y[loop[0]], x[loop[0]]]) for loop in loops]
    owners = _owners(loops, is_exterior, x, y, partner)
    polygons: dict[int, Polygon] = {}
    for i, loop in enumerate(loops):
        if is_exterior[i]:
            polygons[i] = Polygon(exterior=xy[loop], holes=[])
        else:
            polygons[owners[i]]["holes"].append(xy[loop[::-1]])
    return list(polygons.values())


def _link_vertices(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the vertices in row-major order, and each one's partner along its column.

    Returns:
        ``x``, ``y`` and ``partner``, each int ``(V,)``; the partner along the row needs no array: ``i ^ 1``.
    """
    padded = np.pad(np.asarray(mask, dtype=bool), 1)
    north_west, north_east = padded[:-1, :-1], padded[:-1, 1:]
    south_west, south_east = padded[1:, :-1], padded[1:, 1:]
    is_corner = north_west ^ north_east ^ south_west ^ south_east
    is_saddle = (north_west == south_east) & (north_west != north_east) & (north_east == south_west)
    y, x = np.nonzero(is_corner | is_saddle)
    saddle = is_saddle[y, x]
    falling = north_west[y, x]  # which diagonal is foreground; matters at saddles only
    times = 1 + saddle
    x, y = np.repeat(x, times), np.repeat(y, times)
    saddle, falling = np.repeat(saddle, times), np.repeat(falling, times)
    # At a saddle the first copy ends the edge from the west, the second starts the one to the east. Turning
    # round the foreground pixel, west goes with north on the falling diagonal and with south on the rising one.
    is_second = np.zeros(len(x), dtype=bool)
    is_second[1:] = saddle[1:] & (x[1:] == x[:-1]) & (y[1:] == y[:-1])
    is_south = is_second ^ (saddle & ~falling)
    column_major = np.lexsort((is_south, y, x))
    partner = np.empty(len(x), dtype=np.int64)
    partner[column_major] = column_major[np.arange(len(x)) ^ 1]
    return x, y, partner


def _walk(partner: np.ndarray) -> list[list[int]]:
    """Follow rows and columns in turn until every vertex belongs to one loop."""
    along_column = partner.tolist()
    seen = bytearray(len(along_column) // 2)  # one flag per horizontal edge
    loops = []
    for start in range(0, len(along_column), 2):
        if seen[start >> 1]:
            continue
        loop, i = [], start
        while not seen[i >> 1]:
            seen[i >> 1] = True
            loop += (i, i ^ 1)
            i = along_column[i ^ 1]
        loops.append(loop)
    return loops


def _owners(
    loops: list[list[int]], is_exterior: list[bool], x: np.ndarray, y: np.ndarray, partner: np.ndarray
) -> list[int]:
    """Say which exterior each loop lies in (an exterior owns itself)."""
    owners = list(range(len(loops)))
    if all(is_exterior):
        return owners
    loop_of = np.empty(len(x), dtype=np.int64)
    for i, loop in enumerate(loops):
        loop_of[loop] = i
    tops = np.flatnonzero(y[partner] > y)  # upper ends of the vertical edges
    heights = y[partner[tops]] - y[tops]
    row_of_edge = np.repeat(y[tops] - np.cumsum(heights) + heights, heights) + np.arange(heights.sum())
    stride = int(x.max()) + 1
    keys = row_of_edge * stride + np.repeat(x[tops], heights)
    order = np.argsort(keys)
    keys, edge_loops = keys[order], np.repeat(loop_of[tops], heights)[order]
    for i, loop in enumerate(loops):
        if not is_exterior[i]:
            # The pixel above the hole's first edge is ours. Going left from it, the first outline met is
            # our exterior, or another hole of ours that began higher up and so has its owner already.
            above = (y[loop[0]] - 1) * stride + x[loop[0]]
            owners[i] = owners[edge_loops[np.searchsorted(keys, above, side="right") - 1]]
    return owners
