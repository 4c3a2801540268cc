"""Rows of a run as JSON lines: every table can be computed again, and a killed run goes on where it stopped.

The first line is the run, every other one a row::

    {"self1e_rows": 1, "model": "nano", "protocol": "res.sentence", "dataset": "refcoco/val", ...}
    {"id": "refcoco/val/17-0", "failed": false, "I": 812, "U": 1024, ...}

A process that dies while it writes leaves half a line at the end. Readers drop it, and the writer cuts it off before
it goes on; half a line anywhere else is damage, and an error. Several processes write one file each.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from self1e.errors import DatasetError
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.protocols import Run, table

_VERSION = 1
_log = logging.getLogger(__name__)


class RowWriter:
    """Append rows to a file; each leaves the process before the next is computed, so that a crash loses none.

    >>> with RowWriter(path, run) as writer:                                # doctest: +SKIP
    ...     for sample in samples:
    ...         if sample.source not in writer.done:
    ...             writer.write(metric.update(sample.source, predict(sample), sample.mask))

    Args:
        path: The file; one that holds rows of the same run is continued.
        run: What is measured.

    Raises:
        DatasetError: The file holds another run's rows, or is damaged.
    """

    def __init__(self, path: str | Path, run: Run) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.done: set[str] = set()
        """Ids already written."""
        found = self.path.read_bytes() if self.path.is_file() else b""
        kept = found[: found.rfind(b"\n") + 1]
        if kept:
            _, rows = read_rows(self.path, run)
            self.done = {row["id"] for row in rows}
            if len(kept) < len(found):
                with self.path.open("r+b") as file:
                    file.truncate(len(kept))
        self._file = self.path.open("ab" if kept else "wb")
        if not kept:
            self._append({"self1e_rows": _VERSION, **asdict(run)})

    def write(self, row: Row) -> None:
        """Append one row.

        Raises:
            DatasetError: Its id is in the file already, or it holds what JSON cannot (NaN, arrays).
        """
        if row["id"] in self.done:
            raise DatasetError(f"{self.path}: sample {row['id']!r} is in the file already; skip those in `done`.")
        self._append(row)
        self.done.add(row["id"])

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, content: dict[str, Any]) -> None:
        try:
            line = json.dumps(content, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise DatasetError(
                f"{self.path}: {content.get('id', 'the run')!r} cannot be written as JSON ({error}): rows hold finite "
                "numbers, text, lists, true, false and null."
            ) from error
        # A model may write half of a surrogate pair; escaped it is valid JSON.
        self._file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        self._file.flush()


def read_rows(path: str | Path, run: Run | None = None) -> tuple[Run, list[Row]]:
    """Read one file of rows.

    Args:
        path: Written by ``RowWriter``.
        run: If given, the file must be of this run.

    Returns:
        The run and its rows, in the order of the file. Half a line at the end is dropped, with a warning in the log.

    Raises:
        DatasetError: No such file; no rows; another run's; damaged before the end; the same sample twice.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"No file {path}; expected rows written by an evaluation.")
    *lines, torn = path.read_bytes().split(b"\n")
    if torn:
        _log.warning("%s: the last line is half a row (%d bytes); it is dropped.", path, len(torn))
    if not lines:
        raise DatasetError(f"{path} holds no complete line; delete it and evaluate again.")
    header, *rows = [_parse(path, number, line) for number, line in enumerate(lines, 1)]
    found = _run_of(path, header)
    if run is not None and found != run:
        ours, theirs = asdict(run), asdict(found)
        differ = ", ".join(
            f"{name} {theirs[name]!r}, not {ours[name]!r}" for name in ours if ours[name] != theirs[name]
        )
        raise DatasetError(f"{path} holds rows of another run ({differ}): give each run a file of its own.")
    ids = set()
    for number, row in enumerate(rows, 2):
        if not isinstance(row.get("id"), str) or row["id"] in ids:
            raise DatasetError(f"{path}, line {number}: id {row.get('id')!r} is missing or stands there twice.")
        ids.add(row["id"])
    return found, rows


def table_of(paths: Iterable[str | Path]) -> tuple[Run, dict[str, Any]]:
    """Compute the figures of a run from the files of all of its processes.

    Raises:
        DatasetError: The files are of different runs, or share a sample.
    """
    run: Run | None = None
    rows: list[Row] = []
    for path in paths:
        run, found = read_rows(path, run)
        rows += found
    if run is None:
        raise DatasetError("No file of rows was given.")
    return run, table(run, rows)


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise DatasetError(
            f"{path}, line {number} is no JSON ({error}): the file is damaged before its end; delete it and evaluate "
            "again, or remove the line to compute its sample again."
        ) from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path}, line {number} holds {line[:40]!r}, expected an object.")
    return found


def _run_of(path: Path, header: dict[str, Any]) -> Run:
    version = header.pop("self1e_rows", None)
    names = {field.name for field in fields(Run)}
    if version != _VERSION or set(header) != names:
        raise DatasetError(
            f"{path} does not begin with the description of a run (version {version}, keys {', '.join(header):.80}); "
            f"expected version {_VERSION} with {', '.join(sorted(names))}: it was not written by this evaluation."
        )
    return Run(**header)
