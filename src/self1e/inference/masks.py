"""Mask logits to a mask at the picture's own size (METHOD section 5, step 9), in bounded memory.

Bilinear enlarging works along one side at a time. First across: ``(h, w)`` becomes ``(h, W)``, which is small for
any picture. Then down, in strips of whole columns: so a 24-megapixel mask never exists as numbers, and strips without
foreground cost nothing. Columns, because run-length codes of COCO run down them: where a strip changes between
foreground and background is found on the device, and only these places leave it. No mask is ever a picture of pixels
here; ``Segmentation`` decodes the ones that somebody asks for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from self1e.errors import SettingError
from self1e.structures import encode_edges

STRIP = 2**20
"""Pixels per strip on a CPU: 4 MB, which stays in its cache."""
_DEVICE_STRIP = 2**24  # elsewhere a strip costs launches and a wait for the device: few and large ones, 64 MB each


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
    # Enlarging never exceeds what it starts from: where no logit is above the threshold, no pixel will be.
    has_foreground = (columns.amax(dim=1) > threshold).tolist()
    step = max((STRIP if logits.device.type == "cpu" else _DEVICE_STRIP) // height, 1)
    nothing = torch.zeros(1, dtype=torch.bool, device=logits.device)
    before = nothing
    edges: list[Tensor] = []
    sums: list[Tensor] = []
    for left in range(0, width, step):
        if not any(has_foreground[left : left + step]):
            continue
        found, probs, last = _strip(columns[left : left + step], height, threshold, before)
        edges.append(found + left * height)
        sums.append(probs)
        before = last
        if not any(has_foreground[left + step : left + 2 * step]):  # no strip follows that would see the end of a run
            edges.append(last.nonzero()[:, 0] + min(left + step, width) * height)
            before = nothing
    places = torch.cat(edges).cpu().numpy() if edges else []
    rle, area = encode_edges(places, (height, width))
    return rle, sum(torch.stack(sums).tolist()) / area if area else 0.0


def _strip(columns: Tensor, height: int, threshold: float, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Enlarge and threshold some columns.

    Args:
        columns: ``(columns, h)``.
        height: Of the picture.
        threshold: Foreground is strictly above it.
        before: Whether the pixel before them is foreground, bool ``(1,)``.

    Returns:
        Where pixels differ from the one before, down the columns, int64; the sum of the sigmoid over the foreground;
        and whether the last pixel is foreground, bool ``(1,)``.
    """
    widest = torch.float32 if columns.device.type == "mps" else torch.float64  # MPS has no float64
    strip = stretched(columns, (len(columns), height))
    foreground = strip > threshold
    probs = strip.sigmoid().mul_(foreground).sum(dtype=widest)
    flat = foreground.view(-1)
    edges = flat.clone()
    edges[1:] ^= flat[:-1]
    edges[:1] ^= before
    return edges.nonzero()[:, 0], probs, flat[-1:]


def stretched(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Enlarge ``(a, b)`` to a shape, bilinear with ``align_corners=False``."""
    return F.interpolate(values[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
