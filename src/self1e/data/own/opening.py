"""Recognise the format of a folder or file, and open it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.data.own import coco, indexed, json_lines, label_studio
from self1e.data.own.records import Flaw, OwnData, Parsed, Reader, read_json
from self1e.errors import DatasetError, SettingError, did_you_mean

_READERS: dict[str, Reader] = {
    "json-lines": json_lines.read_json_lines,
    "coco": coco.read_instances,
    "coco-panoptic": coco.read_panoptic,
    "indexed": indexed.read_indexed,
    "label-studio": label_studio.read_label_studio,
}
FORMATS = tuple(_READERS)
"""Names for ``format``."""

_FINDERS: dict[str, Callable[[Path], dict[str, Path]]] = {
    "json-lines": json_lines.find_json_lines,
    "coco": lambda folder: coco.find_coco(folder, "instances"),
    "coco-panoptic": lambda folder: coco.find_coco(folder, "panoptic"),
    "indexed": indexed.find_indexed,
}

_LAYOUTS = (
    "*.jsonl, annotations/instances_*.json, annotations/panoptic_*.json, */_annotations.coco.json, "
    "images/ with masks/ and classes.txt, or a JSON file of COCO or Label Studio"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A data set that was recognised."""

    root: Path
    format: str
    splits: dict[str, Path]
    """What each split is read from."""
    pictures: Path | None = None

    def parse(self, split: str) -> Parsed:
        """Read one split's annotations, and note what is wrong with them."""
        return _READERS[self.format](self.splits[split], split, self.pictures)


def open_data(
    path: str | Path,
    *,
    split: str | None = None,
    format: str | None = None,
    pictures: str | Path | None = None,
    ignore: Collection[str] = (),
) -> OwnData:
    """Open your own data: JSON lines, COCO, indexed masks or a Label Studio export.

    Args:
        path: A file of annotations, or the folder that holds one per split.
        split: Which one, where there are several.
        format: One of `FORMATS`, where it is not recognised or more than one is.
        pictures: Folder of the pictures, where it is not the one that belongs to the format.
        ignore: Kinds of problems, keys of `KINDS`: an entry that has one is left out, and so is a region of a mask.

    Returns:
        A sequence of samples, decoded on access; ``data[i]`` is always the same.

    Raises:
        DatasetError: Nothing is recognised, or the annotations have problems; pictures and masks are not looked at.
        SettingError: There is no such format.
    """
    found = recognise(path, format=format, pictures=pictures)
    if split is None and len(found.splits) > 1:
        raise DatasetError(f"{path} holds {len(found.splits)} splits, {', '.join(found.splits)}: name one, split=...")
    name = split or next(iter(found.splits))
    if name not in found.splits:
        hint = did_you_mean(name, found.splits)
        raise DatasetError(f"{path} has no split {name!r}.{hint} Found: {', '.join(found.splits)}.")
    parsed = found.parse(name)
    problems = [problem for problem in parsed.problems if problem.kind not in ignore]
    if problems:
        count = f" ({len(problems)} problems in all)" if len(problems) > 1 else ""
        raise DatasetError(f"{problems[0]}{count} `self1e data check {path}` lists all problems.")
    if not parsed.records:
        raise DatasetError(f"{found.splits[name]} holds no picture; expected at least one. Is it the right file?")
    return OwnData(parsed, found.format, ignore=ignore)


def recognise(path: str | Path, *, format: str | None = None, pictures: str | Path | None = None) -> Found:
    """Say which format a file or folder has, and which splits.

    Raises:
        DatasetError: None, or several.
        SettingError: There is no such format.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise SettingError(f"format={format!r}.{did_you_mean(format, FORMATS)} Known: {', '.join(FORMATS)}.")
    if pictures is not None and not Path(pictures).is_dir():
        raise SettingError(f"pictures={str(pictures)!r} is no folder; name the one that holds the pictures.")
    if path.is_dir():
        found = _in_folder(path, format)
    elif path.is_file():
        found = [(format or _format_of(path), {_split_of(path): path})]
    else:
        raise DatasetError(f"{path}: no such file or folder; expected {_LAYOUTS}.")
    if not found:
        what = f"is not {format}" if format else "holds no annotations that are known"
        raise DatasetError(f"{path} {what}; expected {_LAYOUTS}. Or name the file itself.")
    if len(found) > 1:
        names = [name for name, _ in found]
        raise DatasetError(f"{path} could be {' or '.join(names)}: say which one with format={names[0]!r}.")
    return Found(root=path, format=found[0][0], splits=found[0][1], pictures=Path(pictures) if pictures else None)


def _in_folder(folder: Path, format: str | None) -> list[tuple[str, dict[str, Path]]]:
    wanted = [format] if format else list(FORMATS)
    found = [(name, _FINDERS[name](folder)) for name in wanted if name in _FINDERS]
    found = [(name, splits) for name, splits in found if splits]
    if found:
        return found
    # Nothing says by its name what it is, so the files have to be opened.
    guessed: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            name = _format_of(file)
        except DatasetError:
            continue
        if name in wanted:
            guessed.setdefault(name, {})[_split_of(file)] = file
    return list(guessed.items())


def _split_of(file: Path) -> str:
    return coco.split_name(file)


def _format_of(file: Path) -> str:
    if file.suffix.lower() in json_lines.SUFFIXES:
        return "json-lines"
    if file.suffix.lower() == ".txt":
        return "indexed"
    try:
        content: Any = read_json(file)
    except Flaw as flaw:
        hint = " Is it JSON lines? Then pass format='json-lines'." if "Extra data" in flaw.found else ""
        raise DatasetError(f"{file}: {flaw}{hint}") from flaw
    if label_studio.is_label_studio(content):
        return "label-studio"
    if isinstance(content, dict) and "images" in content and "annotations" in content:
        notes = content["annotations"]
        is_panoptic = isinstance(notes, list) and notes and isinstance(notes[0], dict) and "segments_info" in notes[0]
        return "coco-panoptic" if is_panoptic else "coco"
    kind = f"keys {', '.join(list(content)[:5])}" if isinstance(content, dict) else f"a {type(content).__name__}"
    raise DatasetError(f"{file}: JSON with {kind}; expected {_LAYOUTS}. Or say what it is with format=...")
