"""Indexed masks: a folder of pictures, a folder of PNGs with one class number per pixel, and a list of classes.

On disk::

    <root>/images/[<split>/]0001.jpg      or JPEGImages/
    <root>/masks/[<split>/]0001.png       or labels/, annotations/, SegmentationClass/
    <root>/classes.txt                    "<number> <name>" or "<number>: <name>" per line, or names alone, from 0 on
    <root>/train.txt, val.txt             names of pictures, one per line, without suffix; instead of folders per split

A query reads "the t-shirt", for all pixels of that class. Number 255, and numbers whose name says that nothing is
meant (``background``, ``void``, ``unlabelled``, ``null`` ...), are asked about never.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from self1e.data.own.records import Decoded, Flaw, Parsed, Record, SizeWH, as_query, exists
from self1e.data.own.regions import read_map
from self1e.processing.pictures import SUFFIXES

PICTURES = ("images", "JPEGImages", "imgs")
MASKS = ("masks", "labels", "annotations", "SegmentationClass")
CLASSES = ("classes.txt", "class_names.txt", "labels.txt")

NOTHING = frozenset(
    ("", "background", "ignore", "ignored", "none", "null", "unknown", "unlabeled", "unlabelled", "void")
)
IGNORED = 255


def read_indexed(file: Path, split: str, pictures: Path | None = None) -> Parsed:
    """Read one split.

    Args:
        file: The root, a list of names, or one split's folder of pictures.
        split: What to call it.
        pictures: Folder of the pictures, if it has another name.
    """
    root = file if find_folder(file, MASKS) else file.parent if file.suffix == ".txt" else file.parent.parent
    parsed = Parsed(split, root)
    images, masks = pictures or find_folder(root, PICTURES) or root / PICTURES[0], find_folder(root, MASKS)
    try:
        if masks is None:
            raise Flaw("missing-file", f"no folder {' or '.join(MASKS)}", "the masks", "Put them there.")
        classes, list_file = read_classes(root)
    except Flaw as flaw:
        parsed.report(flaw)
        return parsed
    names = tuple(as_query(name) for name in classes.values() if not means_nothing(name))
    inside = "" if file.suffix == ".txt" or file == root else file.name
    found: dict[str, Path] = {}
    for path in _list_pictures(images / inside):
        name = path.relative_to(images).with_suffix("").as_posix()
        if name in found:
            flaw = Flaw(
                "bad-record", f"{path.name} beside {found[name].name}", "one picture per mask", "Move one away."
            )
            parsed.report(flaw, file=path)
        found.setdefault(name, path)
    for where, name in _names(file, parsed, list(found)):
        if name not in found:
            advice = f"Put it into {images.name}/, or take the name out."
            parsed.report(Flaw("missing-file", f"no picture {name}", "a picture", advice), where, file)
            continue
        mask = _mask_path(masks, name)
        parsed.records.append(
            Record(
                picture=found[name],
                annotation=IndexedMap(mask, classes, list_file.name),
                file=mask,
                where="",
                names=names,
            )
        )
    return parsed


@dataclass(frozen=True, slots=True)
class IndexedMap:
    """A mask with one class number per pixel."""

    path: Path
    classes: dict[int, str]
    list_name: str

    def decode(self, size_wh: SizeWH) -> Iterator[Decoded]:
        """Decode class by class, by number."""
        numbers = read_map(self.path, size_wh)
        flaws: list[tuple[str, Flaw]] = []
        found = [number for number in np.unique(numbers).tolist() if number != IGNORED]
        unknown = [number for number in found if number not in self.classes]
        if unknown:
            listed = ", ".join(map(str, unknown[:5])) + (" ..." if len(unknown) > 5 else "")
            expected = f"numbers in {self.list_name}, or 255"
            flaw = Flaw("unknown-class", f"pixels of class {listed}", expected, "Add the class, or repaint the pixels.")
            flaws.append(("", flaw))
        named: dict[str, list[int]] = {}  # two numbers may have one name
        for number in found:
            if not means_nothing(self.classes.get(number, "")):
                named.setdefault(as_query(self.classes[number]), []).append(number)
        for text, several in named.items():
            mask = np.isin(numbers, several)
            yield Decoded(text=text, mask=mask, is_absent=False, where="", tag="category", flaws=tuple(flaws))
            flaws.clear()  # told once
        if flaws:
            raise flaws[0][1]


def read_classes(root: Path) -> tuple[dict[int, str], Path]:
    """Read the list of classes: names by number, and the file.

    Raises:
        Flaw: There is none, or a line is not understood.
    """
    path = next((root / name for name in CLASSES if exists(root / name)), None)
    if path is None:
        raise Flaw("missing-file", f"no {CLASSES[0]} in {root}", "a list of classes", "Write one name per line.")
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise Flaw("unreadable-file", f"{path.name}: {error}", "UTF-8 text", "Save it as UTF-8.") from error
    numbered = [re.fullmatch(r"(\d+)\s*[:,\s]\s*(.*)", line) for line in lines if line]
    if numbered and all(numbered):
        classes = {int(match[1]): match[2].strip() for match in numbered if match}
        if len(classes) < len(numbered):
            raise Flaw("bad-record", f"{path.name} names a number twice", "each number once", "Take one line out.")
        return classes, path
    # Like labelme's: a first line for "ignore" is -1 there, and is no class of its own.
    names = [line for line in lines if line and line.lower() != "__ignore__"]
    if not names:
        raise Flaw("bad-record", f"{path.name} is empty", "one class per line", "Name the classes.")
    return dict(enumerate(names)), path


def means_nothing(name: str) -> bool:
    """Say whether a class is none: ``__background__``."""
    return name.strip("_ ").lower() in NOTHING


def find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    """Return the first of some folders that is there."""
    return next((root / name for name in names if (root / name).is_dir()), None)


def find_indexed(root: Path) -> dict[str, Path]:
    """Return the splits of a folder: lists of names, folders within the pictures' folder, or the whole."""
    pictures = find_folder(root, PICTURES)
    if pictures is None or find_folder(root, MASKS) is None or not any(exists(root / name) for name in CLASSES):
        return {}
    listed = sorted(path for path in root.glob("*.txt") if _SPLIT.match(path.stem) and path.name not in CLASSES)
    if listed:
        return {path.stem: path for path in listed}
    inside = sorted(path for path in pictures.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    # Pictures beside folders are in no split of their own: then all of it is one.
    is_divided = folders and not any(path.suffix.lower() in SUFFIXES for path in inside)
    return {path.name: path for path in folders} if is_divided else {"all": root}


_SPLIT = re.compile(r"(train|val|test|dev)", re.IGNORECASE)


def _list_pictures(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
    return sorted(found)


def _mask_path(masks: Path, name: str) -> Path:
    """Say where a picture's mask is; one with another suffix is named, so that the error says what it is."""
    path = masks / f"{name}.png"
    others = (masks / f"{name}{ending}" for suffix in sorted(SUFFIXES) for ending in (suffix.upper(), suffix))
    return path if exists(path) else next((other for other in others if exists(other)), path)


def _names(file: Path, parsed: Parsed, found: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the names of a split's pictures, each with its place."""
    if file.suffix != ".txt":
        yield from (("", name) for name in found)
        return
    try:
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        parsed.report(Flaw("unreadable-file", str(error), "UTF-8 text", "Save it as UTF-8."), file=file)
        return
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip().replace("\\", "/").removeprefix("./")
        if Path(name).suffix.lower() in SUFFIXES:
            name = name[: -len(Path(name).suffix)]
        if name in seen:
            flaw = Flaw("bad-record", f"{name} again", f"each name once (line {seen[name]})", "Take the line out.")
            parsed.report(flaw, f"line {number}", file)
        elif name:
            seen[name] = number
            yield f"line {number}", name
