"""What became of every picture of a folder run: ``manifest.jsonl``, a line of JSON per picture.

Lines are only ever appended, each when the picture's files are in place, so the file says what is finished whatever
ends the run. A picture that is done again gets a further line, and the last one counts::

    {"picture": "a/street.jpg", "status": "done", "source": "photos/a/street.jpg", "stamp": [183920, 1731580000...],
     "settings": {"model": "nano", "weights": "5be1...", "threshold": 0.0, ...}, "size_wh": [1280, 720],
     "queries": [{"query": "the cyclist", "score": 0.91, "area": 20412}], "files": ["a/street.jpg.mask0.png"]}
    {"picture": "b/broken.jpg", "status": "failed", ..., "error": "is cut short, or damaged: ..."}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Literal

from self1e.errors import OutputError
from self1e.locking import lock

NAME = "manifest.jsonl"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One picture's line."""

    picture: str
    """Its path below the folder that was segmented, with ``/``: the beginning of its files' names, too."""
    status: Literal["done", "failed"]
    source: str
    """Where it was read."""
    stamp: tuple[int, int] | None = None
    """Bytes of its file and time of its last change in nanoseconds: another file is another picture."""
    settings: dict[str, Any]
    """All else that decides about the masks: model, weights, threshold ..."""
    queries: tuple[dict[str, Any], ...] = ()
    """``{"query": ...}`` each; if the picture is done also ``score`` 0..1 and ``area`` in pixels, 0 for "not there"."""
    size_wh: tuple[int, int] | None = None
    """Of the upright picture."""
    notes: tuple[str, ...] = ()
    """What a person might want to know about the picture, see ``open_picture``."""
    files: tuple[str, ...] = ()
    """Below the manifest's folder, with ``/``; of a failed picture, what an earlier run has left."""
    error: str = ""
    """Why it failed."""

    def line(self) -> bytes:
        """Write as a line of JSON."""
        content = {name: value for name, value in asdict(self).items() if value not in (None, (), "")}
        # A path whose bytes are not UTF-8 holds lone surrogates; written as \udcff they are valid JSON.
        return (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")

    @classmethod
    def read(cls, line: bytes) -> Record:
        """Read a line; raises ValueError if it is none of ours."""
        content = json.loads(line)
        if not isinstance(content, dict) or content.get("status") not in ("done", "failed"):
            raise ValueError("not a record")
        known = {field.name for field in fields(cls)}
        content = {name: _frozen(value) for name, value in content.items() if name in known}
        record = cls(**content)
        # Old files are removed by these names: they must not lead out of the folder.
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in record.files):
            raise ValueError("files outside the folder")
        return record


class Manifest:
    """The manifest of a folder, open for one run: no second one can write to the folder meanwhile.

    A last line that a kill or a full disk has torn is cut off; a line that cannot be read is left where it is, and
    its picture counts as not done.

    Args:
        folder: Is made if it is not there.

    Raises:
        OutputError: The folder cannot be written to, or another run is writing to it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}. Choose another folder.") from error
        try:
            self._lock()
            content = self._whole_lines()
        except BaseException:
            os.close(self._file)
            raise
        self.records: dict[str, Record] = {}
        """The last record of each picture."""
        self.unreadable = 0
        """Lines that were not understood."""
        for line in content.splitlines():
            try:
                record = Record.read(line)
            except (ValueError, TypeError):
                self.unreadable += 1
            else:
                self.records[record.picture] = record

    def append(self, record: Record) -> None:
        """Add a record, in one write."""
        line = record.line()
        written = os.write(self._file, line)
        if written < len(line):  # a disk that has become full: the next opening cuts the torn line off
            raise OSError(28, "No space left on device", str(self.path))
        self.records[record.picture] = record

    def close(self) -> None:
        """Close, and let others in."""
        os.close(self._file)

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            lock(self._file, inherited=True)
        except (BlockingIOError, PermissionError) as error:
            raise OutputError(
                f"{self.path.parent}: another run is writing to this folder. Wait for it, or choose another folder."
            ) from error

    def _whole_lines(self) -> bytes:
        """Read the file, cut off what follows the last line's end, and stand there."""
        os.lseek(self._file, 0, os.SEEK_SET)
        with os.fdopen(os.dup(self._file), "rb") as file:
            content = file.read()
        end = content.rfind(b"\n") + 1
        os.ftruncate(self._file, end)
        os.lseek(self._file, end, os.SEEK_SET)
        return content[:end]


class Draft:
    """Stands for the manifest in a process that must not write to it: its records go to the one that may.

    Args:
        folder: Of the manifest.
        records: What that says about the pictures to be done.
    """

    def __init__(self, folder: Path, records: dict[str, Record]) -> None:
        self.path = folder / NAME
        self.records = records

    def append(self, record: Record) -> None:
        """Keep a record."""
        self.records[record.picture] = record


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
