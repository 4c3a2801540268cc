"""The training losses: text cross entropy, BCE and DICE on masks (METHOD 6.1).

Mask losses run in float32 whatever the model runs in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOSS_SIDE = 128
"""Targets whose shorter side is longer than this are shrunk to it before the loss (published)."""

_DICE_SCALE = 1000.0
_DICE_EPS = 1e-6


@dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of the total loss; defaults as published."""

    text: float = 1.0
    bce: float = 2.0
    dice: float = 0.5


def bce_per_mask(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy, mean over pixels: ``(K, h, w), (K, h, w) in 0..1 -> (K,)``."""
    loss = F.binary_cross_entropy_with_logits(mask_logits.float(), targets.float(), reduction="none")
    return loss.flatten(1).mean(1)


def dice_per_mask(mask_logits: Tensor, targets: Tensor) -> Tensor:
    """Soft DICE loss: ``(K, h, w), (K, h, w) in 0..1 -> (K,)``; sums are scaled by 1000 as published."""
    probs, targets = mask_logits.float().sigmoid().flatten(1), targets.float().flatten(1)
    overlap = 2 * (probs * targets).sum(1) / _DICE_SCALE
    total = (probs.sum(1) + targets.sum(1)) / _DICE_SCALE
    return 1 - (overlap + _DICE_EPS) / (total + _DICE_EPS)


def loss_target(masks: Tensor) -> Tensor:
    """Bring target masks to the size of the loss: ``(K, H, W) -> (K, h, w)`` float32, soft at borders.

    Bilinear without antialias; masks whose shorter side is at most `LOSS_SIDE` keep their size.
    """
    height, width = masks.shape[-2:]
    short = min(height, width)
    masks = masks.float()
    if short <= LOSS_SIDE:
        return masks
    size = (height * LOSS_SIDE // short, width * LOSS_SIDE // short)
    return resize_logits(masks, size)


def resize_logits(x: Tensor, shape_hw: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear, ``align_corners=False``: ``(K, h, w) -> (K, *shape_hw)`` in float32."""
    return F.interpolate(x.float()[:, None], size=tuple(shape_hw), mode="bilinear", align_corners=False)[:, 0]


def mask_losses(mask_logits: Sequence[Tensor], targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Sum BCE and DICE over masks of any sizes.

    Args:
        mask_logits: Per row, ``(K_b, h, w)``.
        targets: Per row, ``(K_b, H, W)`` in 0..1 at the picture's size.

    Returns:
        Two scalars, float32. Equal sizes are computed together: one call for the whole batch.
    """
    groups: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    for logits, masks in zip(mask_logits, targets, strict=True):
        target = loss_target(masks)
        groups.setdefault((*logits.shape[1:], *target.shape[1:]), []).append((logits, target))
    bce = dice = torch.zeros((), device=mask_logits[0].device)
    for pairs in groups.values():
        target = torch.cat([pair[1] for pair in pairs])
        logits = resize_logits(torch.cat([pair[0] for pair in pairs]), target.shape[1:])
        bce = bce + bce_per_mask(logits, target).sum()
        dice = dice + dice_per_mask(logits, target).sum()
    return bce, dice


def text_loss(hidden: Tensor, lm_head: torch.nn.Module, labels: Tensor) -> Tensor:
    """Next-token cross entropy, computed at labelled positions only.

    Args:
        hidden: Last hidden states, ``(B, N, D)``.
        lm_head: Hidden states to vocabulary logits.
        labels: int64 ``(B, N)``, -100 = not supervised.

    Returns:
        Mean over supervised tokens of the micro-batch; 0 (with a gradient path) if there is none.
    """
    next_labels = labels[:, 1:]
    supervised = next_labels != -100
    logits = lm_head(hidden[:, :-1][supervised]).float()
    if logits.shape[0] == 0:
        return logits.sum()
    return F.cross_entropy(logits, next_labels[supervised])
