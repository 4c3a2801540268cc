"""COCO instances: photographs, and per category the union of its objects.

On disk, the official layout: ``<root>/<split>/*.jpg`` and ``<root>/annotations/instances_<split>.json``.
A query reads "the dog", for every dog in the picture. Crowd regions count as their category.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from self1e.data.sample import Sample, Target
from self1e.errors import DatasetError
from self1e.structures import decode_rle

REDISTRIBUTABLE = frozenset({4, 5, 7})
"""Licence ids whose photographs may train weights that are given away: CC BY, CC BY-SA, no known restrictions."""


class CocoCategories(Sequence[Sample]):
    """Sample ``i`` is photograph ``i`` (by id) with one target per category in it."""

    def __init__(self, root: str | Path, split: str = "train2017", *, licences: Collection[int] | None = None) -> None:
        self.root = Path(root)
        self.split = split
        path = self.root / "annotations" / f"instances_{split}.json"
        if not path.is_file():
            raise DatasetError(f"No {path}; expected the COCO layout, annotations/instances_{split}.json.")
        found = json.loads(path.read_text("utf-8"))
        self.categories = {int(category["id"]): str(category["name"]) for category in found["categories"]}
        images = [image for image in found["images"] if licences is None or image["license"] in licences]
        self.images = sorted(images, key=lambda image: image["id"])
        self.annotations: dict[int, list[dict]] = {image["id"]: [] for image in self.images}
        for annotation in found["annotations"]:
            if annotation["image_id"] in self.annotations:
                self.annotations[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        entry = self.images[index]
        image = Image.open(self.root / self.split / entry["file_name"]).convert("RGB")
        masks: dict[str, np.ndarray] = {}
        for annotation in self.annotations[entry["id"]]:
            name = self.categories[annotation["category_id"]]
            mask = _decode(annotation["segmentation"], entry["height"], entry["width"])
            masks[name] = masks[name] | mask if name in masks else mask
        targets = tuple(Target(text=f"the {name}", mask=mask, tag="category") for name, mask in sorted(masks.items()))
        absent = tuple(f"the {name}" for name in self.categories.values() if name not in masks)
        return Sample(
            image=image,
            targets=targets,
            source=f"coco/{self.split}/{Path(entry['file_name']).stem}",
            extra={"absent": absent},
        )


def _decode(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Decode polygons or RLE of any kind to one bool mask: the union, as METHOD 7.1 asks."""
    codec: Any = rle_codec  # its stubs know less than it accepts
    if isinstance(segmentation, list):
        return decode_rle(codec.merge(codec.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return decode_rle(codec.frPyObjects(segmentation, height, width))
    counts = segmentation["counts"]
    return decode_rle({**segmentation, "counts": counts.encode() if isinstance(counts, str) else counts})
