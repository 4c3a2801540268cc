"""What a result says per query, as JSON has it."""

from __future__ import annotations

from typing import Any

from self1e.structures import Segmentation


def entries(result: Segmentation) -> list[dict[str, Any]]:
    """One JSON-able record per query."""
    rles, areas, boxes = result.to_coco_rle(), result.areas.tolist(), result.boxes_xyxy.tolist()
    return [
        {
            "query": result.queries[k],
            "text": result.text[k],
            "score": round(float(result.scores[k]), 6),  # float32 has no more digits
            "area": areas[k],
            "box_xyxy": boxes[k],
            "is_empty": areas[k] == 0,
            "rle": rles[k],
        }
        for k in range(len(result))
    ]


def numbered(queries: tuple[str, ...]) -> dict[str, int]:
    """Number different queries from 0 on, in their order: the parts of one query are of one class."""
    return {query: number for number, query in enumerate(dict.fromkeys(queries))}
