"""Pictures of numbers: a PNG whose pixels are labels, in colours for people."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

MOST_IN_8_BITS = 254
"""Labels besides 0 that fit into 8 bits; 255 stays free, because many programs ignore it."""


def index_dtype(count: int) -> type[np.unsignedinteger]:
    """What holds the labels 0 to ``count``."""
    return np.uint8 if count <= MOST_IN_8_BITS else np.uint16


def indexed_png(labels: np.ndarray, palette: np.ndarray) -> bytes:
    """Write labels as PNG, exactly.

    Args:
        labels: uint8 ``(H, W)``, or uint16: then 16-bit grey, because PNG has no larger palettes.
        palette: Colour of each label, uint8 ``(labels, 3)``.
    """
    image = Image.fromarray(labels)
    if labels.dtype == np.uint8:
        image.putpalette(palette.tobytes())  # turns grey levels into indices, without changing a number
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
