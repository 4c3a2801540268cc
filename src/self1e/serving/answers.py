"""Results as the service sends them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from self1e.inference.export import as_png
from self1e.inference.exports.records import entries
from self1e.serving import schemas
from self1e.structures import Segmentation, mask_image


def found(result: Segmentation, formats: Sequence[schemas.MaskFormat]) -> list[schemas.Found]:
    """Describe every mask of a result in these formats."""
    return [_found(result[k], entry, formats) for k, entry in enumerate(entries(result))]


def _found(one: Segmentation, entry: dict[str, Any], formats: Sequence[schemas.MaskFormat]) -> schemas.Found:
    return schemas.Found(
        query=entry["query"],
        score=entry["score"],
        not_there=entry["is_empty"],
        area=entry["area"],
        box_xyxy=entry["box_xyxy"],
        text=entry["text"],
        rle=schemas.RLE(**entry["rle"]) if "rle" in formats else None,
        polygons=_polygons(one) if "polygons" in formats else None,
        png=base64.b64encode(as_png(mask_image(one.mask()))).decode() if "png" in formats else None,
    )


def _polygons(one: Segmentation) -> list[schemas.MaskPolygon]:
    return [
        schemas.MaskPolygon(exterior=polygon["exterior"].tolist(), holes=[hole.tolist() for hole in polygon["holes"]])
        for polygon in one.to_polygons()[0]
    ]


def segmented(model: str, result: Segmentation, formats: Sequence[schemas.MaskFormat]) -> schemas.SegmentResponse:
    """Describe a result."""
    width, height = result.size_wh
    return schemas.SegmentResponse(model=model, width=width, height=height, results=found(result, formats))


def mapped(model: str, result: Any) -> schemas.SemanticResponse:
    """Describe a ``SemanticMap``."""
    from self1e.indexed import indexed_png

    content = result.to_json()
    width, height = result.size_wh
    return schemas.SemanticResponse(
        model=model,
        width=width,
        height=height,
        background=result.background,
        classes=[schemas.ClassInfo(**entry) for entry in content["classes"]],
        png=base64.b64encode(indexed_png(result.labels, result.palette)).decode(),
    )
