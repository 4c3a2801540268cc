"""Referring expressions: refCOCO, refCOCO+, refCOCOg, refCLEF, and gRefCOCO with several targets or none.

On disk, as published (METHOD section 7.1)::

    <root>/refer_seg/<name>/refs(<split by>).p, instances.json        refcoco, refcoco+, refcocog, refclef
    <root>/refer_seg/grefcoco/grefs(unc).json or .p, instances.json
    <root>/refer_seg/images/mscoco/images/train2014/*.jpg             or any other edition of COCO, see CocoPictures
    <root>/refer_seg/images/saiapr_tc-12/...                          pictures of refclef

One record of refs, and what gRefCOCO's adds::

    {"ref_id": 0, "ann_id": 1719310, "image_id": 581857, "split": "train", "category_id": 1,
     "sentences": [{"sent": "the lady with the blue shirt", "raw": "THE LADY WITH THE BLUE SHIRT", ...}, ...], ...}
    {"ann_id": [1719310, 1720000], "no_target": false, ...} or {"ann_id": [-1], "no_target": true, ...}

Quirks kept, so that numbers compare with published ones: one sample is a picture with every sentence of every
reference to it, lower-cased; of refclef's splits, ``testA`` is every split whose name holds an A, and so on.
Masks are unions; the published sum of overlapping polygons is there on request (``bug_compat``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.files import CocoPictures, read_json, read_rgb
from self1e.data.pickles import read_plain_pickle
from self1e.data.polygons import compact_segmentation, count_segmentation, decode_segmentation
from self1e.data.sample import Outline, Sample, Target
from self1e.errors import DatasetError, did_you_mean

SPLIT_BY = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd", "refclef": "unc", "grefcoco": "unc"}
"""The data sets, and whose division into splits is published with; refcocog also has ``google``'s."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An object, or several, or none, and what people called it."""

    annotation_ids: tuple[int, ...]
    """Empty if nothing in the picture is meant."""
    image_id: int
    split: str
    sentences: tuple[str, ...]
    """Stripped and lower-cased."""


@dataclass(frozen=True, kw_only=True)
class _Index:
    references: tuple[Reference, ...]
    images: dict[int, tuple[str, tuple[int, int]]]  # file name, (width, height)
    segmentations: dict[int, Any]
    crowds: frozenset[int]


class Referring(Sequence[Sample]):
    """Sample ``i`` is picture ``i`` by id, of those that the split refers to; its targets are the sentences, in order.

    A target's ``tag`` is ``one``, ``several`` or ``none``: how many objects are meant.
    """

    def __init__(
        self,
        root: str | Path,
        name: str = "refcoco",
        split: str = "train",
        *,
        split_by: str | None = None,
        bug_compat: bool = False,
        crowds: bool = True,
    ) -> None:
        """Read references and annotations; the splits of one data set share them.

        Args:
            root: Holds ``refer_seg/``.
            name: One of `SPLIT_BY`.
            split: ``train``, ``val``, ``test``, ``testA``, ``testB``, ``testC``: what the data set has.
            split_by: Whose division; None for the published one.
            bug_compat: Masks as the published evaluation has them: uint8, the number of polygons of the object that
                cover a pixel. A 2 is neither object nor background there. gRefCOCO's are unions all the same.
            crowds: Take regions marked ``iscrowd`` as targets, as the published loaders do; gRefCOCO's official
                evaluation leaves them out (METRICS 2.1). A phrase that means nothing else then has an empty mask and
                still counts as one with a target.

        Raises:
            DatasetError: A file is missing or malformed, or the split is empty.
        """
        if name not in SPLIT_BY:
            raise DatasetError(
                f"Unknown data set {name!r}.{did_you_mean(name, SPLIT_BY)} Known: {', '.join(SPLIT_BY)}."
            )
        self.name, self.split, self.split_by = name, split, split_by or SPLIT_BY[name]
        self.bug_compat = bug_compat and name != "grefcoco"
        self.crowds = crowds
        folder = Path(root) / "refer_seg" / name
        references_path, instances_path = _references_path(folder, self.split_by), folder / "instances.json"
        index = _read_index(references_path, instances_path, _changed(references_path), _changed(instances_path))
        self._index = index
        self.references: dict[int, list[Reference]] = {}
        for reference in index.references:
            if _is_in_split(reference.split, split, exact=name == "grefcoco"):
                self.references.setdefault(reference.image_id, []).append(reference)
        self.image_ids = sorted(self.references)
        if not self.image_ids:
            known = sorted({reference.split for reference in index.references})
            raise DatasetError(f"{references_path} has no split {split!r}; it has {', '.join(known)}.")
        images = Path(root) / "refer_seg" / "images"
        self._saiapr = images / "saiapr_tc-12" if name == "refclef" else None
        self._pictures = CocoPictures(root, images / "mscoco" / "images" / "train2014")

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        source, targets = self.targets(index)
        file_name, size_wh = self._index.images[self.image_ids[index]]
        image = read_rgb(self._find(file_name, source), source, size_wh)
        return Sample(image=image, targets=targets, source=source)

    def targets(self, index: int) -> tuple[str, tuple[Target, ...]]:
        """Name of a sample and its targets, which need no picture: its size stands in the annotations."""
        image_id = self.image_ids[index]
        source = f"{self.name}({self.split_by})/{self.split}/{image_id}"
        _, size_wh = self._index.images[image_id]
        targets = []
        for reference in self.references[image_id]:
            mask = self._mask(reference, size_wh, source)
            tag = ("none", "one")[len(reference.annotation_ids)] if len(reference.annotation_ids) < 2 else "several"
            targets += [Target(text=sentence, mask=mask, tag=tag) for sentence in reference.sentences]
        return source, tuple(targets)

    def missing_pictures(self) -> list[str]:
        """Names of the pictures that are in none of the folders."""
        missing = []
        for image_id in self.image_ids:
            file_name, _ = self._index.images[image_id]
            try:
                if not self._find(file_name, self.name).is_file():
                    missing.append(file_name)
            except DatasetError:
                missing.append(file_name)
        return missing

    def _find(self, file_name: str, source: str) -> Path:
        return self._saiapr / file_name if self._saiapr is not None else self._pictures.find(file_name, source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        image_id = self.image_ids[index]
        letters = max(len(text) for reference in self.references[image_id] for text in reference.sentences)
        return Outline(letters=letters, has_mask=True, size_wh=self._index.images[image_id][1])

    def _mask(self, reference: Reference, size_wh: tuple[int, int], source: str) -> np.ndarray:
        found = [
            self._index.segmentations[number]
            for number in reference.annotation_ids
            if self.crowds or number not in self._index.crowds
        ]
        if self.bug_compat:
            return sum((count_segmentation(each, size_wh, source) for each in found), np.zeros(size_wh[::-1], np.uint8))
        mask = np.zeros(size_wh[::-1], dtype=bool)
        for segmentation in found:
            mask |= decode_segmentation(segmentation, size_wh, source)
        return mask


def _is_in_split(found: str, wanted: str, *, exact: bool) -> bool:
    """Say whether a reference's split belongs to the wanted one (METHOD section 7.2)."""
    if exact or not wanted.startswith("test"):
        return found == wanted
    if wanted == "test":
        return "test" in found
    return wanted.removeprefix("test") in found


def _references_path(folder: Path, split_by: str) -> Path:
    """Choose gRefCOCO's JSON before its pickle: it is the same data, and harmless."""
    if folder.name != "grefcoco":
        return folder / f"refs({split_by}).p"
    as_json = folder / f"grefs({split_by}).json"
    as_pickle = as_json.with_suffix(".p")
    return as_pickle if as_pickle.is_file() and not as_json.is_file() else as_json


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@lru_cache(maxsize=8)
def _read_index(references_path: Path, instances_path: Path, *changed: int) -> _Index:
    """Join both files and keep what is referred to; ``changed`` are their times of change, for the cache alone."""
    expected = f"the references of {references_path.parent.name} (refer's or gRefCOCO's download, unpacked)"
    read = read_json if references_path.suffix == ".json" else read_plain_pickle
    references = _parse(references_path, expected, read(references_path, expected))
    expected = f"the annotations that come with {references_path.name}, in COCO's form"
    instances = read_json(instances_path, expected)
    try:
        images = {
            int(image["id"]): (str(image["file_name"]), (int(image["width"]), int(image["height"])))
            for image in instances["images"]
        }
        wanted = {number for reference in references for number in reference.annotation_ids}
        segmentations = {
            int(annotation["id"]): compact_segmentation(annotation["segmentation"])
            for annotation in instances["annotations"]
            if int(annotation["id"]) in wanted
        }
        crowds = frozenset(
            int(annotation["id"]) for annotation in instances["annotations"] if annotation.get("iscrowd", 0)
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{instances_path} is malformed at {error!r}; expected {expected}.") from error
    _check(references, images, segmentations, references_path, instances_path)
    return _Index(references=references, images=images, segmentations=segmentations, crowds=crowds)


def _parse(path: Path, expected: str, records: Any) -> tuple[Reference, ...]:
    try:
        return tuple(
            Reference(
                annotation_ids=_annotation_ids(record["ann_id"]),
                image_id=int(record["image_id"]),
                split=str(record["split"]),
                sentences=tuple(str(sentence["sent"]).strip().lower() for sentence in record["sentences"]),
            )
            for record in records
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path} is malformed at {error!r}; expected {expected}: a list of records with ann_id, image_id, split "
            "and sentences."
        ) from error


def _annotation_ids(found: Any) -> tuple[int, ...]:
    """Read one id or several; -1 says that nothing is meant."""
    numbers = found if isinstance(found, list | tuple) else [found]
    return tuple(int(number) for number in numbers if int(number) != -1)


def _check(
    references: Iterable[Reference],
    images: Mapping[int, Any],
    segmentations: Mapping[int, Any],
    references_path: Path,
    instances_path: Path,
) -> None:
    for reference in references:
        missing = [f"annotation {number}" for number in reference.annotation_ids if number not in segmentations]
        if reference.image_id not in images:
            missing.insert(0, f"picture {reference.image_id}")
        if missing:
            raise DatasetError(
                f"{references_path} refers to {', '.join(missing)}, which {instances_path} lacks; the two files must "
                "come from one download."
            )
