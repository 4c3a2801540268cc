"""Polygons for formats without holes: several rings as one closed line.

Holes and further pieces hang on bridges, along which the line goes forth and back::

    +----------+        a ring with a hole: from the corner A to the hole's corner B, around the
    A..B--+    |        hole, back to A. A bridge has no area, so filling the line by the even-odd
    |  +--+    |        rule gives exactly the mask; who draws the line itself draws bridges too,
    +----------+        one pixel thin.
"""

from __future__ import annotations

import numpy as np

from self1e.outlines import Polygon


def one_line(polygons: list[Polygon]) -> np.ndarray:
    """Join all rings of these polygons to one, int32 ``(N, 2)`` x, y; the first point is not repeated.

    The rings form a chain: each bridge leads from where one ring starts to where the next does.
    """
    rings = [ring for polygon in polygons for ring in (polygon["exterior"], *polygon["holes"])]
    closed = [np.concatenate([ring, ring[:1]]) for ring in rings]
    back = [ring[:1] for ring in reversed(rings[:-1])]
    line = np.concatenate([*closed, *back]) if len(rings) > 1 else rings[0]
    return line[:-1] if len(rings) > 1 else line
