"""Mask logits to a mask at the picture's own size (METHOD section 5, step 9), in bounded memory.

Bilinear enlarging works along one side at a time. First across: ``(h, w)`` becomes ``(h, W)``, which is small for
any picture. Then down, in strips of whole columns, about a million pixels each: so a 24-megapixel mask never exists
as numbers, and strips without foreground cost nothing. Columns, because run-length codes of COCO run down them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from self1e.errors import SettingError
from self1e.structures import encode_mask

STRIP = 2**20
"""Pixels per strip: 4 MB, which stays in a CPU's cache."""


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
    mask = np.zeros((width, height), dtype=bool)  # columns first
    widest = torch.float32 if logits.device.type == "mps" else torch.float64  # MPS has no float64
    total, area = 0.0, 0
    columns = stretched(logits.T, (width, logits.shape[0]))  # (W, h)
    # Enlarging never exceeds what it starts from: where no logit is above the threshold, no pixel will be.
    has_foreground = (columns.amax(dim=1) > threshold).tolist()
    step = max(STRIP // height, 1)
    for left in range(0, width, step):
        if not any(has_foreground[left : left + step]):
            continue
        strip = columns[left : left + step]
        strip = stretched(strip, (len(strip), height))
        foreground = strip > threshold
        total += float(strip.sigmoid().mul_(foreground).sum(dtype=widest))
        area += int(foreground.sum())
        mask[left : left + step] = foreground.cpu().numpy()
    return encode_mask(mask.T), total / area if area else 0.0


def stretched(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Enlarge ``(a, b)`` to a shape, bilinear with ``align_corners=False``."""
    return F.interpolate(values[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
