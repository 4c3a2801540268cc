"""Rows of words as tensors: what the host knows, brought to the device in two copies, before anything is computed.

Lengths are data, shapes are not: whatever depends on a length (positions, who sees whom, what is read) is computed from
`Rows.lengths` on the device, so nothing waits for it, and one compiled graph serves all rows of a shape. `Buckets`
keeps the number of shapes small.

Shapes: B rows, one query each; U pairs of picture and length among them; n words of the longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_WORDS = 16


@dataclass(frozen=True)
class Buckets:
    """Sizes that are rounded up, so that a compiled graph is met again."""

    rows: tuple[int, ...] = _ROWS
    """Numbers of rows; more than the last are taken in multiples of it. A third is wasted at worst."""
    words: int = _WORDS
    """Words per row, in multiples of this."""

    def round_rows(self, count: int) -> int:
        """The next number of rows that is used."""
        largest = self.rows[-1]
        return next((size for size in self.rows if size >= count), -(-count // largest) * largest)

    def round_words(self, count: int) -> int:
        """The next length that is used."""
        return -(-count // self.words) * self.words


@dataclass(frozen=True)
class Rows:
    """Rows on the device. Rows and words that only fill a bucket are copies of the first row, and 0."""

    ids: Tensor
    """Words, padded on the right by anything, int64 ``(B, n)``."""
    lengths: Tensor
    """How many of them are real, int64 ``(B,)``."""
    picture_of_row: Tensor
    """int64 ``(B,)``."""
    first_of_row: Tensor | None
    """Which of the U pairs each row is, int64 ``(B,)``; None if row i is pair i."""
    first_lengths: Tensor
    """Length of each pair, int64 ``(U,)``."""
    first_pictures: Tensor
    """Picture of each pair, int64 ``(U,)``."""


def lay_out(
    words: Sequence[Sequence[int]], pictures: Sequence[int], device: torch.device, buckets: Buckets | None = None
) -> Rows:
    """Bring rows to a device.

    Args:
        words: Token ids per row, at least one each.
        pictures: Number of each row's picture.
        device: Where to.
        buckets: Round sizes up; None takes them as they are.
    """
    assert all(words), "a row has words: at least the end of its picture"
    lengths = [len(row) for row in words]
    pairs = list(zip(pictures, lengths, strict=True))
    firsts = list(dict.fromkeys(pairs))
    number = {pair: index for index, pair in enumerate(firsts)}
    longest = max(lengths)
    if buckets is not None:
        longest = buckets.round_words(longest)
    table = [
        [*row, *[0] * (longest - len(row)), len(row), pair[0], number[pair]]
        for row, pair in zip(words, pairs, strict=True)
    ]
    is_own = len(firsts) == len(table)
    if buckets is not None:
        table += [table[0]] * (buckets.round_rows(len(table)) - len(table))
        firsts += [firsts[0]] * (buckets.round_rows(len(firsts)) - len(firsts))
    rows, first = _upload(table, device), _upload(firsts, device)
    return Rows(rows[:, :-3], rows[:, -3], rows[:, -2], None if is_own else rows[:, -1], first[:, 1], first[:, 0])


def _upload(table: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Copy numbers to a device, without waiting for it."""
    found = torch.tensor(table)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found.to(device)
