"""Mask logits to a mask at the picture's own size (METHOD section 5, step 9), in bounded memory.

Bilinear enlarging works along one side at a time. First across: ``(h, w)`` becomes ``(h, W)``, which is small for any
picture. Down a column, the pixels between two rows of logits lie on a straight line: such a stretch changes between
foreground and background once at most, so its first and its last pixel tell whether it holds any foreground. Only
stretches that do are ever enlarged, for the place of the change and for the score. Columns, because run-length codes
of COCO run down them: the places of the changes are the code, and only they leave the device. No mask is ever a picture
of pixels here; ``Segmentation`` decodes the ones that somebody asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from self1e.errors import SettingError
from self1e.structures import encode_edges

STRIP = 2**20
"""Pixels that exist as numbers at once on a CPU: 4 MB, which stays in its cache."""
_DEVICE_STRIP = 2**24  # elsewhere a strip costs launches and a wait for the device: few and large ones, 64 MB each
_ALIVE = 8  # maps of stretches that are alive together


@dataclass(frozen=True, eq=False)
class _Stretches:
    """The pixels of a column between the same two rows of logits: S stretches, from top to bottom."""

    low: Tensor
    """Row of logits above, int64 ``(S,)``."""
    high: Tensor
    """Row of logits below, int64 ``(S,)``."""
    start: Tensor
    """First pixel, int64 ``(S,)``."""
    length: Tensor
    """Pixels, int64 ``(S,)``."""
    share: Tensor
    """What each pixel takes from the row below, float32 ``(S, longest)``; behind the last one 0."""
    rest: Tensor
    """What each pixel takes from the row above, alike."""
    is_pixel: Tensor
    """False behind the last one, bool ``(S, longest)``."""
    ends: Tensor
    """``share`` of the first and the last pixel, float32 ``(2, S)``."""


@lru_cache(maxsize=64)
def _stretches(rows: int, height: int, device: torch.device) -> _Stretches:
    """Divide a column of pixels: the arithmetic of ``F.interpolate``, in float32 as there."""
    place = np.float32(rows / height) * (np.arange(height, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    is_above = place < 0  # above the first row's centre: that row alone
    place = np.maximum(place, 0)
    low = np.minimum(place.astype(np.int64), rows - 1)
    share = (place - low).astype(np.float32)
    start = np.flatnonzero(np.diff(low, prepend=-1) | np.diff(is_above, prepend=is_above[0]))
    length = np.diff(start, append=height)
    is_pixel = np.arange(length.max()) < length[:, None]
    padded, rest = (np.zeros(is_pixel.shape, dtype=np.float32) for _ in range(2))
    padded[is_pixel], rest[is_pixel] = share, 1 - share
    ends = np.stack([share[start], share[start + length - 1]])
    parts = (low[start], np.minimum(low[start] + 1, rows - 1), start, length, padded, rest, is_pixel, ends)
    return _Stretches(*(torch.from_numpy(part).to(device) for part in parts))


@torch.no_grad()
def enlarge(logits: Tensor, size_wh: tuple[int, int], threshold: float = 0.0) -> tuple[dict[str, Any], float]:
    """Scale logits to the picture, bilinear with ``align_corners=False``, and threshold them.

    Args:
        logits: Float32 ``(h, w)``.
        size_wh: Size of the picture.
        threshold: Foreground is strictly above it.

    Returns:
        Compressed COCO RLE, and the mean sigmoid over the foreground (0 without any).

    Raises:
        SettingError: The logits hold NaN or infinity.
    """
    if not bool(torch.isfinite(logits).all()):
        raise SettingError(
            "The mask logits are not finite: numbers overflowed on the way. With dtype float16 that happens; "
            "load the model with dtype='bfloat16' or 'float32'. Otherwise the weights are damaged."
        )
    width, height = size_wh
    columns = stretched(logits.T, (width, logits.shape[0]))  # (W, h)
    stretches = _stretches(logits.shape[0], height, logits.device)
    room = STRIP if logits.device.type == "cpu" else _DEVICE_STRIP
    step = max(room // (_ALIVE * len(stretches.start)), 1)
    before = torch.zeros(1, dtype=torch.bool, device=logits.device)
    edges: list[Tensor] = []
    sums: list[Tensor] = []
    for left in range(0, width, step):
        found, probs, before = _strip(columns[left : left + step], stretches, threshold, before, room)
        edges.append(found + left * height)
        sums.append(probs)
    # Those between stretches and those within come apart.
    places = np.sort(torch.cat(edges).cpu().numpy())
    rle, area = encode_edges(places, (height, width))
    return rle, sum(torch.stack(sums).tolist()) / area if area else 0.0


def _strip(
    columns: Tensor, stretches: _Stretches, threshold: float, before: Tensor, room: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Enlarge and threshold some columns.

    Args:
        columns: ``(C, h)``.
        stretches: S per column.
        threshold: Foreground is strictly above it.
        before: Whether the pixel before them is foreground, bool ``(1,)``.
        room: Pixels that may be numbers at once.

    Returns:
        Where pixels differ from the one before, down the columns, in any order, int64; the sum of the sigmoid over the
        foreground; and whether the last pixel is foreground, bool ``(1,)``.
    """
    # index_select throughout: on a CPU it is several times as fast as indexing with tensors.
    low, high = (columns.index_select(1, row) for row in (stretches.low, stretches.high))  # (C, S)
    starts, ends = ((low * (1 - share) + high * share > threshold).view(-1) for share in stretches.ends)
    first = torch.arange(len(columns), device=columns.device)[:, None] * (stretches.start[-1] + stretches.length[-1])
    places = (first + stretches.start).view(-1)
    changes = starts.clone()
    changes[1:] ^= ends[:-1]
    changes[:1] ^= before
    edges = [places.index_select(0, changes.nonzero()[:, 0])]
    low, high = low.view(-1), high.view(-1)
    widest = torch.float32 if columns.device.type == "mps" else torch.float64  # MPS has no float64
    probs = torch.zeros((), dtype=widest, device=columns.device)
    for some in (starts | ends).nonzero()[:, 0].split(max(room // stretches.share.shape[1], 1)):
        stretch = some % len(stretches.start)
        share, rest = (table.index_select(0, stretch) for table in (stretches.share, stretches.rest))
        above, below = (rows.index_select(0, some)[:, None] for rows in (low, high))
        values = rest.mul_(above).add_(share.mul_(below))
        foreground = values > threshold
        if threshold < 0:  # else 0, behind the last pixel, is none
            foreground &= stretches.is_pixel.index_select(0, stretch)
        probs += values.sigmoid_().mul_(foreground.to(values.dtype)).sum(dim=1).sum(dtype=widest)
        edges.append(_within(some, foreground, stretches, starts, ends, places))
    return torch.cat(edges), probs, ends[-1:]


def _within(
    some: Tensor, foreground: Tensor, stretches: _Stretches, starts: Tensor, ends: Tensor, places: Tensor
) -> Tensor:
    """Find where stretches change that begin and end differently.

    Args:
        some: Which of the ``C * S`` stretches, int64 ``(K,)``.
        foreground: Their pixels, bool ``(K, longest)``.
        stretches: S per column.
        starts: Whether each stretch begins with foreground, bool ``(C * S,)``.
        ends: Whether it ends so, alike.
        places: Of the first pixels, int64 ``(C * S,)``.
    """
    mixed = (starts ^ ends).index_select(0, some).nonzero()[:, 0]
    which = some.index_select(0, mixed)
    area = foreground.index_select(0, mixed).sum(dim=1)
    length = stretches.length.index_select(0, which % len(stretches.start))
    return places.index_select(0, which) + torch.where(starts.index_select(0, which), area, length - area)


def stretched(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Enlarge ``(a, b)`` to a shape, bilinear with ``align_corners=False``."""
    return F.interpolate(values[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
