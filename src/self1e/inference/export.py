"""A result as files: pictures for people, JSON for programs.

=========  =====================  ===============================================================================
format     file                   content
=========  =====================  ===============================================================================
overlay    STEM.overlay.png       the picture with masks, contours and legend
mask       STEM.mask0.png, ...    one per query in the order of the queries: 8-bit grey, 0 background, 255 mask
coco       STEM.coco.json         COCO's images, annotations (RLE, box, area, score) and categories; a category
                                  per query (id = its number + 1), no annotation for a query that is not there
polygons   STEM.polygons.json     exteriors and holes on pixel edges; their even-odd fill is the mask exactly
json       STEM.json              everything: query, text, score, area, box, is_empty and RLE of each
=========  =====================  ===============================================================================
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from self1e.errors import SettingError, did_you_mean
from self1e.files import atomic_write_all
from self1e.structures import Segmentation, mask_image

Files = Iterator[tuple[str, bytes]]  # what follows the stem, and the content


def write_outputs(
    result: Segmentation, folder: Path, stem: str, formats: Sequence[str], *, sync: bool = False
) -> list[Path]:
    """Write a result in one or more formats, replacing files of the same names.

    Every file is written whole, and if one cannot be made, none is: see ``self1e.files``.

    Args:
        result: What to write.
        folder: Where to; made if it is not there.
        stem: What the file names begin with, e.g. the picture's name without its suffix.
        formats: Names from ``FORMATS``.
        sync: Wait until the files are on the disk.

    Returns:
        The files written.
    """
    writers = [FORMATS[name] for name in check_formats(formats)]
    if stem in ("", "..") or Path(stem).name != stem:
        raise SettingError(f"stem={stem!r} must be a bare file name: put folders into `folder`.")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = ((folder / f"{stem}.{ending}", data) for write in writers for ending, data in write(result))
    return atomic_write_all(files, sync=sync)


def check_formats(formats: Sequence[str]) -> list[str]:
    """Return the names, each once, or say which one is unknown."""
    names = [formats] if isinstance(formats, str) else list(dict.fromkeys(formats))
    known = ", ".join(FORMATS)
    if not names:
        raise SettingError(f"formats is empty, so nothing would be written. Known: {known}.")
    for name in names:
        if name not in FORMATS:
            hint = did_you_mean(str(name).lower(), FORMATS)
            raise SettingError(f"Unknown output format {name!r}.{hint} Known: {known}.")
    return names


def _overlay(result: Segmentation) -> Files:
    yield "overlay.png", _png(result.overlay())


def _masks(result: Segmentation) -> Files:
    for k in range(len(result)):
        yield f"mask{k}.png", _png(mask_image(result.mask(k)))


def _coco(result: Segmentation) -> Files:
    width, height = result.size_wh
    image = {"id": 1, "file_name": Path(result.source).name, "width": width, "height": height}
    annotations = [
        {
            "id": k + 1,
            "image_id": 1,
            "category_id": k + 1,
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
    categories = [{"id": k + 1, "name": query} for k, query in enumerate(result.queries)]
    yield "coco.json", _json({"images": [image], "annotations": annotations, "categories": categories})


def _polygons(result: Segmentation) -> Files:
    queries = [
        {
            "query": query,
            "polygons": [
                {"exterior": polygon["exterior"].tolist(), "holes": [hole.tolist() for hole in polygon["holes"]]}
                for polygon in polygons
            ],
        }
        for query, polygons in zip(result.queries, result.to_polygons(), strict=True)
    ]
    yield "polygons.json", _json({"source": result.source, "size_wh": result.size_wh, "queries": queries})


def _everything(result: Segmentation) -> Files:
    yield "json", _json({"source": result.source, "size_wh": result.size_wh, "queries": entries(result)})


FORMATS: dict[str, Callable[[Segmentation], Files]] = {
    "overlay": _overlay,
    "mask": _masks,
    "coco": _coco,
    "polygons": _polygons,
    "json": _everything,
}
"""Every format that ``write_outputs`` knows, and what makes its files."""


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


def _json(content: dict[str, Any]) -> bytes:
    # A path whose bytes are not UTF-8 holds lone surrogates; written as \udcff they are valid JSON.
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
