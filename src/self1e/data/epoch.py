"""One epoch as published: every item of every part, in a random order, with a [SEG] in every micro-batch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from self1e.data.files import peek
from self1e.data.mixture import Item, Mixture, Part
from self1e.data.sample import Outline
from self1e.errors import DatasetError, SettingError, did_you_mean


class Epoch(Mixture):
    """A `Mixture` that shows each item of a part as often as the part's weight says, and no other.

    The last item of each micro-batch is replaced by one drawn from the parts with masks, so that each micro-batch has
    a [SEG] (METHOD section 7.1). It is drawn before anything is read: nothing is loaded to be thrown away. Items have
    to be taken in order, whole micro-batches at a time, as `Self1ETrainer` does on any number of processes.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        *,
        with_masks: Collection[str] = (),
        batch_size: int = 5,
        queries: int = 3,
        questions: int = 1,
        seed: int = 0,
        epoch: int = 0,
        **words: Any,
    ) -> None:
        """Describe the epoch.

        Args:
            parts: By name; a part's weight is a whole number, its copies.
            with_masks: Names of the parts that replacements are drawn from, in proportion to their items; none
                replaces nothing.
            batch_size: Items in a micro-batch; published: 5.
            queries: Most mask queries per picture, drawn without replacement; published: 3.
            questions: Most text questions per picture.
            seed: Another seed is another order, other queries, other words.
            epoch: Another epoch too.
            words: What else `Mixture` takes: ``validation_prompt``, ``answers``.

        Raises:
            SettingError: A weight is no whole number, a part is unknown, or the micro-batch holds nothing.
        """
        for name, part in parts.items():
            if part.weight < 1 or part.weight != int(part.weight):
                raise SettingError(
                    f"The weight of {name!r} is {part.weight}, expected a whole number of copies from 1."
                )
        for name in with_masks:
            if name not in parts:
                raise SettingError(f"with_masks names {name!r}, which is no part.{did_you_mean(name, parts)}")
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size} must be at least 1.")
        self.counts = {name: len(part.samples) * int(part.weight) for name, part in parts.items()}
        super().__init__(
            parts, length=sum(self.counts.values()), queries=queries, questions=questions, seed=seed, **words
        )
        self.with_masks, self.batch_size, self.epoch = tuple(with_masks), batch_size, epoch
        self._order = np.random.default_rng((seed, epoch)).permutation(self.length)

    def __getitem__(self, index: int) -> Item:
        if not 0 <= index < self.length:
            raise IndexError(f"Item {index} of an epoch of {self.length}.")
        rng = self._rng(index)
        part, position = self._draw(index, rng)
        for step in range(len(part.samples)):
            item = self._item(part, (position + step) % len(part.samples), rng)
            if item.rows:  # a picture may have no label at all: then the next one is shown
                return item
        raise DatasetError(f"No picture of the part around {item.source} has a query or a question; remove the part.")

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline the sample that item ``index`` shows; one of a part ``with_masks`` has a mask."""
        part, position = self._draw(index, self._rng(index))
        outline = peek(part.samples, position, with_size=with_size)
        return replace(outline, has_mask=True) if any(part is self.parts[name] for name in self.with_masks) else outline

    def _rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, index))

    def _draw(self, index: int, rng: np.random.Generator) -> tuple[Part, int]:
        is_last = index % self.batch_size == self.batch_size - 1 or index == self.length - 1
        if self.with_masks and is_last:
            counts = {name: self.counts[name] for name in self.with_masks}
            return self._locate(counts, int(rng.integers(sum(counts.values()))))
        return self._locate(self.counts, int(self._order[index]))

    def _locate(self, counts: Mapping[str, int], position: int) -> tuple[Part, int]:
        """Find item ``position`` of the parts laid end to end, copy after copy."""
        ends = np.cumsum(list(counts.values()))
        which = int(np.searchsorted(ends, position, side="right"))
        part = self.parts[list(counts)[which]]
        return part, (position - int(ends[which])) % len(part.samples)
