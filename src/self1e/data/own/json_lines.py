"""JSON lines: one picture per line, with any words and any kind of mask.

One record, with every key::

    {"image": "images/1.jpg", "queries": [
        {"query": "the cup on the left", "mask": "masks/1-cup.png"},
        {"query": "What could I drink from?", "kind": "sentence", "mask": {"size": [H, W], "counts": "..."}},
        {"query": "both spoons", "mask": [[x1, y1, x2, y2, ...], [x1, y1, ...]], "tag": "plural"},
        {"query": "the dog", "mask": null}]}

Shorter: ``{"image": ..., "query": "the cup", "mask": ...}``, and ``"queries": ["the cup", "the mug"]`` beside one
``"mask"`` for several wordings. Paths are relative to the file. Keys that mean nothing here are left alone, unless
they look like one that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from self1e.data.own.records import Flaw, Listed, Parsed, Query, Record, exists, find_file, is_text, parse_json, shown
from self1e.data.own.regions import parse_mask
from self1e.errors import DatasetError, did_you_mean
from self1e.processing.prompts import Kind

SUFFIXES = (".jsonl", ".ndjson")

_LINE_KEYS = ("image", "query", "queries", "mask", "kind", "tag")
_QUERY_KEYS = ("query", "mask", "kind", "tag")
_KINDS: dict[str, Kind] = {"phrase": "phrase", "sentence": "sentence"}


def read_json_lines(file: Path, split: str, pictures: Path | None = None) -> Parsed:
    """Read a file of JSON lines; empty lines count, but hold no record.

    Args:
        file: The file.
        split: What to call it.
        pictures: Folder that pictures are relative to instead of the file's own.
    """
    parsed = Parsed(split, file)
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if content.strip():
                    _read_line(content, f"line {number}", parsed, pictures or file.parent)
    except OSError as error:
        parsed.report(
            Flaw("unreadable-file", str(error.strerror or error), "a file to read", "Check path and permissions.")
        )
    return parsed


def _read_line(content: bytes, where: str, parsed: Parsed, pictures: Path) -> None:
    try:
        entry = parse_json(content)
        if not isinstance(entry, dict):
            raise Flaw("bad-record", f"{shown(entry)}", '{"image": ..., "query": ..., "mask": ...}', "Write it so.")
        _check_keys(entry, _LINE_KEYS)
        picture = entry.get("image")
        if not isinstance(picture, str) or not picture.strip():
            raise Flaw("bad-record", f"image is {shown(picture)}", "a path", "Name the picture.")
    except Flaw as flaw:
        parsed.report(flaw, where)
        return
    queries = []
    for place, part in _parts(entry, where):
        try:
            if isinstance(part, Flaw):
                raise part
            queries.append(_query(part, place, parsed.file.parent))
        except Flaw as flaw:
            parsed.report(flaw, place)
    if queries:
        parsed.records.append(
            Record(
                picture=find_file(pictures, picture), annotation=Listed(tuple(queries)), file=parsed.file, where=where
            )
        )


def _parts(entry: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any] | Flaw]]:
    """Yield every query of a line with its place."""
    shared = {key: entry[key] for key in ("mask", "kind", "tag") if key in entry}
    if ("query" in entry) == ("queries" in entry):
        found = "both query and queries" if "query" in entry else "neither query nor queries"
        yield where, Flaw("bad-record", found, "one of them", "Say what the mask shows.")
        return
    if "query" in entry:
        yield where, {"query": entry["query"], **shared}
        return
    listed = entry["queries"]
    if not isinstance(listed, list) or not listed:
        yield where, Flaw("bad-record", f"queries is {shown(listed)}", "a list with at least one query", "Write it so.")
        return
    for number, part in enumerate(listed, start=1):
        place = f"{where}, query {number}"
        if isinstance(part, str):
            yield place, {"query": part, **shared}
        elif isinstance(part, dict):
            yield place, {**shared, **part}
        else:
            yield place, Flaw("bad-record", shown(part), 'words, or {"query": ..., "mask": ...}', "Write it so.")


def _query(part: dict[str, Any], where: str, folder: Path) -> Query:
    _check_keys(part, _QUERY_KEYS)
    text, kind, tag = part.get("query"), part.get("kind"), part.get("tag", "")
    if not isinstance(text, str) or not is_text(text):
        raise Flaw("bad-record", f"query is {shown(text)}", "words", "Say what the mask shows.")
    if kind is not None and (not isinstance(kind, str) or kind not in _KINDS):
        raise Flaw("bad-record", f"kind is {shown(kind)}", '"phrase" or "sentence"', "Leave it out to have it guessed.")
    if not isinstance(tag, str):
        raise Flaw("bad-record", f"tag is {shown(tag)}", "a word", "Leave it out if you do not need it.")
    if "mask" not in part:
        raise Flaw("bad-record", "no mask", "a mask, or null", "Write null if it is not in the picture.")
    mask = part["mask"]
    regions = () if mask is None else tuple((where, region) for region in parse_mask(mask, folder))
    return Query(
        text=" ".join(text.split()), regions=regions, where=where, kind=_KINDS[kind] if kind else None, tag=tag
    )


def _check_keys(entry: dict[str, Any], known: tuple[str, ...]) -> None:
    """Notice a misspelt key, which would otherwise be left out silently."""
    for key in entry:
        hint = "" if key in known else did_you_mean(key.lower(), known, cutoff=0.8)
        if hint:
            raise Flaw("bad-record", f"unknown key {shown(key)}", ", ".join(known), hint.strip())


def find_json_lines(folder: Path) -> dict[str, Path]:
    """Return the splits of a folder: every file of JSON lines in it, by its stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        # "._x.jsonl" is what macOS leaves beside x.jsonl on foreign disks.
        if path.suffix.lower() not in SUFFIXES or path.name.startswith(".") or not exists(path):
            continue
        if path.stem in found:
            raise DatasetError(
                f"{found[path.stem].name} and {path.name} in {folder} are both split {path.stem!r}; rename one."
            )
        found[path.stem] = path
    return found
