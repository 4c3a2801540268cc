"""Twenty small pictures with words and masks, written as a person's own data would be: to try every command on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.sample import Sample, Target
from self1e.data.scenes import Scenes
from self1e.errors import SettingError
from self1e.outlines import trace_polygons
from self1e.structures import encode_mask, mask_image

SIZES_WH = ((160, 160), (192, 144), (144, 192))
SEED = 20
_QUERIES = 3


def write_example(folder: str | Path, *, pictures: int = 20) -> Path:
    """Draw scenes and write them as JSON lines: masks are PNG files, polygons and run-length codes in turn.

    A query that means nothing in its picture has the mask ``null``.

    Args:
        folder: Must not exist, or be empty.
        pictures: How many, at least 1; picture ``i`` does not depend on it.

    Returns:
        The file of annotations, ``folder/train.jsonl``.

    Raises:
        SettingError: The folder holds something, or there would be no picture.
    """
    folder = Path(folder)
    if pictures < 1:
        raise SettingError(f"pictures={pictures} must be at least 1.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingError(f"{folder} is not an empty folder; name one that does not exist yet.")
    scenes = Scenes("test", size_wh=SIZES_WH, length=pictures, seed=SEED)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    lines = [json.dumps(_record(scenes[number], number, folder)) for number in range(pictures)]
    file = folder / "train.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return file


def _record(sample: Sample, number: int, folder: Path) -> dict[str, Any]:
    image = f"images/{number:02d}.png"
    sample.image.save(folder / image)
    queries = [
        {"query": target.text, "mask": _mask(target, number, place, folder)}
        for place, target in enumerate(_once(sample.targets)[:_QUERIES])
    ]
    return {"image": image, "queries": queries}


def _once(targets: Sequence[Target]) -> list[Target]:
    """Leave out what would ask the same words again."""
    return list({target.text.casefold(): target for target in reversed(targets)}.values())[::-1]


def _mask(target: Target, number: int, place: int, folder: Path) -> Any:
    """Write a mask in one of the notations; those with holes are no polygons."""
    if not target.mask.any():
        return None
    polygons = trace_polygons(target.mask)
    notation = (number + place) % 3
    if notation == 0 and not any(polygon["holes"] for polygon in polygons):
        return [np.asarray(polygon["exterior"]).ravel().tolist() for polygon in polygons]
    if notation == 1:
        code = encode_mask(target.mask)
        return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
    name = f"masks/{number:02d}-{place}.png"
    mask_image(target.mask).save(folder / name)
    return name
