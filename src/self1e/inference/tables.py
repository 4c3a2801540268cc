"""Queries per picture, from a file that people and programs can write.

CSV, a row per query; several rows may name one picture, and other columns are left alone::

    image,query
    a/street.jpg,the cyclist
    a/street.jpg,"the car, not the van"

JSON lines, an object per line, with one query or several::

    {"image": "a/street.jpg", "queries": ["the cyclist", "the car, not the van"]}
    {"image": "b/kitchen.jpg", "query": "What could I drink from?"}

Relative paths are relative to the file. A query that a picture has twice is asked once. CSV may be separated by commas,
semicolons or tabs, as spreadsheets of different countries do. Text is UTF-8.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.errors import PromptError, SettingError
from self1e.processing.prompts import segmentation_question

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
"""What ``read_table`` takes by its name."""

_SHOWN = 20  # problems in a message

Row = tuple[str, list[str]]  # image, queries


@dataclass(frozen=True)
class Table:
    """Pictures and what to find in each."""

    path: Path
    """The file it was read from."""
    queries: dict[Path, tuple[str, ...]]
    """By absolute path of the picture, in the order of the file."""


def read_table(path: str | Path, *, kind: Any = "auto", template: str | None = None) -> Table:
    """Read queries per picture from CSV or JSON lines, see the module's header.

    Args:
        path: A file whose name ends in one of ``TABLE_SUFFIXES``.
        kind: Of all queries, see ``segment``.
        template: Every query is checked with it.

    Raises:
        SettingError: The file cannot be read or holds mistakes; it lists them all, with their lines. Whether the
            pictures are there is not asked: a run reports those that are not, and goes on.
    """
    path = Path(path)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise SettingError(f"{path}: expected a name that ends in {', '.join(TABLE_SUFFIXES)}.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise SettingError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8 text.") from error
    rows = _csv_rows if path.suffix.lower() in (".csv", ".tsv") else _json_rows
    folder = Path(os.path.abspath(path.parent))  # noqa: PTH100 - not resolve: a link's target has other neighbours
    found: dict[Path, dict[str, None]] = {}
    problems: list[str] = []
    for line, row in rows(text):
        if isinstance(row, str):
            problems.append(f"line {line}: {row}")
            continue
        image, queries = row
        problems += [f"line {line}: {wrong}" for wrong in _wrong(image, queries, kind, template)]
        picture = Path(os.path.normpath(folder / image))
        found.setdefault(picture, {}).update(dict.fromkeys(queries))
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = f"{len(problems)} mistake{'s' if len(problems) > 1 else ''}"
        raise SettingError(f"{path}: {count}: {'; '.join(problems[:_SHOWN])}{more}.")
    if not found:
        raise SettingError(f"{path}: holds no query. Expected rows of image,query, or lines of JSON with these names.")
    return Table(path, {picture: tuple(queries) for picture, queries in found.items()})


def _wrong(image: str, queries: list[str], kind: Any, template: str | None) -> Iterator[str]:
    if not image.strip():
        yield "the image is empty"
    elif "\0" in image:
        yield "the image's path holds a zero byte"
    for query in queries:
        try:
            segmentation_question(query, kind, template)
        except PromptError as error:
            yield str(error).rstrip(".")


def _csv_rows(text: str) -> Iterator[tuple[int, Row | str]]:
    """Give line numbers with rows, or with what is wrong there."""
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("image", "query") if header.count(name) != 1]
        if missing:
            yield 1, f"the header is {first.strip()!r:.100}, expected the columns image and query once each"
            return
        image, query = header.index("image"), header.index("query")
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                hint = ": put a query with a separator in it into double quotes" if len(fields) > len(header) else ""
                yield reader.line_num, f"{len(fields)} fields, the header has {len(header)}{hint}"
            else:
                yield reader.line_num, (fields[image].strip(), [fields[query].strip()])
    except csv.Error as error:
        yield reader.line_num, f"is not CSV ({error}); what follows was not read"


def _json_rows(text: str) -> Iterator[tuple[int, Row | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, _json_row(json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                hint = " (one object per line is expected, not one over all lines)" if number == 1 else ""
                yield number, f"is not JSON: {error}{hint}"


def _json_row(entry: Any) -> Row | str:
    if not isinstance(entry, dict):
        return f"is a JSON {_kind(entry)}, expected an object with image and query"
    image = entry.get("image")
    if not isinstance(image, str):
        return f"image is {_kind(image)}, expected a path" if "image" in entry else "image is missing"
    if ("query" in entry) == ("queries" in entry):
        return "has both query and queries, expected one of them" if "query" in entry else "query is missing"
    queries = [entry["query"]] if "query" in entry else entry["queries"]
    if not isinstance(queries, list) or not queries or not all(isinstance(query, str) for query in queries):
        name = "query" if "query" in entry else "queries"
        return f"{name} is {json.dumps(entry[name])[:60]}, expected {'words' if name == 'query' else 'a list of words'}"
    return image, [query.strip() for query in queries]


_KINDS: dict[type, str] = {list: "list", str: "text", int: "number", float: "number", bool: "true or false"}


def _kind(value: Any) -> str:
    return "nothing" if value is None else _KINDS.get(type(value), "object")
