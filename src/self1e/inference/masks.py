"""Mask logits to a mask at the picture's own size (METHOD section 5, step 9), in bounded memory.

Bilinear enlarging works along one side at a time. First down: ``(h, w)`` becomes ``(H, w)``, which is small for
any picture. Then across, in strips of about a million pixels: so a 24-megapixel mask never exists as numbers,
and strips without foreground cost nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from self1e.structures import encode_mask

_STRIP = 2**20
"""Pixels per strip: 4 MB, which stays in a CPU's cache."""


def enlarge(logits: Tensor, size_wh: tuple[int, int], threshold: float = 0.0) -> tuple[dict[str, Any], float]:
    """Scale logits to the picture, bilinear with ``align_corners=False``, and threshold them.

    Args:
        logits: Float32 ``(h, w)``.
        size_wh: Size of the picture.
        threshold: Foreground is strictly above it.

    Returns:
        Compressed COCO RLE, and the mean sigmoid over the foreground (0 without any).
    """
    width, height = size_wh
    mask = np.zeros((height, width), dtype=bool)
    total, area = 0.0, 0
    rows = F.interpolate(logits[None, None], size=(height, logits.shape[1]), mode="bilinear", align_corners=False)[0, 0]
    # Enlarging never exceeds what it starts from: rows without a logit above the threshold have no foreground.
    has_foreground = (rows.amax(dim=1) > threshold).tolist()
    step = max(_STRIP // width, 1)
    for top in range(0, height, step):
        if not any(has_foreground[top : top + step]):
            continue
        strip = rows[None, None, top : top + step]
        strip = F.interpolate(strip, size=(strip.shape[2], width), mode="bilinear", align_corners=False)[0, 0]
        foreground = strip > threshold
        total += float(strip[foreground].sigmoid().sum(dtype=_widest(strip)))
        area += int(foreground.sum())
        mask[top : top + step] = foreground.cpu().numpy()
    return encode_mask(mask), total / area if area else 0.0


def _widest(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # MPS has no float64
