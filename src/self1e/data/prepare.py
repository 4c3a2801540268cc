"""Unpack what a user has downloaded of a public data set, and say whether it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from self1e.data.archives import Progress, Unpacked, read_marker, unpack
from self1e.data.sources import SOURCES, Expected, Source
from self1e.data.vqa import VQA_SETS, convert
from self1e.errors import DatasetError, SettingError, did_you_mean

State = Literal["ok", "there", "differs", "missing", "unreadable"]
"""``there``: its count is unknown, so it is not compared."""


@dataclass(frozen=True)
class Checked:
    """One expectation and what was found."""

    expected: Expected
    found: int | None
    """Files or records; None if there is nothing to count."""
    state: State


@dataclass
class Prepared:
    """What became of one data set."""

    source: Source
    unpacked: list[Unpacked] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """Archives and files that are neither there nor used before."""
    checked: list[Checked] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """All is there, in the expected numbers."""
        return all(one.state in ("ok", "there") for one in self.checked)

    def to_json(self) -> dict[str, Any]:
        """Return all of it as JSON has it."""
        return {
            "name": self.source.name,
            "page": self.source.page,
            "licence": self.source.licence,
            "complete": self.is_complete,
            "unpacked": [vars(one) for one in self.unpacked],
            "downloads_missing": self.absent,
            "expected": [
                {
                    "path": one.expected.path,
                    "unit": one.expected.unit,
                    "expected": one.expected.count,
                    "found": one.found,
                    "state": one.state,
                }
                for one in self.checked
            ],
        }


def find_source(name: str) -> Source:
    """Return a data set by its name.

    Raises:
        SettingError: There is none.
    """
    if name not in SOURCES:
        hint = did_you_mean(name, SOURCES)
        raise SettingError(f"Unknown data set {name!r}.{hint} Known: {', '.join(SOURCES)}.")
    return SOURCES[name]


def prepare(
    name: str, root: Path, downloads: Path | None = None, *, progress: Progress = lambda things, _: things
) -> list[Prepared]:
    """Unpack and verify a data set, and before it those whose pictures it needs.

    Run it again at any time: what is unpacked is not unpacked again, and a run that was stopped goes on.

    Args:
        name: A key of `SOURCES`.
        root: Folder of all data sets, in the published layout.
        downloads: Where the archives lie; the root if None. They are not deleted.
        progress: Is told what is gone through.

    Raises:
        SettingError: There is no such data set.
        DatasetError: An archive is damaged or dangerous.
    """
    source = find_source(name)
    done = [one for needed in source.needs for one in prepare(needed, root, downloads, progress=progress)]
    result = Prepared(source)
    for archive in source.archives:
        path, folder = (downloads or root) / archive.name, root / archive.into
        if path.is_file():
            result.unpacked.append(unpack(path, folder, strip=archive.strip, progress=progress))
        else:
            before = read_marker(path, folder)
            if before is None:
                result.absent.append(archive.name)
            else:
                result.unpacked.append(before)
    if name in VQA_SETS:
        _make_lines(result, root, downloads or root)
    result.checked = [verify(expected, root) for expected in source.expected]
    return [*done, result]


def _make_lines(result: Prepared, root: Path, downloads: Path) -> None:
    """Turn official questions into the published training file, if it is not there and they are."""
    chosen, name = VQA_SETS[result.source.name], result.source.name
    data = root.absolute().parent / "data"
    if (data / chosen.lines).is_file():
        return
    # In a folder of the set's own: some are called just train.json.
    files = [downloads / name / file for file in chosen.downloads]
    result.absent += [f"{name}/{file.name}" for file in files if not file.is_file()]
    if not result.absent:
        convert(name, files, data)


def verify(expected: Expected, root: Path) -> Checked:
    """Count what is there."""
    path = (root.absolute().parent if expected.path.startswith("data/") else root) / expected.path
    if not (path.is_dir() if expected.unit == "files" else path.is_file()):
        return Checked(expected, None, "missing")
    if expected.unit == "file":
        return Checked(expected, None, "there")
    try:
        found = _count_files(path, expected.suffix) if expected.unit == "files" else _count_records(path, expected.key)
    except DatasetError:
        return Checked(expected, None, "unreadable")
    if expected.count is None:
        return Checked(expected, found, "there" if found else "missing")
    return Checked(expected, found, "ok" if found == expected.count else "differs")


def _count_files(folder: Path, suffix: str) -> int:
    """Count files of any depth: SAIAPR has folders within folders."""
    return sum(name.endswith(suffix) and not name.startswith(".") for _, _, names in os.walk(folder) for name in names)


def _count_records(path: Path, key: str) -> int:
    if path.suffix == ".jsonl":
        with path.open("rb") as lines:
            return sum(bool(line.strip()) for line in lines)
    try:
        content = json.loads(path.read_text("utf-8"))
        return len(content[key] if key else content)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(f"{path}: cannot be counted: {error}.") from error
