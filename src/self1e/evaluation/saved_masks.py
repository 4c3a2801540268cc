"""Predicted masks inside rows, as COCO RLE whose counts are text: reports show them, other tools can read them.

A row of a mask has ``"mask": {"size": [H, W], "counts": "..."}``, one of a class map ``"map": [[label, RLE], ...]``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from self1e.structures import decode_rle, encode_mask


def text_rle(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask for a row.

    Args:
        mask: Bool ``(H, W)``.
    """
    rle = encode_mask(mask)
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_text_rle(rle: dict[str, Any]) -> np.ndarray:
    """Undo `text_rle`: bool ``(H, W)``."""
    return decode_rle({"size": rle["size"], "counts": rle["counts"].encode("ascii")})


def encode_map(labels: np.ndarray) -> list[list[Any]]:
    """Encode a class map for a row.

    Args:
        labels: Integer ``(H, W)``.
    """
    return [[int(label), text_rle(labels == label)] for label in np.unique(labels)]
