"""What is trained on and what is held out: whole pictures, by seed, so that no picture is on both sides."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.own.records import OwnData
from self1e.data.sample import Sample
from self1e.errors import DatasetError


class Pictures(Sequence[Sample]):
    """Own data by picture: a picture that has several records, one per query, is one sample with all of its targets.

    Args:
        data: What `open_data` returns.
        groups: Per picture the numbers of its records; None for all pictures, in the order of their first records.
    """

    def __init__(self, data: OwnData, groups: Sequence[tuple[int, ...]] | None = None) -> None:
        self.data = data
        self.groups = _group(data) if groups is None else tuple(groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        first, *more = (self.data[number] for number in self.groups[index])
        if not more:
            return first
        targets = [target for sample in (first, *more) for target in sample.targets]
        lists = [sample.extra.get("absent", ()) for sample in (first, *more)]
        # What one record does not have, another may.
        there = {target.text for target in targets}
        absent = dict.fromkeys(name for names in lists for name in names if name not in there)  # type: ignore[attr-defined]
        return replace(first, targets=tuple(targets), extra={**first.extra, "absent": tuple(absent)})

    def first(self) -> tuple[Path, str]:
        """Return the path of the first picture that can be read, and words for something in it.

        Or for something that is not in it, if nothing is.
        """
        for number, group in enumerate(self.groups):
            try:
                targets = self[number].targets
            except DatasetError:  # it could be read when the run began
                continue
            there = [target.text for target in targets if target.mask.any()] or [target.text for target in targets]
            if there:
                return self.data.records[group[0]].picture, there[0]
        return self.data.records[self.groups[0][0]].picture, "the thing"

    def fingerprint(self) -> str:
        """Hash what is noted: words, outlines, mask files, names of pictures.

        Not the pictures themselves: one that cannot be read any more is passed over, and is no other data.
        """
        digest = hashlib.sha256()
        for number in (number for group in self.groups for number in group):
            record = self.data.records[number]
            for part in (record.picture.name, record.where, record.names, record.size_wh, *_noted(record.annotation)):
                digest.update(part if isinstance(part, bytes) else f"{part!r}\n".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    def hold_out(self, share: float, *, seed: int) -> tuple[Pictures, Pictures]:
        """Divide into what is trained on and what is not.

        Args:
            share: Of the pictures, 0..1; at least one is held out and one kept, if there are two.
            seed: Of the choice.

        Returns:
            The two parts, both in the data's order.
        """
        count = len(self)
        out = min(max(1, round(share * count)), count - 1)
        chosen = set(np.random.default_rng((seed, count)).permutation(count)[:out].tolist())
        parts = ([self.groups[i] for i in range(count) if (i in chosen) is wanted] for wanted in (False, True))
        kept, held = (Pictures(self.data, groups) for groups in parts)
        return kept, held


def _group(data: OwnData) -> tuple[tuple[int, ...], ...]:
    groups: dict[str, list[int]] = {}
    for number, record in enumerate(data.records):
        groups.setdefault(_identity(record.picture), []).append(number)
    return tuple(tuple(numbers) for numbers in groups.values())


def _identity(picture: Path) -> str:
    """Follow links, which may go round in circles; a name that no file can have stays as it is."""
    try:
        return os.path.realpath(picture)
    except (OSError, ValueError):
        return str(picture)


def _noted(value: Any) -> Iterator[Any]:
    """Take an annotation apart: what stands in it, and the bytes of the files that it names."""
    if isinstance(value, Path):
        try:
            with value.open("rb") as file:
                yield hashlib.file_digest(file, "sha256").digest()
        except (OSError, ValueError) as error:
            yield type(error).__name__
    elif is_dataclass(value):
        yield type(value).__name__
        for field in fields(value):
            yield from _noted(getattr(value, field.name))
    elif isinstance(value, tuple):
        yield len(value)
        for part in value:
            yield from _noted(part)
    else:
        yield value
