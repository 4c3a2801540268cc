"""COCO: instances with polygons and run-length codes, and panoptic maps. LVIS and PACO have the same skeleton.

On disk, any of::

    <root>/annotations/instances_<split>.json       pictures in <root>/<split>/ or <root>/images/<split>/
    <root>/annotations/panoptic_<split>.json        maps in <root>/annotations/panoptic_<split>/
    <root>/<split>/_annotations.coco.json           pictures beside it
    <root>/<anything>.json                          pictures beside it, or in images/

A query reads "the dog", for every dog in the picture, crowds included; the names of other categories are absent,
unless the file says otherwise as LVIS does: there only ``neg_category_ids`` were looked for and not found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.own.records import (
    Annotation,
    Decoded,
    Flaw,
    Listed,
    Parsed,
    Query,
    Record,
    SizeWH,
    as_query,
    as_size,
    exists,
    find_file,
    read_json,
    shown,
)
from self1e.data.own.regions import Polygons, Region, RunLengths, read_map

Id = int | str

_SUFFIX = re.compile(r"(-other)?(-merged|-stuff)?$")
"""What panoptic names end in for reasons of their history: "sky-other-merged" is the sky."""


def read_instances(file: Path, split: str, pictures: Path | None = None) -> Parsed:
    """Read COCO instances.

    Args:
        file: The JSON file.
        split: What to call it.
        pictures: Folder of the pictures, if it is not one of those above.
    """
    coco = _Coco(file, split, pictures)
    # By words, not by category: two categories may have one name.
    regions: dict[Id, dict[str, list[tuple[str, Region]]]] = {key: {} for key in coco.images}
    for where, entry in coco.entries("annotations", "annotation"):
        try:
            image, text = coco.image_of(entry), as_query(coco.names[coco.category_of(entry)])
            coco.noted[image].add(text)  # it is there, even if its region is no use
            regions[image].setdefault(text, []).append((where, _region(entry)))
        except Flaw as flaw:
            coco.parsed.report(flaw, where)

    def annotate(key: Id) -> Annotation:
        return Listed(
            tuple(
                Query(text=text, regions=tuple(parts), where=parts[0][0], tag="category")
                for text, parts in sorted(regions[key].items())
                if parts
            )
        )

    return coco.finish(annotate)


def read_panoptic(file: Path, split: str, pictures: Path | None = None) -> Parsed:
    """Read COCO panoptic segmentation: a map per picture, whose segments have categories.

    Args:
        file: The JSON file.
        split: What to call it.
        pictures: Folder of the pictures, if it is not one of those above.
    """
    coco = _Coco(file, split, pictures)
    coco.names = {key: _SUFFIX.sub("", name) or name for key, name in coco.names.items()}
    maps = _existing([file.parent / file.stem, file.parent, file.parent.parent / file.stem])
    panoptic: dict[Id, PanopticMap] = {}
    seen: set[Id] = set()
    for where, entry in coco.entries("annotations", "annotation"):
        try:
            image = coco.image_of(entry)
            seen.add(image)
            name, infos = entry.get("file_name"), entry.get("segments_info")
            if not isinstance(name, str) or not isinstance(infos, list):
                raise Flaw("bad-record", shown(entry), "file_name and segments_info", "Export it as COCO panoptic.")
            if image in panoptic:
                raise Flaw("bad-record", f"a second map of image {shown(image)}", "one", "Take one out.")
            segments = {}
            for info in infos:
                number: Any = info.get("id") if isinstance(info, dict) else None
                if not _is_id(number) or isinstance(number, str) or number < 1:
                    raise Flaw("bad-record", f"a segment {shown(info)}", "an id from 1 on", "Export it again.")
                if number in segments:
                    raise Flaw(
                        "bad-record", f"segment {shown(number)} twice", "ids that occur once", "Export it again."
                    )
                segments[int(number)] = as_query(coco.names[coco.category_of(info)])
            panoptic[image] = PanopticMap(find_file(maps, name), segments, where)
        except Flaw as flaw:
            coco.parsed.report(flaw, where)
    for image in coco.images:
        if image not in seen:  # in instances it would say that nothing is there; here that nobody has looked
            advice = "Add its map to the annotations, or take the image out."
            coco.parsed.report(Flaw("bad-record", "no annotation", "one with a map", advice), f"image {image}")
    return coco.finish(panoptic.get)


@dataclass(frozen=True, slots=True)
class PanopticMap:
    """A map whose colours are numbers of segments; 0 is nothing."""

    path: Path
    segments: dict[int, str]
    """Query of each."""
    where: str

    def decode(self, size_wh: SizeWH) -> Iterator[Decoded]:
        """Decode query by query, in the order of the words."""
        numbers = read_map(self.path, size_wh, colour=True)
        found = set(np.unique(numbers).tolist()) - {0}
        flaws = []
        if found - set(self.segments):
            number = min(found - set(self.segments))
            advice = "Add its segment, or paint it black."
            flaw = Flaw("unknown-class", f"segment {number} in {self.path.name}", "segments in segments_info", advice)
            flaws.append((self.where, flaw))
        for text in sorted(set(self.segments.values())):
            ids = [number for number, words in self.segments.items() if words == text]
            yield Decoded(
                text=text,
                mask=np.isin(numbers, ids),
                is_absent=False,
                where=self.where,
                tag="category",
                flaws=tuple(flaws),
                empty=tuple(f"{self.where}, segment {number}" for number in ids if number not in found),
            )
            flaws.clear()  # told once
        if flaws:
            raise flaws[0][1]


class _Coco:
    """What instances and panoptic files have in common."""

    def __init__(self, file: Path, split: str, pictures: Path | None) -> None:
        self.parsed = Parsed(split, file)
        self.names: dict[Id, str] = {}
        self.images: dict[Id, dict[str, Any]] = {}
        self.noted: dict[Id, set[str]] = {}
        """Queries of each image that annotations are about, sound or not: none of them is absent."""
        try:
            self._content = read_json(file)
            if not isinstance(self._content, dict):
                raise Flaw("bad-record", f"a {type(self._content).__name__}", "an object", "Export it as COCO.")
        except Flaw as flaw:
            self.parsed.report(Flaw("unreadable-file", flaw.found, flaw.expected, flaw.advice))
            self._content = {"images": [], "annotations": [], "categories": []}
        for where, entry in self.entries("categories", "category"):
            name = entry.get("name")
            if not isinstance(name, str) or not name.strip():
                self._wrong(where, f"name is {shown(name)}", "words")
            elif self._has_new_id(where, entry, self.names):
                self.names[entry["id"]] = name
        for where, entry in self.entries("images", "image"):
            name = entry.get("file_name")
            if not isinstance(name, str) or not name.strip():
                self._wrong(where, f"file_name is {shown(name)}", "a path")
            elif self._has_new_id(where, entry, self.images):
                self.images[entry["id"]] = entry
                self.noted[entry["id"]] = set()
        self._pictures = pictures or self._guess_pictures()

    def entries(self, key: str, singular: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of one of the file's lists, each with its place."""
        listed = self._content.get(key)
        if not isinstance(listed, list):
            self._wrong(key, shown(listed), "a list")
            return
        for number, entry in enumerate(listed):
            name = entry.get("id") if isinstance(entry, dict) else None
            where = f"{singular} {name}" if _is_id(name) else f"{key}[{number}]"
            if isinstance(entry, dict):
                yield where, entry
            else:
                self._wrong(where, shown(entry), "an object")

    def image_of(self, entry: dict[str, Any]) -> Id:
        """Return the image that an annotation belongs to."""
        key = entry.get("image_id")
        if not _is_id(key) or key not in self.images:
            raise Flaw("bad-record", f"image_id {shown(key)}", "the id of one of the images", "Correct it.")
        return key

    def category_of(self, entry: dict[str, Any]) -> Id:
        """Return the category of an annotation or a segment."""
        key = entry.get("category_id")
        if not _is_id(key) or key not in self.names:
            raise Flaw("unknown-class", f"category_id {shown(key)}", "the id of one of the categories", "Correct it.")
        return key

    def finish(self, annotate: Callable[[Id], Annotation | None]) -> Parsed:
        """Make the records, in the order of the file; images of which nothing is known are left out."""
        every = tuple(as_query(name) for name in self.names.values())
        for key, entry in self.images.items():
            annotation = annotate(key)
            if annotation is None:
                continue
            absent = entry.get("neg_category_ids")
            names = every
            if isinstance(absent, list):
                names = tuple(as_query(self.names[i]) for i in absent if _is_id(i) and i in self.names)
            self.parsed.records.append(
                Record(
                    picture=find_file(self._pictures, entry["file_name"]),
                    annotation=annotation,
                    file=self.parsed.file,
                    where=f"image {key}",
                    size_wh=as_size(entry.get("width"), entry.get("height")),
                    names=tuple(name for name in names if name not in self.noted[key]),
                )
            )
        return self.parsed

    def _guess_pictures(self) -> Path:
        file = self.parsed.file
        split = split_name(file)
        root = file.parent.parent if file.parent.name == "annotations" else file.parent
        folders = [root / split, root / "images" / split, root / "images", root, file.parent]
        names = [entry["file_name"] for entry in islice(self.images.values(), 20)]
        best = max(folders, key=lambda folder: sum(exists(find_file(folder, name)) for name in names))
        return best if any(exists(find_file(best, name)) for name in names) else _existing(folders)

    def _has_new_id(self, where: str, entry: dict[str, Any], known: dict[Id, Any]) -> bool:
        key = entry.get("id")
        if not _is_id(key):
            self._wrong(where, f"id is {shown(key)}", "a number or a word")
        elif key in known:
            self._wrong(where, f"a second entry with id {shown(key)}", "ids that occur once")
        else:
            return True
        return False

    def _wrong(self, where: str, found: str, expected: str) -> None:
        self.parsed.report(Flaw("bad-record", found, expected, "Correct it, or export the file again."), where)


def _region(entry: dict[str, Any]) -> Region:
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, dict):
        return RunLengths(segmentation)
    if isinstance(segmentation, list) and segmentation:
        return Polygons(segmentation)
    found = "no segmentation" if not segmentation else f"segmentation {shown(segmentation)}"
    raise Flaw("empty-mask", found, "polygons or a run-length code", "Draw it, or take the annotation out.")


def _is_id(value: Any) -> bool:
    if isinstance(value, float):  # tables make 7.0 of 7, and both are one key of a dict
        return value.is_integer()
    return isinstance(value, int | str) and not isinstance(value, bool)


def _existing(folders: list[Path]) -> Path:
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def split_name(file: Path) -> str:
    """Say what the split of a COCO file is called: ``train2017`` for ``instances_train2017.json``."""
    if file.name.startswith("_annotations"):
        return file.parent.name
    return file.stem.removeprefix("instances_").removeprefix("panoptic_")


def find_coco(folder: Path, prefix: str) -> dict[str, Path]:
    """Return the splits of a folder in the official layout, or in one folder per split."""
    found = sorted((folder / "annotations").glob(f"{prefix}_*.json"))
    if prefix == "instances":
        found += sorted(folder.glob("*/_annotations.coco.json")) + sorted(folder.glob("_annotations.coco.json"))
    return {split_name(file): file for file in found}
