"""COCO result files: instance masks as pycocotools and every COCO server read them.

One record per predicted mask, compressed run-length code at the picture's own size::

    [{"image_id": 42, "category_id": 18, "segmentation": {"size": [478, 640], "counts": "VQi31m>..."}, "score": 0.236}]
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.files import read_json
from self1e.errors import DatasetError
from self1e.files import atomic_write
from self1e.structures import decode_rle, encode_mask


@dataclass(frozen=True, kw_only=True)
class CocoResult:
    """One predicted mask."""

    image_id: int
    category_id: int
    size_hw: tuple[int, int]
    counts: str
    """Compressed run lengths."""
    score: float

    @classmethod
    def from_mask(cls, mask: np.ndarray, *, image_id: int, category_id: int, score: float) -> CocoResult:
        """Encode a bool mask ``(H, W)``."""
        rle = encode_mask(mask)
        height, width = rle["size"]
        return cls(
            image_id=image_id,
            category_id=category_id,
            size_hw=(height, width),
            counts=rle["counts"].decode("ascii"),
            score=score,
        )

    def mask(self) -> np.ndarray:
        """Decode, bool ``(H, W)``."""
        return decode_rle({"size": list(self.size_hw), "counts": self.counts.encode("ascii")})


def read_coco_results(path: str | Path) -> list[CocoResult]:
    """Read a result file of masks.

    Raises:
        DatasetError: The file is missing, is no list of records, or a record lacks something.
    """
    path = Path(path)
    records = read_json(path, "a COCO result file (a JSON list of records)")
    if not isinstance(records, list):
        raise DatasetError(
            f"{path} holds a {type(records).__name__}, expected a list of records: annotations (with images and "
            "categories) are another kind of file."
        )
    return [_result(record, f"{path}, record {k}") for k, record in enumerate(records)]


def write_coco_results(path: str | Path, results: Iterable[CocoResult]) -> Path:
    """Write a result file, whole or not at all; reading it gives the same results."""
    records = [
        {
            "image_id": result.image_id,
            "category_id": result.category_id,
            "segmentation": {"size": list(result.size_hw), "counts": result.counts},
            "score": result.score,
        }
        for result in results
    ]
    for k, record in enumerate(records):
        _result(record, f"result {k}")
    return atomic_write(Path(path), json.dumps(records, separators=(",", ":")).encode())


def _result(record: Any, where: str) -> CocoResult:
    """Check one record at the door."""
    needed = ("image_id", "category_id", "segmentation", "score")
    missing = [key for key in needed if not isinstance(record, dict) or key not in record]
    if missing:
        raise DatasetError(f"{where} has no {', '.join(missing)}; a mask result has {', '.join(needed)}.")
    rle = record["segmentation"]
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str) or len(rle.get("size", ())) != 2:
        raise DatasetError(
            f"{where}: segmentation is {rle!r:.60}, expected a compressed run-length code, "
            '{"size": [H, W], "counts": "..."}.'
        )
    score = record["score"]
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise DatasetError(f"{where}: the score is {score!r}, expected a finite number.")
    height, width = rle["size"]
    return CocoResult(
        image_id=record["image_id"],
        category_id=record["category_id"],
        size_hw=(height, width),
        counts=rle["counts"],
        score=score,
    )
