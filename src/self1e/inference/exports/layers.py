"""All masks of a result in one map of numbers."""

from __future__ import annotations

import numpy as np

from self1e.drawing import distinct_colors
from self1e.indexed import index_dtype, indexed_png
from self1e.inference.exports.records import numbered
from self1e.structures import Segmentation


def label_layers(result: Segmentation) -> np.ndarray:
    """Number pixels, uint8 or uint16 ``(H, W)``: 0 where nothing was found, else the query's number + 1.

    Where masks overlap the one with the higher score is on top, of equal ones the earlier.
    """
    numbers = numbered(result.queries)
    width, height = result.size_wh
    labels = np.zeros((height, width), dtype=index_dtype(len(numbers)))
    for k in np.lexsort((-np.arange(len(result)), result.scores)):
        x0, y0, x1, y1 = result.boxes_xyxy[k]
        labels[y0:y1, x0:x1][result.mask(k)[y0:y1, x0:x1]] = numbers[result.queries[k]] + 1
    return labels


def layers_png(result: Segmentation) -> bytes:
    """Write them as an indexed PNG in the colours of the overlay, 0 black."""
    colors = [(0, 0, 0), *distinct_colors(len(numbered(result.queries)))]
    return indexed_png(label_layers(result), np.array(colors, dtype=np.uint8))
