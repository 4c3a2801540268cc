"""COCO instances: photographs, and per category the union of its objects.

On disk, the official layout: ``<root>/<split>/*.jpg`` and ``<root>/annotations/instances_<split>.json``.
A query reads "the dog", for every dog in the picture. Crowd regions count as their category.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from self1e.data.files import read_json
from self1e.data.polygons import decode_segmentation
from self1e.data.sample import Sample, Target

REDISTRIBUTABLE = frozenset({4, 5, 7})
"""Licence ids whose photographs may train weights that are given away: CC BY, CC BY-SA, no known restrictions."""


class CocoCategories(Sequence[Sample]):
    """Sample ``i`` is photograph ``i`` (by id) with one target per category in it."""

    def __init__(self, root: str | Path, split: str = "train2017", *, licences: Collection[int] | None = None) -> None:
        self.root = Path(root)
        self.split = split
        path = self.root / "annotations" / f"instances_{split}.json"
        found = read_json(path, f"the COCO layout, annotations/instances_{split}.json")
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
        source = f"coco/{self.split}/{Path(entry['file_name']).stem}"
        image = Image.open(self.root / self.split / entry["file_name"]).convert("RGB")
        masks: dict[str, np.ndarray] = {}
        for annotation in self.annotations[entry["id"]]:
            name = self.categories[annotation["category_id"]]
            mask = decode_segmentation(annotation["segmentation"], (entry["width"], entry["height"]), source)
            masks[name] = masks[name] | mask if name in masks else mask
        targets = tuple(Target(text=f"the {name}", mask=mask, tag="category") for name, mask in sorted(masks.items()))
        absent = tuple(f"the {name}" for name in self.categories.values() if name not in masks)
        return Sample(
            image=image,
            targets=targets,
            source=source,
            extra={"absent": absent},
        )
