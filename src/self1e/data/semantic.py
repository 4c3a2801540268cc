"""Things, stuff and parts by name: ADE20K, COCO-Stuff, PACO-LVIS, PASCAL-Part.

On disk, as published (METHOD section 7.1)::

    <root>/ade20k/images/training/*.jpg          <root>/ade20k/annotations/training/*.png   0 = none, v = class v - 1
    <root>/coco/train2017/*.jpg                  <root>/cocostuff/train2017/*.png           v = class v, 255 = none
    <root>/vlpart/paco/annotations/paco_lvis_v1_train.json                                  pictures of coco/
    <root>/vlpart/pascal_part/train.json, VOCdevkit/VOC2010/JPEGImages/*.jpg

One record of a parts file, in COCO's form::

    {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[5, 5, 20, 5, 20, 18]], ...}
    category 2 is "mouse_(computer_equipment):body", an object and its part

Quirks kept, because released weights have learnt them:

* names are bare ("tv", "building"), and underscores stay in them ("trash_can");
* COCO-Stuff's classes with a hyphen ("wall-brick", "floor-other") are nothing at all;
* a class is one mask, but a part is one mask per instance: two dogs have two targets "dog ear";
* a part goes by two names, "mouse body" and "the body of the mouse": one is the text, one an alias.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.absence import surely_absent
from self1e.data.class_names import ADE20K, COCO_STUFF
from self1e.data.files import CocoPictures, read_json, read_label_map, read_rgb, read_size
from self1e.data.polygons import compact_segmentation, decode_segmentation
from self1e.data.sample import Outline, Sample, Target
from self1e.errors import DatasetError

_NAME_LETTERS = 10
"""Of the longest of three class names, about."""


class Ade20k(Sequence[Sample]):
    """Sample ``i`` is picture ``i`` by name, with one target per class in it, by class number.

    Each sample's ``extra`` holds ``absent``: names of classes that are surely not there (`surely_absent`).
    """

    def __init__(self, root: str | Path, split: str = "training", classes: Sequence[str] = ADE20K) -> None:
        """Find the pictures.

        Args:
            root: Holds ``ade20k/``.
            split: ``training`` or ``validation``.
            classes: Names by class number, the first for pixel value 1.

        Raises:
            DatasetError: No picture is there.
        """
        self.root, self.split = Path(root) / "ade20k", split
        folder = self.root / "images" / split
        self.names = sorted(path.stem for path in folder.glob("*.jpg"))
        if not self.names:
            raise DatasetError(
                f"No *.jpg in {folder}; expected ADE20K's scene parsing benchmark (ADEChallengeData2016), its "
                "images/ and annotations/ in ade20k/."
            )
        self.classes = {value: name for value, name in enumerate(classes, start=1)}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        name = self.names[index]
        source = f"ade20k/{self.split}/{name}"
        path = self.root / "annotations" / self.split / f"{name}.png"
        return _label_sample(self._picture(name), path, self.classes, {0: None}, source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        name = self.names[index]
        return _label_outline(self._picture(name) if with_size else None, f"ade20k/{self.split}/{name}")

    def _picture(self, name: str) -> Path:
        return self.root / "images" / self.split / f"{name}.jpg"


class CocoStuff(Sequence[Sample]):
    """Sample ``i`` is class map ``i`` by name, with one target per class in it, by class number.

    Each sample's ``extra`` holds ``absent``: names of classes that are surely not there (`surely_absent`).
    """

    def __init__(self, root: str | Path, split: str = "train2017", classes: Sequence[str] = COCO_STUFF) -> None:
        """Find the class maps.

        Args:
            root: Holds ``cocostuff/`` and ``coco/``.
            split: Its folder's name.
            classes: Names by pixel value, from 0 on; those with a hyphen are left out.

        Raises:
            DatasetError: No class map is there.
        """
        self.folder, self.split = Path(root) / "cocostuff" / split, split
        self.names = sorted(path.stem for path in self.folder.glob("*.png"))
        if not self.names:
            raise DatasetError(
                f"No *.png in {self.folder}; expected COCO-Stuff's stuffthingmaps_trainval2017.zip, unpacked into "
                "cocostuff/."
            )
        self.pictures = CocoPictures(root, Path(root) / "coco" / split)
        self.classes = {value: name for value, name in enumerate(classes) if "-" not in name}
        self._unnamed = {255: None} | {value: name for value, name in enumerate(classes) if "-" in name}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        name = self.names[index]
        source = f"cocostuff/{self.split}/{name}"
        picture = self.pictures.find(f"{name}.jpg", source)
        return _label_sample(picture, self.folder / f"{name}.png", self.classes, self._unnamed, source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        name = self.names[index]
        source = f"cocostuff/{self.split}/{name}"
        return _label_outline(self.pictures.find(f"{name}.jpg", source) if with_size else None, source)


def _label_outline(picture: Path | None, source: str) -> Outline:
    """Outline a picture whose classes only its map knows; their names hardly differ in length."""
    size_wh = None if picture is None else read_size(picture, source)
    return Outline(letters=_NAME_LETTERS, has_mask=True, size_wh=size_wh)


def _label_sample(
    picture: Path, label_map: Path, classes: Mapping[int, str], unnamed: Mapping[int, str | None], source: str
) -> Sample:
    """Read a picture and its class map; ``unnamed`` are the values that are not asked for, None is no class at all."""
    image = read_rgb(picture, source)
    labels = read_label_map(label_map, source, image.size)
    values, pixels = (found.tolist() for found in np.unique(labels, return_counts=True))
    present = set(values) - unnamed.keys()
    if unknown := present - classes.keys():
        raise DatasetError(
            f"{source}: {label_map} holds the numbers {sorted(unknown)}, expected {min(classes)} to {max(classes)}; "
            "this is another edition of the class maps."
        )
    targets = [Target(text=classes[value], mask=labels == value, tag="class") for value in sorted(present)]
    unknown_share = (
        sum(count for value, count in zip(values, pixels, strict=True) if unnamed.get(value, "") is None) / labels.size
    )
    hidden = {name for value in values if (name := unnamed.get(value)) is not None}
    absent = surely_absent(classes.values(), {*(classes[value] for value in present), *hidden}, unknown_share)
    return Sample(image=image, targets=tuple(targets), source=source, extra={"absent": absent})


class _Parts(Sequence[Sample]):
    """Sample ``i`` is picture ``i`` by id, of those with annotations; one target per annotation, as in the file."""

    name: str

    def __init__(self, annotations: Path, expected: str) -> None:
        stat = annotations.stat() if annotations.is_file() else None
        if stat is None:
            raise DatasetError(f"No file {annotations}; expected {expected}.")
        self.images, self.annotations, self.categories = _read_parts(annotations, expected, stat.st_mtime_ns)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        image_id, file_name, size_wh = self.images[index]
        source = f"{self.name}/{image_id}"
        image = read_rgb(self._find(file_name, source), source, size_wh)
        targets = []
        for category, segmentation in self.annotations[image_id]:
            text, *aliases = self.categories[category]
            mask = decode_segmentation(segmentation, size_wh, source)
            targets.append(Target(text=text, mask=mask, tag="instance", aliases=tuple(aliases)))
        return Sample(image=image, targets=tuple(targets), source=source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        image_id, _, size_wh = self.images[index]
        letters = max(len(name) for category, _ in self.annotations[image_id] for name in self.categories[category])
        return Outline(letters=letters, has_mask=True, size_wh=size_wh)

    @abstractmethod
    def _find(self, file_name: str, source: str) -> Path:
        """Say where a picture is."""


class PacoLvis(_Parts):
    """PACO-LVIS: objects and their parts, instance by instance, in pictures of COCO."""

    name = "paco_lvis"

    def __init__(self, root: str | Path) -> None:
        """Read the annotations: a gigabyte of JSON, minutes and several gigabytes of memory the first time.

        Args:
            root: Holds ``vlpart/paco/`` and ``coco/``.

        Raises:
            DatasetError: The annotations are missing or malformed.
        """
        path = Path(root) / "vlpart" / "paco" / "annotations" / "paco_lvis_v1_train.json"
        super().__init__(path, "PACO-LVIS's annotations (paco_annotations_v1.zip)")
        self.pictures = CocoPictures(root)

    def _find(self, file_name: str, source: str) -> Path:
        return self.pictures.find(file_name, source)


class PascalPart(_Parts):
    """PASCAL-Part: parts of animals, people and vehicles, instance by instance."""

    name = "pascal_part"

    def __init__(self, root: str | Path) -> None:
        """Read the annotations.

        Args:
            root: Holds ``vlpart/pascal_part/``.

        Raises:
            DatasetError: The annotations are missing or malformed.
        """
        self.root = Path(root) / "vlpart" / "pascal_part"
        super().__init__(self.root / "train.json", "PASCAL-Part in COCO's form, as VLPart gives it")

    def _find(self, file_name: str, source: str) -> Path:
        return self.root / "VOCdevkit" / "VOC2010" / "JPEGImages" / file_name


@lru_cache(maxsize=4)
def _read_parts(path: Path, expected: str, changed: int) -> tuple[list, dict[int, list], dict[int, tuple[str, ...]]]:
    """Read a parts file and keep what is needed; ``changed`` is its time of change, for the cache alone."""
    found = read_json(path, expected)
    try:
        categories = {int(category["id"]): part_names(category["name"]) for category in found["categories"]}
        annotations: dict[int, list[tuple[int, Any]]] = {}
        for annotation in found["annotations"]:
            kept = (int(annotation["category_id"]), compact_segmentation(annotation["segmentation"]))
            annotations.setdefault(int(annotation["image_id"]), []).append(kept)
        images = [
            (int(image["id"]), str(image["file_name"]), (int(image["width"]), int(image["height"])))
            for image in found["images"]
            if int(image["id"]) in annotations
        ]
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"{path} lacks {error}; expected {expected}: images, annotations and categories in COCO's form."
        ) from error
    unknown = {category for kept in annotations.values() for category, _ in kept} - categories.keys()
    if unknown or not images:
        raise DatasetError(
            f"{path} holds {len(images)} pictures with annotations and uses the unknown categories {sorted(unknown)}; "
            f"expected {expected}, whole."
        )
    return sorted(images), annotations, categories


def part_names(name: str) -> tuple[str, ...]:
    """Turn a category of PACO or PASCAL-Part into the words for it.

    ``"trash_can"`` gives ``("trash_can",)``, ``"mouse_(computer_equipment):body"`` gives ``("mouse body", "the body
    of the mouse")``.
    """
    thing, *part = (piece.split("_(")[0].strip() for piece in name.split(":"))
    return (thing,) if not part else (f"{thing} {part[0]}", f"the {part[0]} of the {thing}")
