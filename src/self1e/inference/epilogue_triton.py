"""`self1e.inference.epilogue` as one kernel: everything between what is read and a logit stays in registers.

A program takes one row and a run of pixels, walks through the channels, and for each chunk reads K and the four
neighbours in R, enlarges, adds, applies GELU, and sums the products with the query, all in float32. Programs of one run
of pixels and all rows are neighbours, so K comes from the cache for all rows but the first.

Imported on CUDA devices only. ``TRITON_INTERPRET=1`` runs it on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_PIXELS = 32
_CHANNELS = 64


@triton.jit
def _score(
    known,
    residual,
    query,
    constant,
    picture_of_row,
    logits,
    height,
    width,
    low_height,
    low_width,
    dim,
    SCALE: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    is_inside = pixel < height * width
    y = pixel // width
    x = pixel % width
    # Bilinear with align_corners=False: pixel y lies at (y + 1/2) / s - 1/2, not before the first place.
    at_y = tl.maximum((y.to(tl.float32) + 0.5) / SCALE - 0.5, 0.0)
    at_x = tl.maximum((x.to(tl.float32) + 0.5) / SCALE - 0.5, 0.0)
    top = at_y.to(tl.int32)
    left = at_x.to(tl.int32)
    bottom = tl.minimum(top + 1, low_height - 1)
    right = tl.minimum(left + 1, low_width - 1)
    down = (at_y - top.to(tl.float32))[:, None]
    across = (at_x - left.to(tl.float32))[:, None]
    picture = tl.load(picture_of_row + row)
    known += picture.to(tl.int64) * height * width * dim
    residual += row.to(tl.int64) * low_height * low_width * dim
    query += row.to(tl.int64) * dim
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    for start in range(0, dim, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        is_channel = channel < dim
        is_read = is_inside[:, None] & is_channel[None, :]
        a = tl.load(residual + ((top * low_width + left) * dim)[:, None] + channel[None, :], mask=is_read, other=0.0)
        b = tl.load(residual + ((top * low_width + right) * dim)[:, None] + channel[None, :], mask=is_read, other=0.0)
        c = tl.load(residual + ((bottom * low_width + left) * dim)[:, None] + channel[None, :], mask=is_read, other=0.0)
        d = tl.load(
            residual + ((bottom * low_width + right) * dim)[:, None] + channel[None, :], mask=is_read, other=0.0
        )
        upper = a.to(tl.float32) * (1.0 - across) + b.to(tl.float32) * across
        lower = c.to(tl.float32) * (1.0 - across) + d.to(tl.float32) * across
        value = upper * (1.0 - down) + lower * down
        value += tl.load(known + (pixel * dim)[:, None] + channel[None, :], mask=is_read, other=0.0).to(tl.float32)
        hidden = 0.5 * value * (1.0 + tl.math.erf(value * 0.7071067811865476))
        weight = tl.load(query + channel, mask=is_channel, other=0.0).to(tl.float32)
        total += tl.sum(hidden * weight[None, :], axis=1)
    total += tl.load(constant + row).to(tl.float32)
    tl.store(logits + row.to(tl.int64) * height * width + pixel, total, mask=is_inside)


def score_fused(known: Tensor, residual: Tensor, query: Tensor, constant: Tensor, picture_of_row: Tensor) -> Tensor:
    """Score all pixels of rows in one launch: logits float32 ``(B, h, w)``; see `epilogue.score_pixels`."""
    batch, low_height, low_width, dim = residual.shape
    pictures, height, width, _ = known.shape
    assert height * width * dim < 2**31, "places within one picture are counted in 32 bits"
    if pictures == 1:
        picture_of_row = torch.zeros_like(picture_of_row)
    logits = torch.empty(batch, height, width, dtype=torch.float32, device=known.device)
    kernel: Any = _score
    kernel[batch, triton.cdiv(height * width, _PIXELS)](
        known.contiguous(),
        residual.contiguous(),
        query.contiguous(),
        constant.contiguous(),
        picture_of_row.contiguous(),
        logits,
        height,
        width,
        low_height,
        low_width,
        dim,
        SCALE=height // low_height,
        PIXELS=_PIXELS,
        CHANNELS=_CHANNELS,
    )
    return logits
