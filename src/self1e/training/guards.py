"""Pictures that cannot be read: a few are passed over, and named."""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Dataset

from self1e.errors import DatasetError, PictureError, SettingError

logger = logging.getLogger(__name__)

# Pillow says SyntaxError of a PNG whose chunks are broken.
UNREADABLE = (DatasetError, PictureError, OSError, SyntaxError)
"""What a data set raises where a file is missing or damaged."""


_MENDED = "could not be read, and now can"


class Guarded(Dataset[Any]):
    """A data set in which a few items may be unreadable: the next readable one is shown in place of each.

    Which one that is depends on the index alone, so a run that is resumed sees the same items. Each distinct problem
    is logged once and counted once, over all worker processes and epochs, from the start of this process on;
    `Self1ETrainer` counts over all processes that train.

    Args:
        dataset: Index-addressable. An item that raises `DatasetError`, `PictureError` or `OSError` is unreadable.
        most: Distinct problems that are passed over; the next one is an error that lists them all.
        stride: How far the next item is: the items of a micro-batch where places in it have a meaning (`Epoch`).

    Raises:
        SettingError: ``most`` is negative, or ``stride`` below 1.
    """

    def __init__(self, dataset: Any, *, most: int = 10, stride: int = 1) -> None:
        if most < 0 or stride < 1:
            raise SettingError(f"most={most} and stride={stride}: expected at least 0 and at least 1.")
        self.dataset, self.most, self.stride = dataset, most, stride
        # Workers add to it, whatever way they were started: hash of the problem, and the item that had it.
        self._known = torch.full((most + 1, 2), -1, dtype=torch.int64).share_memory_()
        self._lock = multiprocessing.get_context().Lock()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        length = len(self)
        for step in range(length):
            item = (index + step * self.stride) % length
            try:
                return self.dataset[item]
            except UNREADABLE as error:
                self._note(item, error)
        raise DatasetError("No item of the data set can be read.")

    def count(self) -> int:
        """Count the distinct problems so far."""
        return int((self._known[:, 1] >= 0).sum())

    def check(self, problems: Iterable[tuple[int, str]]) -> None:
        """Hold problems, of this process or of all, to the limit.

        Args:
            problems: Items with what was wrong with them; the same problem may be there several times.

        Raises:
            TooManyUnreadable: Too many are different; the message lists them.
        """
        different: dict[str, int] = {}
        for item, text in problems:
            different.setdefault(text if text != _MENDED else f"{item} {text}", item)
        if len(different) > self.most:
            listed = "".join(f"\n  item {item}: {text}" for text, item in different.items())
            raise TooManyUnreadable(
                f"{len(different)} items cannot be read, and {self.most} may be passed over; "
                f"repair or remove them, or allow more:{listed}"
            )

    def problems(self) -> list[tuple[int, str]]:
        """List the items that were passed over, with what was wrong with them (they are read once more)."""
        found = []
        for _, item in self._known.tolist():
            if item >= 0:
                try:
                    self.dataset[item]
                except UNREADABLE as error:
                    found.append((item, _describe(error)))
                else:
                    found.append((item, _MENDED))
        return found

    def _note(self, item: int, error: BaseException) -> None:
        problem = _describe(error)
        key = int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=7).digest(), "big")
        with self._lock:
            keys = self._known[:, 0].tolist()
            if key in keys:
                return
            place = keys.index(-1) if -1 in keys else self.most
            self._known[place] = torch.tensor((key, item))
        if place < self.most:
            logger.warning(
                "Item %d cannot be read and is passed over (%d of %d): %s", item, place + 1, self.most, problem
            )
            return
        self.check(self.problems())


class TooManyUnreadable(DatasetError):
    """More items cannot be read than may be passed over."""


def _describe(error: BaseException) -> str:
    return f"{error}" or type(error).__name__
