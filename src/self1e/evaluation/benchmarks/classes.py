"""Benchmarks of class maps: every class is asked about every picture, the highest logit per pixel wins (METRICS 4).

On disk, under the folder of all data (``dataset/`` or what holds it)::

    ade20k/images/validation/*.jpg         ade20k/annotations/validation/*.png           0 none, k = class k - 1
    VOCdevkit/VOC2010/JPEGImages/*.jpg     VOCdevkit/VOC2010/annotations_detectron2/pc59_val/*.png     255 ignored
                                           VOCdevkit/VOC2010/annotations_detectron2/pc459_val/*.tif    65535 ignored
    VOCdevkit/VOC2012/JPEGImages/*.jpg     VOCdevkit/VOC2012/SegmentationClass/*.png     0 none, k = class k - 1
                                           VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt
    camvid/images/*.jpg, masks/*.png, val.txt, classes.txt                               11 ignored

The two Pascal Context sets are read as the public preparation scripts for detectron2 write them, labels mapped
already. There is no background query. Class names are asked as the lists have them, in the phrase prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.data.class_names import CAMVID
from self1e.data.files import read_label_map, read_rgb
from self1e.data.published import find_layout
from self1e.errors import DatasetError
from self1e.evaluation.benchmarks.interface import Benchmark, Opened, Options, hash_files
from self1e.evaluation.benchmarks.masks import PROMPT, need_folder, summarise
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.metrics.semantic import LABEL_SETS, LabelSet, SemanticIoU, label_map
from self1e.evaluation.protocols import EXPECTED_SAMPLES, protocol
from self1e.evaluation.saved_masks import encode_map
from self1e.inference.semantic import class_logits

CAMVID_SET = LabelSet(name="camvid", classes=CAMVID, ignore=11)
"""Street scenes; no benchmark of the paper, but real pictures of another domain."""

_KNOWN = {**LABEL_SETS, "camvid": CAMVID_SET}


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with its class map."""

    source: str
    image: Image.Image
    labels: np.ndarray
    """0..C-1 and the set's ``ignore``, ``(H, W)``."""


class ClassMaps(Sequence[LabelledPicture]):
    """Unit ``i`` is picture ``i`` by name.

    Args:
        labels: Its classes.
        split: Names the pictures in messages.
        files: Picture and class map of each, by name.
        is_mapped: Class maps hold labels already; otherwise 0 is unlabelled and ``k`` is class ``k - 1``.
    """

    def __init__(self, labels: LabelSet, split: str, files: dict[str, tuple[Path, Path]], *, is_mapped: bool) -> None:
        self.label_set, self.split, self.files, self.is_mapped = labels, split, files, is_mapped
        self.names = sorted(files)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledPicture:  # type: ignore[override]  # no slices
        source = self.source(index)
        image = read_rgb(self.files[self.names[index]][0], source)
        return LabelledPicture(source, image, self.labels(index, image.size))

    def source(self, index: int) -> str:
        """Name of a unit."""
        return f"{self.label_set.name}/{self.split}/{self.names[index]}"

    def labels(self, index: int, size_wh: tuple[int, int] | None = None) -> np.ndarray:
        """Read a class map; its picture is not needed.

        Raises:
            DatasetError: It is missing, or holds other classes.
        """
        path = self.files[self.names[index]][1]
        if size_wh is None:
            with Image.open(path) as opened:
                size_wh = opened.size
        stored = read_label_map(path, self.source(index), size_wh)
        if stored.dtype.kind not in "ui" or (stored.size and not 0 <= int(stored.min()) <= int(stored.max()) < 2**16):
            raise DatasetError(
                f"{self.source(index)}: {path} holds {stored.dtype} from {stored.min()} to {stored.max()}, expected "
                "whole numbers of at most 16 bits: it is no class map of this set."
            )
        stored = stored.astype(np.uint16) if stored.dtype.kind == "i" or self.label_set.ignore > 255 else stored
        if not self.is_mapped:
            return self.label_set.from_stored(stored)
        count, ignore = len(self.label_set.classes), self.label_set.ignore
        wrong = sorted(set(np.unique(stored).tolist()) - {ignore, *range(count)})
        if wrong:
            raise DatasetError(
                f"{self.source(index)}: {path} holds the labels {wrong[:5]}, expected 0 to {count - 1} or {ignore}: "
                "it belongs to another class list."
            )
        return stored.astype(self.label_set.dtype)

    def missing(self) -> list[str]:
        """Paths of files that are not there."""
        return [str(path) for name in self.names for path in self.files[name] if not path.is_file()]


def measure_classes(model: Any, unit: LabelledPicture, options: Options, labels: LabelSet) -> list[Row]:
    """Ask for every class, on one encoding; one row."""
    encoded = model.encode(unit.image, exact=options.exact)
    logits = class_logits(model, encoded, labels.classes, exact=options.exact)
    found = label_map(logits, unit.image.size, len(labels.classes))
    row = SemanticIoU(labels.classes, ignore=labels.ignore).update(unit.source, found, unit.labels)
    return [row | {"map": encode_map(found)} if options.save_masks else row]


def failed_classes(opened: Opened, index: int, labels: LabelSet) -> list[Row]:
    """The row of a picture that cannot be read: every pixel of its truth is missed."""
    units: Any = opened.units
    try:
        truth = units.labels(index)
    except Exception:  # not even that: nothing is known that could be missed
        truth = np.full((1, 1), labels.ignore, dtype=labels.dtype)
    return [SemanticIoU(labels.classes, ignore=labels.ignore).update(units.source(index), None, truth)]


def classes_benchmark(name: str, find: Callable[[Path], dict[str, tuple[Path, Path]]], *, is_mapped: bool) -> Benchmark:
    """Make a benchmark of class maps; ``find`` lists its files under the root."""
    which, split = name.split("/")
    labels = _KNOWN[which]
    chosen = f"ovs.d2/{which}"
    protocol(chosen)

    def opener(data: Path | None) -> Opened:
        units = ClassMaps(labels, split, find(find_layout(need_folder(data, name)).root), is_mapped=is_mapped)
        maps = [path for _, path in units.files.values() if path.is_file()]
        return Opened(units=units, annotations=hash_files(maps), problems=summarise(units.missing()))

    return Benchmark(
        name=name,
        protocols=(chosen,),
        prompt=f"{PROMPT}/phrase, {len(labels.classes)} names",
        open=opener,
        measure=partial(measure_classes, labels=labels),
        failed=partial(failed_classes, labels=labels),
        expected=EXPECTED_SAMPLES.get(name),
        answers=("teacher-forced",),  # a class that the model does not want to show still needs a logit
    )


# ---------------------------------------------------------------------- where files are


def ade20k(root: Path) -> dict[str, tuple[Path, Path]]:
    """ADE20K's validation pictures."""
    folder = root / "ade20k"
    maps = _listed(folder / "annotations" / "validation", "*.png", "ADEChallengeData2016, its folders in ade20k/")
    return {path.stem: (folder / "images" / "validation" / f"{path.stem}.jpg", path) for path in maps}


def pascal_context(root: Path, maps: str, pattern: str) -> dict[str, tuple[Path, Path]]:
    """Pascal Context's validation pictures."""
    folder = root / "VOCdevkit" / "VOC2010"
    wanted = "Pascal Context as its public preparation for detectron2 writes it, beside VOC 2010's JPEGImages"
    found = _listed(folder / "annotations_detectron2" / maps, pattern, wanted)
    return {path.stem: (folder / "JPEGImages" / f"{path.stem}.jpg", path) for path in found}


def pascal_voc(root: Path) -> dict[str, tuple[Path, Path]]:
    """VOC 2012's validation pictures."""
    folder = root / "VOCdevkit" / "VOC2012"
    names = _names(folder / "ImageSets" / "Segmentation" / "val.txt", "VOC 2012's VOCtrainval, unpacked")
    return {
        name: (folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png") for name in names
    }


def camvid(root: Path) -> dict[str, tuple[Path, Path]]:
    """CamVid's validation pictures; the class list must be the one that the numbers mean."""
    folder = root / "camvid"
    names = _names(folder / "val.txt", "images/, masks/, val.txt and classes.txt of CamVid with 11 classes")
    listing = folder / "classes.txt"
    if listing.is_file():
        found = tuple(line.split(maxsplit=1)[1].strip() for line in listing.read_text("utf-8").splitlines() if line)
        if found[: len(CAMVID)] != CAMVID:
            raise DatasetError(
                f"{listing} lists {', '.join(found)}; expected {', '.join(CAMVID)}, then unlabelled: another list "
                "is another benchmark."
            )
    return {name: (folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png") for name in names}


def _listed(folder: Path, pattern: str, wanted: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise DatasetError(f"No {pattern} in {folder}; expected {wanted}.")
    return found


def _names(path: Path, wanted: str) -> list[str]:
    if not path.is_file():
        raise DatasetError(f"No file {path}; expected {wanted}.")
    return path.read_text("utf-8").split()


CLASS_BENCHMARKS = {
    one.name: one
    for one in (
        classes_benchmark("ade20k-150/val", ade20k, is_mapped=False),
        classes_benchmark("pc-59/val", partial(pascal_context, maps="pc59_val", pattern="*.png"), is_mapped=True),
        classes_benchmark("pc-459/val", partial(pascal_context, maps="pc459_val", pattern="*.tif"), is_mapped=True),
        classes_benchmark("pas-20/val", pascal_voc, is_mapped=False),
        classes_benchmark("camvid/val", camvid, is_mapped=True),
    )
}
