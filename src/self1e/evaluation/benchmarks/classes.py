"""Benchmarks of class maps: every class is asked about every picture, the highest logit per pixel wins (METRICS 4).

On disk, under the folder of all data (``dataset/`` or what holds it)::

    ade20k/images/validation/*.jpg         ade20k/annotations/validation/*.png           0 none, k = class k - 1
    VOCdevkit/VOC2012/JPEGImages/*.jpg     VOCdevkit/VOC2012/SegmentationClass/*.png     0 none, k = class k - 1
                                           VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt
    camvid/images/*.jpg, masks/*.png, val.txt, classes.txt                               11 ignored
    Pascal Context                                                                       see `pascal_context`

There is no background query. Class names are asked as the lists have them, in the phrase prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.class_names import CAMVID
from self1e.data.published import find_layout
from self1e.errors import DatasetError
from self1e.evaluation.benchmarks.class_maps import ClassMaps, Found, LabelledPicture
from self1e.evaluation.benchmarks.interface import Benchmark, Opened, Options, hash_files
from self1e.evaluation.benchmarks.masks import PROMPT, need_folder, summarise
from self1e.evaluation.benchmarks.pascal_context import pascal_context
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.metrics.semantic import LABEL_SETS, LabelSet, SemanticIoU, label_map
from self1e.evaluation.protocols import EXPECTED_SAMPLES, protocol
from self1e.evaluation.saved_masks import encode_map
from self1e.inference.semantic import class_logits

CAMVID_SET = LabelSet(name="camvid", classes=CAMVID, ignore=11)
"""Street scenes; no benchmark of the paper, but real pictures of another domain."""

_KNOWN = {**LABEL_SETS, "camvid": CAMVID_SET}


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


def classes_benchmark(name: str, find: Callable[[Path], Found]) -> Benchmark:
    """Make a benchmark of class maps; ``find`` lists its files under the root."""
    which, split = name.split("/")
    labels = _KNOWN[which]
    chosen = f"ovs.d2/{which}"
    protocol(chosen)

    def opener(data: Path | None) -> Opened:
        units = ClassMaps(labels, split, find(find_layout(need_folder(data, name)).root))
        maps = [path for _, path in units.files.values() if path.is_file()]
        problems = summarise(units.missing()) or units.wrong()
        return Opened(units=units, annotations=hash_files(maps), problems=problems)

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


def ade20k(root: Path) -> Found:
    """ADE20K's validation pictures."""
    folder = root / "ade20k"
    maps = _listed(folder / "annotations" / "validation", "*.png", "ADEChallengeData2016, its folders in ade20k/")
    return Found({path.stem: (folder / "images" / "validation" / f"{path.stem}.jpg", path) for path in maps}, "zero")


def pascal_voc(root: Path) -> Found:
    """VOC 2012's validation pictures."""
    folder = root / "VOCdevkit" / "VOC2012"
    names = _names(folder / "ImageSets" / "Segmentation" / "val.txt", "VOC 2012's VOCtrainval, unpacked")
    maps = folder / "SegmentationClass"
    return Found({name: (folder / "JPEGImages" / f"{name}.jpg", maps / f"{name}.png") for name in names}, "zero")


def camvid(root: Path) -> Found:
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
    return Found({name: (folder / "images" / f"{name}.jpg", folder / "masks" / f"{name}.png") for name in names})


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
        classes_benchmark("ade20k-150/val", ade20k),
        classes_benchmark("pc-59/val", partial(pascal_context, which="pc-59")),
        classes_benchmark("pc-459/val", partial(pascal_context, which="pc-459")),
        classes_benchmark("pas-20/val", pascal_voc),
        classes_benchmark("camvid/val", camvid),
    )
}
