"""COCO: instances with run-length codes, and result files.

One picture is ``image_id`` 1; its categories are its different queries from 1 on. ``combined.py`` unites many pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from self1e.inference.exports.records import entries, numbered
from self1e.structures import Segmentation


def coco_instances(result: Segmentation) -> dict[str, Any]:
    """Return ``images``, ``annotations`` (with score) and ``categories``; no annotation for what is not there."""
    width, height = result.size_wh
    numbers = numbered(result.queries)
    annotations = [
        {
            "id": k + 1,
            "image_id": 1,
            "category_id": numbers[entry["query"]] + 1,
            "segmentation": entry["rle"],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": entry["area"],
            "iscrowd": 0,
            "score": entry["score"],
        }
        for k, entry in enumerate(entries(result))
        for x0, y0, x1, y1 in [entry["box_xyxy"]]
        if not entry["is_empty"]
    ]
    return {
        "images": [{"id": 1, "file_name": Path(result.source).name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": [{"id": number + 1, "name": query} for query, number in numbers.items()],
    }


def coco_results(instances: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the records of a result file for these instances, as ``COCO.loadRes`` reads them."""
    return [
        {name: annotation[name] for name in ("image_id", "category_id", "segmentation", "score")}
        for annotation in instances["annotations"]
    ]


def uncompressed(rle: dict[str, Any]) -> dict[str, Any]:
    """Write a compressed code's runs as numbers."""
    from self1e.structures import run_lengths

    return {"size": list(rle["size"]), "counts": run_lengths(rle["counts"].encode("ascii")).tolist()}
