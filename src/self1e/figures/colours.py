"""Numbers to colours: features, logits and attention as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def principal_colours(maps: Sequence[torch.Tensor]) -> list[np.ndarray]:
    """Show features as RGB: their three strongest directions, fitted on all maps together.

    Args:
        maps: ``(h, w, D)`` each.

    Returns:
        uint8 ``(h, w, 3)`` each; equal colours mean like features, also across these maps.
    """
    rows = [x.double().flatten(0, 1).numpy() for x in maps]
    weights = np.concatenate([np.full(len(x), 1 / len(x)) for x in rows])  # a finer map counts no more
    values = np.concatenate(rows)
    values = values - np.average(values, axis=0, weights=weights)
    _, _, directions = np.linalg.svd(values * np.sqrt(weights)[:, None], full_matrices=False)
    directions = directions[:3]
    strongest = np.abs(directions).argmax(axis=1)
    directions = directions * np.sign(directions[np.arange(len(directions)), strongest])[:, None]  # sign is arbitrary
    colours = values @ directions.T
    low, high = np.percentile(colours, (2, 98), axis=0)
    colours = np.clip((colours - low) / np.maximum(high - low, 1e-9), 0, 1)
    parts = np.split(colours, np.cumsum([len(x) for x in rows])[:-1])
    return [
        (255 * part).round().astype(np.uint8).reshape(*x.shape[:2], -1) for part, x in zip(parts, maps, strict=True)
    ]


def diverging(values: torch.Tensor, limit: float) -> np.ndarray:
    """Blue below 0, white at 0, red above: ``(h, w)`` to uint8 ``(h, w, 3)``."""
    x = np.clip(values.double().numpy() / max(limit, 1e-9), -1, 1)[..., None]
    warm, cold = np.array([202, 32, 40.0]), np.array([40, 90, 180.0])
    colours = 255 + np.maximum(x, 0) * (warm - 255) + np.maximum(-x, 0) * (cold - 255)
    return colours.round().astype(np.uint8)


def heat(image: Image.Image, weights: torch.Tensor) -> Image.Image:
    """Lay attention over a greyed picture: more is brighter orange.

    Args:
        image: RGB.
        weights: One per token, ``(h, w)``, in any unit: the panel is on its own scale.
    """
    x = weights.double().numpy()
    x = (x - x.min()) / max(x.max() - x.min(), 1e-9)
    amount = Image.fromarray((215 * x).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    grey = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", image.size, (20, 24, 30)), 0.45)
    grey.paste(Image.new("RGB", image.size, (255, 150, 20)), mask=amount)
    return grey
