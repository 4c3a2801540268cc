"""What a benchmark is: a name, units to go through, how one of them is measured, and what the numbers mean.

A **unit** is what shares one encoding, usually a picture with everything that is asked about it. The runner shares
units out over processes, calls ``measure`` for each, and writes the rows. Tables come from rows alone
(`self1e.evaluation.dump`), so a benchmark holds no figures.

To add one, write ``open``, ``measure`` and ``failed``, and name it in `self1e.evaluation.benchmarks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from self1e.evaluation.metrics.rows import Row

Answer = Literal["teacher-forced", "generated"]
ANSWERS: dict[str, tuple[Answer, ...]] = {
    "tf": ("teacher-forced",),
    "gen": ("generated",),
    "both": ("teacher-forced", "generated"),
}
"""What ``--answer`` takes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the model is asked; the same for every unit of a run."""

    answer: Answer = "teacher-forced"
    """Whether [SEG] is given, as published, or the model has to write it."""
    exact: Literal["auto", "folded", "plain"] = "auto"
    """See ``Self1E.segment``."""
    save_masks: bool = False
    """Whether rows hold the predicted masks, see `self1e.evaluation.saved_masks`."""


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A benchmark whose files were found."""

    units: Sequence[Any]
    """``units[i]`` is decoded on access, and always the same."""
    annotations: str
    """Hash of the files that hold the truth, see `hash_files`."""
    problems: tuple[str, ...] = ()
    """What is wrong with the data, found without decoding a picture: missing files."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One split of one data set, and how it is measured."""

    name: str
    """What the command line calls it: ``refcoco/val``."""
    protocols: tuple[str, ...]
    """Keys of ``PROTOCOLS`` that its rows can be read by; the first is the headline."""
    prompt: str
    """Id of the prompt template: part of the number."""
    open: Callable[[Path | None], Opened]
    """Find the files in the folder of all data; raises ``DatasetError``. Benchmarks that are drawn take None."""
    measure: Callable[[Any, Any, Options], list[Row]]
    """``measure(model, unit, options)``: one row per sample of the unit. What it raises becomes ``failed`` rows."""
    failed: Callable[[Opened, int], list[Row]]
    """``failed(opened, index)``: the same rows, as wrong answers, if unit ``index`` could not be read or measured."""
    explicit_protocols: tuple[str, ...] = ()
    """Come before ``protocols`` if the model says "not there" in another way than by an empty mask."""
    expected: int | tuple[int, ...] | None = None
    """Rows of the complete benchmark, if known; several where it has several editions."""
    expected_units: int | None = None
    """Units of the complete benchmark, if known."""
    answers: tuple[Answer, ...] = ("teacher-forced", "generated")
    """How it can be asked; questions are always answered in words of the model's own."""


def hash_files(paths: Iterable[Path]) -> str:
    """Hash files and their names, 12 hexadecimal digits; a large file by its size, first and last megabyte."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            if size <= 2**26:
                digest.update(file.read())
            else:
                digest.update(file.read(2**20))
                file.seek(-(2**20), 2)
                digest.update(file.read())
    return digest.hexdigest()[:12]


def hash_names(names: Iterable[str], text: str = "") -> str:
    """Hash a list of names, for truth that lies in as many files as there are pictures."""
    return hashlib.sha256("\n".join([text, *names]).encode()).hexdigest()[:12]
