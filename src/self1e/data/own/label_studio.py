"""Label Studio's JSON export: tasks with polygons and brush strokes.

One task::

    {"id": 7, "data": {"image": "/data/upload/1/3f2a9b1c-cat.jpg"},
     "annotations": [{"was_cancelled": false, "result": [
        {"id": "a", "type": "polygonlabels", "original_width": 640, "original_height": 480, "image_rotation": 0,
         "value": {"points": [[10.5, 20.0], ...], "polygonlabels": ["cat"]}},
        {"id": "b", "type": "brushlabels", ..., "value": {"format": "rle", "rle": [0, 1, ...], "brushlabels": ["cat"]}},
        {"id": "b", "type": "textarea", "value": {"text": ["the cat on the left"]}}]}]}

Points are percent of the sides. Entries with one ``id`` are about one region. Words that are written to a region
are its queries; otherwise its labels are, as "the cat". Of several annotations the first that is not cancelled
counts; tasks that were skipped are left out. Addresses cannot be followed: a picture is looked for by its name beside
the export and in ``images/``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from self1e.data.own.records import (
    Flaw,
    Listed,
    Parsed,
    Query,
    Record,
    SizeWH,
    as_query,
    as_size,
    exists,
    read_json,
    shown,
)
from self1e.data.own.regions import Brush, PercentPolygon, Region
from self1e.processing.pictures import SUFFIXES

_OUTLINES = {"polygonlabels": "points", "polygon": "points", "brushlabels": "rle", "brush": "rle"}
_OTHER_REGIONS = frozenset(
    f"{shape}{labels}"
    for shape in ("rectangle", "ellipse", "keypoint", "bitmask", "vector")
    for labels in ("", "labels")
)


@dataclass
class _Drawn:
    """What is known about one region."""

    where: str
    regions: list[Region] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def read_label_studio(file: Path, split: str, pictures: Path | None = None) -> Parsed:
    """Read an export in the format "JSON".

    Args:
        file: The JSON file.
        split: What to call it.
        pictures: Folder of the pictures, if it is not one of those above.
    """
    parsed = Parsed(split, file)
    try:
        tasks = read_json(file)
        if not isinstance(tasks, list):
            raise Flaw("bad-record", f"a {type(tasks).__name__}", "a list of tasks", 'Export as "JSON".')
    except Flaw as flaw:
        parsed.report(Flaw("unreadable-file", flaw.found, flaw.expected, flaw.advice))
        return parsed
    folders = [pictures] if pictures else [file.parent, file.parent / "images", file.parent / "upload"]
    labels: set[str] = set()
    known: dict[Path, tuple[str, str]] = {}
    read = []
    for number, task in enumerate(tasks):
        is_named = isinstance(task, dict) and isinstance(task.get("id"), int | str)
        where = f"task {task['id']}" if is_named else f"task [{number}]"
        try:
            if _is_skipped(task):
                continue
            reference = _reference(task)
            picture = _find_picture(reference, folders)
            path = _paths(reference)[0]  # signed addresses of one picture differ in what follows the path
            before, address = known.setdefault(picture, (where, path))
            if address != path and exists(picture):  # two pictures of one name, and one of them is here
                advice = f"{before} has {shown(address)}: give the two files names of their own, as in the addresses."
                raise Flaw("bad-record", f"{shown(path)} leads to {picture}", "a picture of its own", advice)
            drawn, size_wh = _read_result(task, where, parsed)
        except Flaw as flaw:
            parsed.report(flaw, where)
            continue
        queries = _queries(drawn, parsed)
        labels.update(label for one in drawn if not one.words for label in one.labels)
        # What a region is called by is there, even if it is asked for in other words, or its outline is no use.
        there = {as_query(label) for one in drawn for label in one.labels}
        read.append((where, picture, queries, size_wh, there))
    names = tuple(as_query(label) for label in sorted(labels))
    parsed.records = [
        Record(
            picture=picture,
            annotation=Listed(queries),
            file=file,
            where=where,
            size_wh=size_wh,
            names=tuple(name for name in names if name not in there),
        )
        for where, picture, queries, size_wh, there in read
    ]
    return parsed


def is_label_studio(content: Any) -> bool:
    """Say whether JSON looks like an export."""
    return isinstance(content, list) and bool(content) and isinstance(content[0], dict) and "data" in content[0]


def _is_skipped(task: Any) -> bool:
    """Say whether all that annotators did with a task was to skip it."""
    done = task.get("annotations") if isinstance(task, dict) else None
    return isinstance(done, list) and bool(done) and all(isinstance(a, dict) and a.get("was_cancelled") for a in done)


def _reference(task: Any) -> str:
    """Return what a task says about its picture."""
    data = task.get("data") if isinstance(task, dict) else None
    if not isinstance(data, dict):
        raise Flaw("bad-record", shown(task), '{"data": {"image": ...}, "annotations": [...]}', 'Export as "JSON".')
    values = [data.get("image"), *data.values()]
    found = next((value for value in values if isinstance(value, str) and _is_picture(value)), None)
    if found is None:
        raise Flaw("bad-record", f"data is {shown(data)}", "the path of a picture", "Name the picture in the task.")
    return found


def _is_picture(value: str) -> bool:
    return any(Path(part).suffix.lower() in SUFFIXES for part in _paths(value))


def _paths(reference: str) -> list[str]:
    """Turn an address or a path of the server into paths here, the most telling one first."""
    try:
        address = urlsplit(reference)
        local = parse_qs(address.query).get("d", [])
    except ValueError:  # not an address at all
        return [reference]
    return [path.replace("\\", "/").lstrip("/") for path in (*local, unquote(address.path), reference)]


def _find_picture(reference: str, folders: list[Path]) -> Path:
    """Look for a picture by ever less of its path; where it should be if it is nowhere."""
    names: dict[str, None] = {}
    for path in _paths(reference):
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        names.update(dict.fromkeys("/".join(parts[i:]) for i in range(len(parts))))
    # An upload gets eight letters before its name.
    names.update(dict.fromkeys([re.sub(r"^[0-9a-f]{8}-", "", name) for name in names if "/" not in name]))
    candidates = [folder / name for name in names for folder in folders]
    bare = next((name for name in names if "/" not in name), reference)
    return next((path for path in candidates if exists(path)), folders[-1 if len(folders) == 1 else 1] / bare)


def _read_result(task: dict[str, Any], where: str, parsed: Parsed) -> tuple[list[_Drawn], SizeWH | None]:
    """Collect the regions of a task, and the size that they were drawn on."""
    annotations = task.get("annotations")
    if not isinstance(annotations, list):
        found = f"annotations is {shown(annotations)}"
        raise Flaw("bad-record", found, "a list", 'Export as "JSON", not "JSON-MIN".')
    chosen = next((a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")), None)
    if chosen is None:
        raise Flaw("bad-record", "no annotation", "one that is not cancelled", "Annotate the task, or take it out.")
    result = chosen.get("result")
    if not isinstance(result, list):
        raise Flaw("bad-record", f"result is {shown(result)}", "a list", "Export the task again.")
    drawn: dict[str, _Drawn] = {}
    sizes: list[SizeWH] = []
    for number, entry in enumerate(result):
        name = entry.get("id") if isinstance(entry, dict) else None
        key = name if isinstance(name, str) else f"[{number}]"
        place = f"{where}, region {key}"
        try:
            one = drawn.setdefault(key, _Drawn(place))
            sizes += _add(entry, one)
        except Flaw as flaw:
            parsed.report(flaw, place)
    return list(drawn.values()), sizes[0] if sizes else None


def _add(entry: Any, drawn: _Drawn) -> Iterator[SizeWH]:
    """Add what one entry says about a region; yields the size that it was drawn on."""
    value = entry.get("value") if isinstance(entry, dict) else None
    kind = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(value, dict) or not isinstance(kind, str):
        raise Flaw("bad-record", shown(entry), '{"type": ..., "value": {...}}', "Export the task again.")
    drawn.labels += [label for key in (kind, "labels") for label in _strings(value.get(key))]
    if kind in _OTHER_REGIONS:
        advice = "Draw it with PolygonLabels or BrushLabels."
        raise Flaw("bad-record", f"a region of type {kind}", "an outline: polygonlabels or brushlabels", advice)
    if kind == "textarea":
        drawn.words += _strings(value.get("text"))
    if kind not in _OUTLINES:
        return iter(())  # labels and words of a region, or choices about the whole picture
    if entry.get("image_rotation"):
        found = f"image_rotation {shown(entry['image_rotation'])}"
        raise Flaw("bad-record", found, "0", "Rotate the file itself, then annotate it.")
    size_wh = as_size(entry.get("original_width"), entry.get("original_height"))
    if size_wh is None:
        raise Flaw("bad-record", "no original_width and original_height", "the picture's size", "Export it again.")
    code = value.get(_OUTLINES[kind])
    if not isinstance(code, list) or not code:
        raise Flaw("empty-mask", f"{_OUTLINES[kind]} is {shown(code)}", "an outline", "Draw it, or take it out.")
    drawn.regions.append(PercentPolygon(code) if _OUTLINES[kind] == "points" else Brush(code, size_wh))
    return iter((size_wh,))


def _strings(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    return [" ".join(text.split()) for text in listed if isinstance(text, str) and text.strip()]


def _queries(drawn: list[_Drawn], parsed: Parsed) -> tuple[Query, ...]:
    """Unite the regions that have the same words."""
    united: dict[str, list[tuple[str, Region]]] = {}
    places: dict[str, tuple[str, str]] = {}
    for one in drawn:
        if not one.regions:
            continue
        texts = one.words or [as_query(label) for label in one.labels]
        if not texts:
            flaw = Flaw("bad-record", "a region without label and words", "one of them", "Name it, or take it out.")
            parsed.report(flaw, one.where)
        for text in texts:
            united.setdefault(text, []).extend((one.where, region) for region in one.regions)
            places.setdefault(text, (one.where, "" if one.words else "category"))
    return tuple(
        Query(text=text, regions=tuple(regions), where=places[text][0], tag=places[text][1])
        for text, regions in united.items()
    )
