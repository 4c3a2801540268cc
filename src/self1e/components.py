"""Connected pieces and holes of a mask, found in its run-length code: no pixel is looked at.

A COCO code's runs go down the columns. Cut where a column ends, each run is a stretch of one column, and two stretches
of neighbouring columns belong together where they touch::

    . 0 . 2 .      runs 0, 1 and 2 of one mask. 1 and 2 touch at a corner only: one piece if corners count
    . 0 1 . .      (connectivity 8), two if they do not (connectivity 4)

So the work grows with the outline, not with the area: a solid mask of 24 megapixels is a few thousand runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from self1e.errors import SettingError
from self1e.structures import encode_edges, run_lengths


class Runs(NamedTuple):
    """Stretches of columns, from left to right and top to bottom; int64 ``(R,)`` each."""

    column: np.ndarray
    top: np.ndarray
    bottom: np.ndarray
    """The first row below."""

    @property
    def lengths(self) -> np.ndarray:
        """Pixels of each."""
        return self.bottom - self.top

    def take(self, which: np.ndarray) -> Runs:
        """Choose some, by number or truth."""
        return Runs(self.column[which], self.top[which], self.bottom[which])


def read_runs(rle: dict[str, Any], *, background: bool = False) -> Runs:
    """Return the foreground of a compressed COCO RLE, or its background."""
    height, width = rle["size"]
    lengths = run_lengths(rle["counts"])
    if (lengths < 0).any() or lengths.sum() != height * width:
        raise SettingError(
            f"An RLE of size [{height}, {width}] codes {lengths.sum()} pixels, expected {height * width}."
        )
    ends = np.cumsum(lengths)
    chosen = (np.arange(len(lengths)) % 2 == (0 if background else 1)) & (lengths > 0)
    ends = ends[chosen]
    starts = ends - lengths[chosen]
    first, last = starts // height, (ends - 1) // height
    columns = last - first + 1
    run = np.repeat(np.arange(len(starts)), columns)
    column = first[run] + np.arange(len(run)) - np.repeat(np.cumsum(columns) - columns, columns)
    top = np.where(column == first[run], starts[run] - column * height, 0)
    bottom = np.where(column == last[run], ends[run] - column * height, height)
    return Runs(column, top, bottom)


def encode_runs(runs: Runs, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Encode runs that do not overlap, in any order, as compressed COCO RLE."""
    starts = runs.column * size_hw[0] + runs.top
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], (starts + runs.lengths)[order]
    is_new = np.ones(len(starts), dtype=bool)  # unless it goes on where the one before has ended
    is_new[1:] = starts[1:] != ends[:-1]
    is_last = np.roll(is_new, -1)
    edges = np.stack([starts[is_new], ends[is_last]], axis=1).ravel()
    return encode_edges(edges, size_hw)[0]


def label_runs(runs: Runs, size_hw: tuple[int, int], connectivity: int = 8) -> np.ndarray:
    """Say which piece each run belongs to.

    Args:
        runs: Of a mask, in their order.
        size_hw: Of the mask.
        connectivity: 8 if pixels that touch at a corner belong together, else 4.

    Returns:
        Numbers of pieces, int64 ``(R,)``, from 0 on in the order of each piece's first run.
    """
    if connectivity not in (4, 8):
        raise SettingError(f"connectivity={connectivity!r}; expected 4 (edges) or 8 (edges and corners).")
    left, right = _neighbours(runs, size_hw[0], reach=int(connectivity == 8))
    parent = np.arange(len(runs.column))
    while len(left):
        # Every root joins its smallest neighbour, and then everybody points to the root of the root.
        a, b = parent[left], parent[right]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while (parent != parent[parent]).any():
            parent = parent[parent]
        apart = parent[left] != parent[right]
        left, right = left[apart], right[apart]
    is_root = parent == np.arange(len(parent))
    return (np.cumsum(is_root) - 1)[parent]


def _neighbours(runs: Runs, height: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Pair runs with those that they touch in the column before."""
    stride = height + 2  # so that no column's rows reach into the next one's
    before = (runs.column - 1) * stride
    first = np.searchsorted(runs.column * stride + runs.bottom, before + runs.top - reach, side="right")
    end = np.searchsorted(runs.column * stride + runs.top, before + runs.bottom + reach, side="left")
    count = np.maximum(end - first, 0)
    right = np.repeat(np.arange(len(count)), count)
    left = first[right] + np.arange(len(right)) - np.repeat(np.cumsum(count) - count, count)
    return left, right


def hole_runs(rle: dict[str, Any], connectivity: int = 8) -> Runs:
    """Return the background that does not reach the border.

    Args:
        rle: Compressed COCO RLE.
        connectivity: Of the foreground. Where corners join the foreground they do not join the background: a line of
            pixels that touch at corners encloses what is within.
    """
    height, width = rle["size"]
    outside = read_runs(rle, background=True)
    labels = label_runs(outside, (height, width), 12 - connectivity)
    at_border = (outside.column == 0) | (outside.column == width - 1) | (outside.top == 0) | (outside.bottom == height)
    return outside.take(~np.isin(labels, labels[at_border]))


def joined(first: Runs, second: Runs) -> Runs:
    """Unite runs that do not overlap; those that touch become one."""
    column, top, bottom = (np.concatenate(pair) for pair in zip(first, second, strict=True))
    order = np.lexsort((top, column))
    column, top, bottom = column[order], top[order], bottom[order]
    is_new = np.ones(len(column), dtype=bool)
    is_new[1:] = (column[1:] != column[:-1]) | (top[1:] != bottom[:-1])
    return Runs(column[is_new], top[is_new], bottom[np.roll(is_new, -1)])
