"""Like beside like: the order of an epoch changed inside small windows, so that little of a micro-batch is padding.

A window is a run of whole micro-batches of the epoch's own order. Its items are sorted by estimated length, dealt out,
each micro-batch keeping at least one item with a mask, and the micro-batches shuffled::

    the epoch     a-- b------ c--- | d- e------ f-- | g------- h-- i- | ...        - token   | micro-batch
    bucketed      i-- d- a-- | h-- f-- c--- | g------- e------ b------ | ...       one window = 3 micro-batches

Which window an item is in does not change: over a window, the run sees what it would have seen. The order depends on
seed, epoch and window alone, never on machines, processes or workers, and nothing has to be read to find item ``i``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from self1e.data.epoch import Epoch
from self1e.data.mixture import Item, Mixture
from self1e.data.sample import Outline
from self1e.errors import SettingError
from self1e.processing.image import choose_grid

WINDOW = 32
"""Micro-batches in a window. With the published 32 in an optimiser step, a step sees the pictures that it would have
seen without."""
LETTERS_PER_TOKEN = 4.5
"""Of English text in Qwen's tokenizer, about; it only weighs text against tiles."""


class Bucketed(Dataset[Item]):
    """A mixture in an order with little padding. Make it with `bucketed`.

    Items have to be taken in order, whole micro-batches at a time, as from an `Epoch`.
    """

    def __init__(
        self,
        items: Mixture,
        *,
        micro_batch: int,
        window: int = WINDOW,
        max_tiles: int = 1,
        tile_size: int = 448,
        tokens_per_tile: int = 256,
    ) -> None:
        if micro_batch < 1 or window < 1:
            raise SettingError(f"micro_batch={micro_batch} and window={window} must be at least 1.")
        if isinstance(items, Epoch) and items.with_masks and items.batch_size != micro_batch:
            raise SettingError(
                f"micro_batch={micro_batch}, but the epoch has a mask in every {items.batch_size} items; make both "
                "the same, or a micro-batch may have none."
            )
        self.items, self.micro_batch, self.window = items, micro_batch, window
        self.max_tiles, self.tile_size, self.tokens_per_tile = max_tiles, tile_size, tokens_per_tile
        self._known: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[self.original(index)]

    def original(self, index: int) -> int:
        """Say which item of the mixture is item ``index`` of this order."""
        if not 0 <= index < len(self):
            raise IndexError(f"Item {index} of {len(self)}.")
        window, place = divmod(index, self.window * self.micro_batch)
        if window not in self._known:
            # Two are enough for any loader that goes forward.
            self._known = dict([*self._known.items()][-1:]) | {window: self._order(window)}
        return self._known[window][place]

    def tokens(self, outline: Outline) -> float:
        """Estimate the length of an item's longest row, prompt left out."""
        rows, columns = 1, 1
        if self.max_tiles > 1 and outline.size_wh is not None:
            rows, columns = choose_grid(outline.size_wh, self.tile_size, self.max_tiles)
        return rows * columns * self.tokens_per_tile + outline.letters / LETTERS_PER_TOKEN

    def _order(self, window: int) -> list[int]:
        first = window * self.window * self.micro_batch
        indices = range(first, min(len(self), first + self.window * self.micro_batch))
        outlines = [self.items.peek(index, with_size=self.max_tiles > 1) for index in indices]
        sizes = [min(self.micro_batch, len(indices) - start) for start in range(0, len(indices), self.micro_batch)]
        batches = deal([self.tokens(outline) for outline in outlines], [o.has_mask for o in outlines], sizes)
        seed = (self.items.seed, getattr(self.items, "epoch", 0), window, _OWN_DICE)
        order = np.random.default_rng(seed).permutation(len(batches)).tolist()
        # A last micro-batch that is not full stays the last: the others would no longer begin where they should.
        order.sort(key=lambda number: len(batches[number]) < self.micro_batch)
        return [first + item for number in order for item in batches[number]]


_OWN_DICE = 7
"""Sets these random numbers apart from an item's own."""


def bucketed(items: Mixture, *, micro_batch: int | None = None, window: int = WINDOW, **tiles: Any) -> Bucketed:
    """Order a mixture so that micro-batches hold rows of like length; each still has a mask, if the epoch has enough.

    Args:
        items: Usually an `Epoch`; a data set that cannot outline its samples is read once more to be sorted.
        micro_batch: Items that one process collates at a time; None for an epoch's own.
        window: Micro-batches among which items change places.
        tiles: ``max_tiles``, ``tile_size``, ``tokens_per_tile``, if not those of one published tile.

    Raises:
        SettingError: ``micro_batch`` is missing, or not the epoch's.
    """
    if micro_batch is None:
        if not isinstance(items, Epoch):
            raise SettingError("Only an Epoch knows its micro-batch; give micro_batch.")
        micro_batch = items.batch_size
    return Bucketed(items, micro_batch=micro_batch, window=window, **tiles)


def deal(lengths: Sequence[float], has_mask: Sequence[bool], sizes: Sequence[int]) -> list[list[int]]:
    """Deal items into batches of like length, the longest first, each with a mask as far as there are any.

    Args:
        lengths: Of each item.
        has_mask: Of each item.
        sizes: Of the batches; together as many as there are items.

    Returns:
        Per batch the items in it, by number.
    """
    by_length = sorted(range(len(lengths)), key=lambda item: (-lengths[item], item))
    masked, others = ([item for item in by_length if has_mask[item] is wanted] for wanted in (True, False))
    batches, room = [], len(lengths)
    for number, size in enumerate(sizes):
        room -= size
        longest = sorted(masked[:size] + others[:size], key=lambda item: (-lengths[item], item))[:size]
        wanted = sum(has_mask[item] for item in longest)
        kept = min(len(masked), len(sizes) - number - 1)  # one for each batch that follows
        most = min(size, len(masked) - kept)
        least = max(size - len(others), len(masked) - room, min(1, most))
        count = min(max(wanted, least), most)
        batches.append(masked[:count] + others[: size - count])
        masked, others = masked[count:], others[size - count :]
    return batches


def padding_share(batches: Iterable[Sequence[int]]) -> float:
    """Return the share of padding among all tokens, 0..1.

    Args:
        batches: Per batch the number of tokens of each row.
    """
    real = whole = 0
    for rows in batches:
        real += sum(rows)
        whole += len(rows) * max(rows, default=0)
    return 1 - real / whole if whole else 0.0
