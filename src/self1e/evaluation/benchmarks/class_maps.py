"""Pictures with a class number per pixel: reading them, and finding class maps of another kind before a model runs.

Three ways to store labels are in use::

    "mapped"    labels 0..C-1 and the set's `ignore`
    "zero"      0 is unlabelled, k is class k - 1
    other       a table from what is stored to labels (the 459 numbers of Pascal Context, for its 59 classes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from self1e.data.files import read_label_map, read_rgb, read_size
from self1e.data.mat_files import read_mat
from self1e.errors import DatasetError, Self1EError
from self1e.evaluation.metrics.semantic import LabelSet

MAT_NAME = "LabelMap"
_LOOKED_AT = 16  # maps that are decoded before a run


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with its class map."""

    source: str
    image: Image.Image
    labels: np.ndarray
    """0..C-1 and the set's ``ignore``, ``(H, W)``."""


@dataclass(frozen=True, eq=False)
class Found:
    """Files of a set."""

    files: dict[str, tuple[Path, Path]]
    """Picture and class map of each, by name."""
    stored: Literal["mapped", "zero"] | np.ndarray = "mapped"
    """How labels are stored; or ``table[stored]``, the label of each number."""
    voc_maps: Path | None = None
    """Maps of VOC's 20 classes about some of the pictures, to see whether names and numbers belong together."""
    voc_labels: tuple[int, ...] = ()
    """Label of each of VOC's 20 classes."""


class ClassMaps(Sequence[LabelledPicture]):
    """Unit ``i`` is picture ``i`` by name.

    Args:
        labels: Its classes.
        split: Names the pictures in messages.
        found: Its files.
    """

    def __init__(self, labels: LabelSet, split: str, found: Found) -> None:
        self.label_set, self.split, self.found = labels, split, found
        self.files = found.files
        self.names = sorted(found.files)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledPicture:  # type: ignore[override]  # no slices
        source = self.source(index)
        image = read_rgb(self.files[self.names[index]][0], source)
        return LabelledPicture(source, image, self.labels(index, image.size))

    def source(self, index: int) -> str:
        """Name of a unit."""
        return f"{self.label_set.name}/{self.split}/{self.names[index]}"

    def labels(self, index: int, size_wh: tuple[int, int] | None = None) -> np.ndarray:
        """Read a class map; its picture is not needed.

        Raises:
            DatasetError: It is missing, or holds other classes.
        """
        path, source = self.files[self.names[index]][1], self.source(index)
        stored = self._stored(path, source, size_wh)
        if stored.dtype.kind not in "ui" or (stored.size and not 0 <= int(stored.min()) <= int(stored.max()) < 2**16):
            raise DatasetError(
                f"{source}: {path} holds {stored.dtype} from {stored.min()} to {stored.max()}, expected whole numbers "
                "of at most 16 bits: it is no class map of this set."
            )
        stored = stored.astype(np.uint16) if stored.dtype.kind == "i" or self.label_set.ignore > 255 else stored
        if isinstance(self.found.stored, np.ndarray):
            return self._by_table(stored, self.found.stored, path, source)
        if self.found.stored == "zero":
            return self.label_set.from_stored(stored)
        count, ignore = len(self.label_set.classes), self.label_set.ignore
        wrong = sorted(set(np.unique(stored).tolist()) - {ignore, *range(count)})
        if wrong:
            raise DatasetError(
                f"{source}: {path} holds the labels {wrong[:5]}, expected 0 to {count - 1} or {ignore}: it belongs to "
                "another class list."
            )
        return stored.astype(self.label_set.dtype)

    def _stored(self, path: Path, source: str, size_wh: tuple[int, int] | None) -> np.ndarray:
        if path.suffix != ".mat":
            return read_label_map(path, source, size_wh or read_size(path, source))
        stored = read_mat(path, MAT_NAME)
        if stored.ndim != 2 or (size_wh is not None and stored.shape != size_wh[::-1]):
            told, wanted = ("x".join(map(str, size)) for size in (stored.shape[::-1], size_wh or ("width", "height")))
            raise DatasetError(f"{source}: {path} is {told} but the picture {wanted}; they must be the same size.")
        return stored

    def _by_table(self, stored: np.ndarray, table: np.ndarray, path: Path, source: str) -> np.ndarray:
        if stored.size and int(stored.max()) >= len(table):
            raise DatasetError(
                f"{source}: {path} holds {stored.max()}, expected 0 to {len(table) - 1}: it belongs to another set."
            )
        return table[stored].astype(self.label_set.dtype)

    def missing(self) -> list[str]:
        """Paths of files that are not there."""
        return [str(path) for name in self.names for path in self.files[name] if not path.is_file()]

    def wrong(self) -> tuple[str, ...]:
        """Look at some maps: what is wrong with them is better known before a model has run for hours."""
        count = min(len(self), _LOOKED_AT)
        for index in (len(self) * k // count for k in range(count)):
            try:
                self.labels(index, self._size(index))
            except Self1EError as error:
                return (f"{error} Looked at {count} of {len(self)} class maps.",)
        return self._other_order()

    def _size(self, index: int) -> tuple[int, int] | None:
        """Size of a picture; None if it cannot be read, which is one wrong sample and no reason to stop."""
        try:
            return read_size(self.files[self.names[index]][0], self.source(index))
        except DatasetError:
            return None

    def _other_order(self) -> tuple[str, ...]:
        """Compare with VOC's own maps of the same pictures: what they call a cat must be a cat here too."""
        folder = self.found.voc_maps
        if folder is None or not folder.is_dir():
            return ()
        there = [k for k, name in enumerate(self.names) if (folder / f"{name}.png").is_file()]
        same = other = 0
        for index in there[:: max(1, len(there) // _LOOKED_AT)]:
            labels = self.labels(index)
            known = read_label_map(folder / f"{self.names[index]}.png", self.source(index), labels.shape[::-1])
            for k, label in enumerate(self.found.voc_labels, 1):
                here = labels[known == k]
                here = here[here != self.label_set.ignore]
                same += int(np.count_nonzero(here == label))
                other += int(np.count_nonzero(here != label))
        if same >= other:
            return ()
        return (
            f"{self.files[self.names[0]][1].parent} numbers its classes in another order than {self.label_set.name}: "
            f"of what {folder} names, {100 * same / (same + other):.0f} % has the same name here. Labels must follow "
            f"the order {', '.join(self.label_set.classes[:3])} ...; some preparation scripts take that of "
            "59_labels.txt, or keep 0 for the background.",
        )
