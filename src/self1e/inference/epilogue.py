"""The last step of a mask: ``GELU(K + enlarge(R)) . v + c`` at every pixel, without keeping what is inside.

K is known per picture, R is what the language model made of it for a row, v and c are the row's query
(`self1e.inference.folded`, b2). Written out, the GELU's result is the largest tensor of all: 4096 vectors of width D
per tile and row. Here it exists in strips of lines that stay in a cache, or on a CUDA device with Triton in registers
only (`self1e.inference.epilogue_triton`).

Shapes: B rows; P pictures, all of one tile grid; h, w pixels; a, b places of R, of which one is s pixels high and wide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from self1e.model.mask_head import upsample

_CPU_STRIP = 2**22
"""Bytes of a strip: 4 MB stay in a CPU's cache."""
_STRIP = 2**28  # elsewhere a strip costs launches


def score_pixels(known: Tensor, residual: Tensor, query: Tensor, constant: Tensor, picture_of_row: Tensor) -> Tensor:
    """Score all pixels of rows: logits ``(B, h, w)``, of the features' type but at least float32.

    Args:
        known: K, ``(P, h, w, D)``.
        residual: R, ``(B, a, b, D)``.
        query: v, ``(B, D)``.
        constant: c, ``(B,)``.
        picture_of_row: int64 ``(B,)``; is not read if P is 1.
    """
    kernel = _kernel(known)
    score = score_in_strips if kernel is None else kernel
    return score(known, residual, query, constant, picture_of_row)


def score_in_strips(
    known: Tensor,
    residual: Tensor,
    query: Tensor,
    constant: Tensor,
    picture_of_row: Tensor,
    *,
    strip_bytes: int | None = None,
) -> Tensor:
    """Do it in strips of whole lines; see `score_pixels`.

    Args:
        known: See `score_pixels`, like what follows.
        residual: R.
        query: v.
        constant: c.
        picture_of_row: Of each row.
        strip_bytes: Most bytes of a strip, if one line of R is not more.
    """
    if strip_bytes is None:
        strip_bytes = _CPU_STRIP if known.device.type == "cpu" else _STRIP
    batch, lines = residual.shape[:2]
    _, height, width, dim = known.shape
    scale = height // lines
    step = max(strip_bytes // (batch * scale * width * dim * known.element_size()), 1)
    strips = []
    for top in range(0, lines, step):
        bottom = min(top + step, lines)
        # One more line on either side: enlarging mixes neighbours.
        above, below = max(top - 1, 0), min(bottom + 1, lines)
        enlarged = upsample(residual[:, above:below], ((below - above) * scale, width))
        enlarged = enlarged[:, (top - above) * scale : (bottom - above) * scale]
        base = known[:, top * scale : bottom * scale]
        hidden = F.gelu(enlarged + (base if len(known) == 1 else base.index_select(0, picture_of_row)))
        strips.append(torch.matmul(hidden.flatten(1, 2), query[:, :, None])[..., 0])
    logits = torch.cat(strips, dim=1).unflatten(1, (height, width))
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) + constant[:, None, None]


def _kernel(known: Tensor) -> Any:
    """The fused kernel, where it can run: on CUDA, for the types that it computes in float32."""
    if known.device.type != "cuda" or known.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return None
    try:
        from self1e.inference.epilogue_triton import score_fused
    except ImportError:  # torch for CUDA brings Triton along, but not on every system
        return None
    return score_fused
