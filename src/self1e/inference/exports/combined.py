"""One file for all pictures of a folder run, in the formats that have such a thing.

=========================== ==================================================================================
format                      file, in the run's folder
=========================== ==================================================================================
coco                        coco.json: ``file_name`` is the picture's path below the folder that was segmented
coco-results                coco-results.json, with the ids of coco.json
label-studio                label-studio.json: all tasks, ``data.image`` is the picture's path
label-studio-polygons       label-studio-polygons.json
yolo                        yolo/data.yaml and yolo/labels/PICTURE.txt; put the pictures into yolo/images
=========================== ==================================================================================

They are put together from the pictures' own files when a run ends, so that a run that was stopped and resumed gives
the same ones. Ids stay what they are when pictures are added: an image's id is its place in the manifest, a category's
the place where its query came up first, those of failed pictures included.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from self1e.errors import SettingError
from self1e.files import atomic_write_all
from self1e.inference.exports.yolo import renumber, yolo_names
from self1e.inference.manifest import Record

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Picture:
    """A finished picture."""

    id: int
    name: str
    size_wh: tuple[int, int]
    classes: tuple[int, ...]
    """Number of each of its queries among those of all pictures, from 0 on."""
    content: str
    """Of its own file."""


Files = Iterator[tuple[str, bytes]]


def write_combined(records: Sequence[Record], out: Path, formats: Sequence[str]) -> list[Path]:
    """Unite what is recorded, each file whole or not at all.

    Args:
        records: Of the manifest, in its order.
        out: The manifest's folder.
        formats: Of the run; those without a file for all are passed over.

    Returns:
        The files written.
    """
    classes: dict[str, int] = {}
    for record in records:
        for entry in record.queries:
            classes.setdefault(entry["query"], len(classes))

    def files() -> Iterator[tuple[Path, bytes]]:
        for name in formats:
            if name in _WRITERS:
                ending, write = _WRITERS[name]
                for place, content in write(_read(records, out, ending, classes), list(classes), name):
                    path = out / place
                    path.parent.mkdir(parents=True, exist_ok=True)
                    yield path, content

    return atomic_write_all(files(), sync=True)


def check_label_names(pictures: Sequence[str]) -> None:
    """Refuse pictures that would share a label file, before a run begins."""
    seen: dict[str, str] = {}
    for name in pictures:
        place = _label_place(name)
        other = seen.setdefault(place.casefold(), name)
        if other != name:
            raise SettingError(
                f"{other} and {name} differ only in their suffix, and YOLO's labels are named without it: rename one, "
                "or leave yolo out of the formats."
            )


def _read(records: Sequence[Record], out: Path, ending: str, classes: dict[str, int]) -> Iterator[_Picture]:
    """Read the pictures' own files, one at a time."""
    for number, record in enumerate(records, 1):
        name = f"{record.picture}.{ending}"
        if record.status != "done" or name not in record.files:
            continue
        try:
            content = (out / name).read_text("utf-8")
        except OSError as error:
            _log.warning("%s: is left out of the file for all pictures: %s", out / name, error.strerror)
            continue
        assert record.size_wh is not None
        numbers = tuple(classes[entry["query"]] for entry in record.queries)
        yield _Picture(number, record.picture, record.size_wh, numbers, content)


def _coco(pictures: Iterator[_Picture], names: list[str], which: str) -> Files:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for one in pictures:
        width, height = one.size_wh
        images.append({"id": one.id, "file_name": one.name, "width": width, "height": height})
        for entry in json.loads(one.content)["annotations"]:
            annotations.append(_moved(entry, one) | {"id": len(annotations) + 1})
    categories = [{"id": number + 1, "name": name} for number, name in enumerate(names)]
    yield "coco.json", _json({"images": images, "annotations": annotations, "categories": categories})


def _coco_results(pictures: Iterator[_Picture], names: list[str], which: str) -> Files:
    yield "coco-results.json", _json([_moved(entry, one) for one in pictures for entry in json.loads(one.content)])


def _moved(entry: dict[str, Any], picture: _Picture) -> dict[str, Any]:
    """Give an annotation of one picture the ids of the collection."""
    return entry | {"image_id": picture.id, "category_id": picture.classes[entry["category_id"] - 1] + 1}


def _label_studio(pictures: Iterator[_Picture], names: list[str], which: str) -> Files:
    tasks = [task | {"data": {"image": one.name}} for one in pictures for task in json.loads(one.content)]
    yield f"{which}.json", _json(tasks)


def _yolo(pictures: Iterator[_Picture], names: list[str], which: str) -> Files:
    for one in pictures:
        yield f"yolo/labels/{_label_place(one.name)}", renumber(one.content, one.classes).encode()
    yield "yolo/data.yaml", yolo_names(names).encode()


def _label_place(picture: str) -> str:
    return PurePosixPath(picture).with_suffix(".txt").as_posix()


def _json(content: Any) -> bytes:
    return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


_WRITERS: dict[str, tuple[str, Callable[[Iterator[_Picture], list[str], str], Files]]] = {
    "coco": ("coco.json", _coco),
    "coco-results": ("coco-results.json", _coco_results),
    "label-studio": ("label-studio.json", _label_studio),
    "label-studio-polygons": ("label-studio-polygons.json", _label_studio),
    "yolo": ("yolo.txt", _yolo),
}
"""The ending of a picture's own file, and what unites them."""
