"""Label Studio: tasks with predictions, ready to be imported and corrected by hand.

The project's labelling setup needs these names (the labels may be more)::

    <View>
      <Image name="image" value="$image"/>
      <BrushLabels name="brush" toName="image"><Label value="the cup"/></BrushLabels>
      <PolygonLabels name="polygon" toName="image"><Label value="the cup"/></PolygonLabels>
    </View>

Brush strokes are exact. Polygons have no holes there: they become bridges (`exports.rings`), and every connected piece
is a region of its own.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any, Literal

import numpy as np

from self1e.inference.exports.rings import one_line
from self1e.structures import Segmentation

Tool = Literal["brush", "polygon"]

_LENGTHS = (4, 8, 12, 16)
"""Bits in which a run's length may be written."""
_VALUE_BITS = 8
_RUNS_AT_ONCE = 2**18


def label_studio_task(result: Segmentation, tool: Tool = "brush") -> dict[str, Any]:
    """Return one task; its prediction holds a region per mask, or per piece if they are polygons.

    ``data.image`` is the picture's bare name: put the address or path that Label Studio sees before it.
    """
    regions = [region for k in range(len(result)) for region in _regions(result, k, tool)]
    found = [float(score) for score, is_empty in zip(result.scores, result.is_empty, strict=True) if not is_empty]
    prediction: dict[str, Any] = {"model_version": "self1e", "result": regions}
    if found:
        prediction["score"] = round(float(np.mean(found)), 6)
    return {"data": {"image": Path(result.source).name}, "predictions": [prediction]}


def _regions(result: Segmentation, k: int, tool: Tool) -> list[dict[str, Any]]:
    width, height = result.size_wh
    if result.areas[k] == 0:
        return []
    if tool == "brush":
        values: list[dict[str, Any]] = [{"format": "rle", "rle": pack_brush(result.mask(k)).tolist()}]
    else:
        percent = 100 / np.array(result.size_wh)
        lines = [one_line([polygon]) * percent for polygon in result[k].to_polygons()[0]]
        values = [{"points": line.round(7).tolist(), "closed": True} for line in lines]
    kind = f"{tool}labels"
    return [
        {
            # The same result gives the same name, so that files do not change when they are written again.
            "id": uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([result.source, result.queries[k], tool, k, n])).hex[:10],
            "type": kind,
            "from_name": tool,
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": round(float(result.scores[k]), 6),
            "value": value | {kind: [result.queries[k]]},
        }
        for n, value in enumerate(values)
    ]


def pack_brush(mask: np.ndarray) -> np.ndarray:
    """Pack a mask as Label Studio's brush does: the bit stream that ``self1e.data.own.regions.unpack_brush`` reads.

    Values are RGBA row by row, all four 255 in the mask and 0 elsewhere.

    Args:
        mask: Bool ``(H, W)``.

    Returns:
        Bytes, uint8 ``(B,)``.
    """
    flat = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = 4 * np.diff(starts, append=flat.size)
    values = flat[starts] * 255
    longest = 1 << _LENGTHS[-1]  # longer runs are several
    pieces = -(-lengths // longest)
    run = np.repeat(np.arange(len(lengths)), pieces)
    is_last = np.ones(len(run), dtype=bool)
    is_last[:-1] = run[1:] != run[:-1]
    lengths = np.where(is_last, lengths[run] - (pieces[run] - 1) * longest, longest)
    values = values[run]
    header = _bits(
        np.array([4 * flat.size, _VALUE_BITS - 1, *(bits - 1 for bits in _LENGTHS)]), np.array([32, 5, 4, 4, 4, 4])
    )
    blocks = [header]
    for first in range(0, len(lengths), _RUNS_AT_ONCE):
        some = lengths[first : first + _RUNS_AT_ONCE] - 1
        choice = np.searchsorted([1 << bits for bits in _LENGTHS], some, side="right")
        bits = np.array(_LENGTHS)[choice]
        # One bit says that a value is repeated, two choose the length's width; then the length and the value.
        codes = ((4 + choice) << bits | some) << _VALUE_BITS | values[first : first + _RUNS_AT_ONCE]
        blocks.append(_bits(codes, 3 + bits + _VALUE_BITS))
    return np.packbits(np.concatenate(blocks))


def _bits(numbers: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Write numbers in so many bits each, the highest first; uint8 of 0 and 1."""
    ends = np.cumsum(widths)
    place = np.repeat(ends, widths) - 1 - np.arange(ends[-1])
    return (np.repeat(numbers, widths) >> place & 1).astype(np.uint8)
