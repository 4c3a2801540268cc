"""Which items a step sees, and which process takes which of them: by index, so that nothing is read to be skipped.

With ``G`` items per step, step ``s`` sees items ``s * G`` to ``(s + 1) * G - 1``, on any number of processes; each
takes a contiguous share, a micro-batch after the other. Two processes, 2 items in a micro-batch, 2 micro-batches::

    item       0 1 2 3 4 5 6 7 | 8 9 ...
    process    0 0 0 0 1 1 1 1 | 0 0
    micro      0 0 1 1 0 0 1 1 | 0 0
    step       0               | 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import Dataset, Sampler

from self1e.errors import SettingError


class GlobalBatches(Sampler[list[int]]):
    """Indices of one process's micro-batches, step after step. Items that fill no whole step are left out.

    Args:
        length: Items of the data set.
        batch_size: Items in a micro-batch of one process.
        accumulation: Micro-batches of one process in a step.
        processes: How many share each step.
        process: Which of them this is.

    Raises:
        SettingError: There are fewer items than one step sees.
    """

    drop_last = True

    def __init__(
        self, length: int, *, batch_size: int, accumulation: int = 1, processes: int = 1, process: int = 0
    ) -> None:
        self.batch_size, self.accumulation = batch_size, accumulation
        self.processes, self.process = processes, process
        self.steps = length // self.global_batch
        if self.steps < 1:
            raise SettingError(
                f"The data set has {length} items, and one step sees {self.global_batch} ({processes} process(es), "
                f"{accumulation} micro-batch(es) of {batch_size}); make the batch smaller, or add data."
            )

    @property
    def global_batch(self) -> int:
        """Items that all processes see in one step."""
        return self.batch_size * self.accumulation * self.processes

    def indices(self, step: int, micro: int, process: int | None = None) -> list[int]:
        """Return the items of one micro-batch of one process, by default this one."""
        process = self.process if process is None else process
        first = step % self.steps * self.global_batch + (process * self.accumulation + micro) * self.batch_size
        return list(range(first, first + self.batch_size))

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.steps):
            for micro in range(self.accumulation):
                yield self.indices(step, micro)


class Epochs(Dataset[Any]):
    """Several epochs, one behind the other: item ``i`` of the run is item ``i % n`` of epoch ``i // n``.

    A run over it is one pass, whatever its epochs: it can stop and go on anywhere.

    Args:
        make_epoch: Makes epoch ``e``, for example ``lambda e: Epoch(parts, epoch=e)``; all are of one length. For
            worker processes that are spawned, not forked, it has to be a function that can be pickled.
        count: Epochs.
        multiple: Each epoch is cut to a multiple of so many items (those of a step), so that no step holds items of
            two epochs and micro-batches keep their places; the items that are left out are others in each epoch.

    Raises:
        SettingError: ``count`` is below 1, or an epoch is shorter than ``multiple``.
    """

    def __init__(self, make_epoch: Callable[[int], Any], count: int, *, multiple: int = 1) -> None:
        if count < 1:
            raise SettingError(f"epochs={count} must be at least 1.")
        self.make_epoch, self.count = make_epoch, count
        self._epoch: int = 0
        self._items = make_epoch(0)
        whole = len(self._items)
        self.epoch_length = whole // multiple * multiple
        if self.epoch_length < 1:
            raise SettingError(f"An epoch has {whole} items, fewer than the {multiple} of one step; add data.")

    def __len__(self) -> int:
        return self.count * self.epoch_length

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"Item {index} of {self.count} epochs of {self.epoch_length}.")
        epoch, position = divmod(index, self.epoch_length)
        if epoch != self._epoch:  # only one is kept: its order alone can be millions of numbers
            self._items, self._epoch = self.make_epoch(epoch), epoch
        return self._items[position]
