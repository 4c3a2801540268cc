"""Where Pascal Context lies: its 59 or 459 classes, 5,105 validation pictures of VOC 2010.

Under the folder of all data, the first of these that is there::

    VOCdevkit/VOC2010/annotations_detectron2/{pc59_val/*.png, pc459_val/*.tif}        VOCdevkit/VOC2010/JPEGImages/*.jpg
    pascal_ctx_d2/{annotations_ctx59/validation/*.png, annotations_ctx459/validation/*.tif}      images/validation/*.jpg
    {pcontext/val/label/*.png, pcontext_full/val/label/*.tif}                                                image/*.jpg
    VOCdevkit/VOC2010/SegmentationClassContext/*.png (the 59 alone)                   VOCdevkit/VOC2010/JPEGImages/*.jpg
    VOCdevkit/VOC2010/trainval/*.mat                                                  VOCdevkit/VOC2010/JPEGImages/*.jpg

The first three hold labels as detectron2 wants them, background 255 (of 459: 65535). The fourth is mmseg's: 0 is the
background, k class k - 1. The last is the original download, 459 numbers of which 59 are kept, the others ignored.
The last two hold the training pictures too: ``pascalcontext_val.txt``, ``ImageSets/SegmentationContext/val.txt`` or
VOC's own ``ImageSets/Main/val.txt`` names those to measure.

Classes are numbered by name, as in the original's list of 459. One script in use numbers the 59 by the order of
``59_labels.txt`` instead and writes them to the same folder: every number would be wrong. So where VOC's own
``SegmentationClass`` is there, both are compared before anything runs.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from self1e.data.class_names import PASCAL_CONTEXT_59, PASCAL_CONTEXT_459, PASCAL_VOC_20
from self1e.errors import DatasetError
from self1e.evaluation.benchmarks.class_maps import Found

_VOC = Path("VOCdevkit", "VOC2010")
_LISTS = ("pascalcontext_val.txt", "ImageSets/SegmentationContext/val.txt", "ImageSets/Main/val.txt")
_IN_FULL = {"diningtable": "table"}  # names of the 59 that the 459 have otherwise
_OF_VOC = {"tv": "tvmonitor"}
_PREPARED = {
    "pc-59": (
        (_VOC / "annotations_detectron2" / "pc59_val", _VOC / "JPEGImages"),
        (Path("pascal_ctx_d2/annotations_ctx59/validation"), Path("pascal_ctx_d2/images/validation")),
        (Path("pcontext/val/label"), Path("pcontext/val/image")),
    ),
    "pc-459": (
        (_VOC / "annotations_detectron2" / "pc459_val", _VOC / "JPEGImages"),
        (Path("pascal_ctx_d2/annotations_ctx459/validation"), Path("pascal_ctx_d2/images/validation")),
        (Path("pcontext_full/val/label"), Path("pcontext_full/val/image")),
    ),
}
"""Folders of class maps and of pictures."""


def pascal_context(root: Path, which: str) -> Found:
    """List the validation pictures of ``"pc-59"`` or ``"pc-459"``.

    Raises:
        DatasetError: They lie in none of the known ways; or nothing says which pictures are for validation.
    """
    ending = ".png" if which == "pc-59" else ".tif"
    for maps, pictures in _PREPARED[which]:
        found = sorted((root / maps).glob(f"*{ending}"))
        if found:
            return _found(which, root, {path.stem: (root / pictures / f"{path.stem}.jpg", path) for path in found})
    home = root / _VOC
    if which == "pc-59" and _any(home / "SegmentationClassContext", "*.png"):
        return _found(which, root, _named(home, "SegmentationClassContext", ".png"), "zero")
    if _any(home / "trainval", "*.mat"):
        files = _named(home, "trainval", ".mat")
        return _found(which, root, files, "zero" if which == "pc-459" else table_of_59())
    raise _nowhere(root, which, ending)


def table_of_59() -> np.ndarray:
    """Label of each of the original's numbers: 0 to 58, and 255 for what is none of the classes, uint8 ``(460,)``."""
    table = np.full(len(PASCAL_CONTEXT_459) + 1, 255, np.uint8)
    for label, name in enumerate(PASCAL_CONTEXT_59):
        table[PASCAL_CONTEXT_459.index(_IN_FULL.get(name, name)) + 1] = label
    return table


def _found(which: str, root: Path, files: dict[str, tuple[Path, Path]], stored: object = "mapped") -> Found:
    names: tuple[str, ...] = PASCAL_CONTEXT_59
    voc = [_OF_VOC.get(name, name) for name in PASCAL_VOC_20]
    if which == "pc-459":
        names, voc = PASCAL_CONTEXT_459, [_IN_FULL.get(name, name) for name in voc]
    labels = tuple(names.index(name) for name in voc)
    return Found(files, stored, root / _VOC / "SegmentationClass", labels)  # type: ignore[arg-type]


def _named(home: Path, folder: str, ending: str) -> dict[str, tuple[Path, Path]]:
    listing = next((home / name for name in _LISTS if (home / name).is_file()), None)
    if listing is None:
        raise DatasetError(
            f"{home / folder} holds training pictures too, and nothing says which are for validation: put "
            f"{' or '.join(_LISTS)} into {home}."
        )
    # Some lists hold names, others the paths of a picture and its class map.
    stems = [Path(line.split()[0]).stem for line in listing.read_text("utf-8").splitlines() if line.strip()]
    return {stem: (home / "JPEGImages" / f"{stem}.jpg", home / folder / f"{stem}{ending}") for stem in stems}


def _any(folder: Path, pattern: str) -> bool:
    return next(folder.glob(pattern), None) is not None


def _nowhere(root: Path, which: str, ending: str) -> DatasetError:
    wanted = [f"{maps}/*{ending}" for maps, _ in _PREPARED[which]]
    wanted += [f"{_VOC}/SegmentationClassContext/*.png"] if which == "pc-59" else []
    wanted += [f"{_VOC}/trainval/*.mat"]
    home = root / _VOC if (root / _VOC).is_dir() else root
    there = ", ".join(sorted(path.name for path in home.iterdir())[:12]) or "nothing"
    told = f"No class maps of Pascal Context in {root}: expected {', '.join(wanted)}; {home} holds {there}."
    if (home / "trainval_merged.json").is_file():
        told += " trainval_merged.json alone is not read: unpack Pascal Context's own trainval.tar.gz beside it."
    elif which == "pc-459" and _any(home / "SegmentationClassContext", "*.png"):
        told += " SegmentationClassContext has the 59 classes alone: unpack Pascal Context's trainval.tar.gz beside it."
    return DatasetError(told)
