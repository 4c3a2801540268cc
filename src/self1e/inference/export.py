"""A result as files: pictures for people, JSON for programs.

====================== ============================= ======================================================
format                 file                          content
====================== ============================= ======================================================
overlay                STEM.overlay.png              the picture with masks, contours and legend
mask                   STEM.mask0.png, ...           one per query in their order: 8-bit grey, 0 and 255
cutout                 STEM.cutout0.png, ...         the picture, all but the mask transparent: RGBA, same size;
                                                     none for what is not there
indexed                STEM.indexed.png, .classes.txt all masks in one map: 0 nothing, k + 1 query k
json                   STEM.json                     everything: query, text, score, area, box, is_empty, RLE
polygons               STEM.polygons.json            exteriors and holes on pixel edges; their even-odd fill is
                                                     the mask exactly
rle                    STEM.rle.json                 COCO's compressed code per query, with query and score
rle-uncompressed       STEM.rle-uncompressed.json    the same with counts as numbers
coco                   STEM.coco.json                COCO's images, annotations (RLE, box, area, score) and
                                                     categories, one per different query
coco-results           STEM.coco-results.json        a COCO result file with the same ids
yolo                   STEM.yolo.txt, STEM.yolo.yaml lines "class x y ..." in parts of the sides, and the names
label-studio           STEM.label-studio.json        a task to import, predictions as brush strokes (exact)
label-studio-polygons  STEM.label-studio-polygons.json  the same with polygons
====================== ============================= ======================================================

A run over a folder also writes one file for all pictures in the formats that have such a thing; see
``self1e.inference.exports.combined``.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.errors import SettingError, did_you_mean
from self1e.files import atomic_write_all
from self1e.inference.exports.coco import coco_instances, coco_results, uncompressed
from self1e.inference.exports.label_studio import label_studio_task
from self1e.inference.exports.layers import layers_png
from self1e.inference.exports.records import entries, numbered
from self1e.inference.exports.yolo import yolo_lines, yolo_names
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
    yield "overlay.png", as_png(result.overlay())


def _masks(result: Segmentation) -> Files:
    for k in range(len(result)):
        yield f"mask{k}.png", as_png(mask_image(result.mask(k)))


def _cutouts(result: Segmentation) -> Files:
    for k in np.flatnonzero(~result.is_empty).tolist():
        yield f"cutout{k}.png", as_png(result.cutout(k))


def _indexed(result: Segmentation) -> Files:
    yield "indexed.png", layers_png(result)
    yield "classes.txt", write_indexed_classes(tuple(numbered(result.queries)))


def _coco(result: Segmentation) -> Files:
    yield "coco.json", as_json(coco_instances(result))


def _coco_results(result: Segmentation) -> Files:
    yield "coco-results.json", as_json(coco_results(coco_instances(result)))


def _rle(result: Segmentation) -> Files:
    yield "rle.json", as_json(_codes(result, result.to_coco_rle()))


def _rle_uncompressed(result: Segmentation) -> Files:
    yield "rle-uncompressed.json", as_json(_codes(result, [uncompressed(rle) for rle in result.to_coco_rle()]))


def _codes(result: Segmentation, rles: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"query": query, "score": round(float(score), 6)} | rle
        for query, score, rle in zip(result.queries, result.scores, rles, strict=True)
    ]


def _yolo(result: Segmentation) -> Files:
    yield "yolo.txt", yolo_lines(result).encode()
    yield "yolo.yaml", yolo_names(numbered(result.queries)).encode()


def _label_studio(result: Segmentation) -> Files:
    yield "label-studio.json", as_json([label_studio_task(result)])


def _label_studio_polygons(result: Segmentation) -> Files:
    yield "label-studio-polygons.json", as_json([label_studio_task(result, "polygon")])


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
    yield "polygons.json", as_json({"source": result.source, "size_wh": result.size_wh, "queries": queries})


def _everything(result: Segmentation) -> Files:
    yield "json", as_json({"source": result.source, "size_wh": result.size_wh, "queries": entries(result)})


FORMATS: dict[str, Callable[[Segmentation], Files]] = {
    "overlay": _overlay,
    "mask": _masks,
    "coco": _coco,
    "polygons": _polygons,
    "json": _everything,
    "cutout": _cutouts,
    "indexed": _indexed,
    "rle": _rle,
    "rle-uncompressed": _rle_uncompressed,
    "coco-results": _coco_results,
    "yolo": _yolo,
    "label-studio": _label_studio,
    "label-studio-polygons": _label_studio_polygons,
}
"""Every format that ``write_outputs`` knows, and what makes its files."""

DRAWN = re.compile(r"\.(overlay|mask\d+|cutout\d+|indexed|semantic|legend|semantic\.overlay)\.png$", re.IGNORECASE)
"""Names that are given to pictures: a second run should not segment what the first one drew."""


def write_indexed_classes(classes: Sequence[str]) -> bytes:
    """Write the list that says what the numbers of an indexed map mean: ``classes.txt``."""
    names = ["background", *(" ".join(name.split()) for name in classes)]
    return "".join(f"{number} {name}\n" for number, name in enumerate(names)).encode("utf-8", "backslashreplace")


def as_json(content: Any) -> bytes:
    """Write a line of JSON."""
    # A path whose bytes are not UTF-8 holds lone surrogates; written as \udcff they are valid JSON.
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def as_png(image: Image.Image) -> bytes:
    """Write a PNG."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
