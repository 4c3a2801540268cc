"""What is trained on and what is held out: whole pictures, by seed, so that no picture is on both sides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from self1e.data.own.records import OwnData
from self1e.data.sample import Sample


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
        """Return the path of the first picture, and words for something that is in it (or is not, if nothing is)."""
        targets = self[0].targets
        there = [target.text for target in targets if target.mask.any()] or [target.text for target in targets]
        return self.data.records[self.groups[0][0]].picture, (there or [""])[0]

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
        groups.setdefault(str(record.picture.resolve()), []).append(number)
    return tuple(tuple(numbers) for numbers in groups.values())
