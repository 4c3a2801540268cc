"""Pictures and truths of rows, read again from the benchmark's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.errors import DatasetError, Self1EError
from self1e.evaluation.benchmarks import find_benchmark
from self1e.evaluation.metrics.masks import split_truth
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.protocols import Run
from self1e.evaluation.saved_masks import decode_text_rle


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a sample looked like."""

    image: Image.Image
    words: str
    truth: np.ndarray | None = None
    """Bool ``(H, W)``; for class maps labels ``(H, W)``; None for questions."""
    prediction: np.ndarray | None = None
    """The same; None if the rows hold no masks, or the model failed."""
    ignored: np.ndarray | None = None
    """Bool ``(H, W)``."""
    classes: tuple[str, ...] = ()
    """Names of the labels of a class map."""


class Truths:
    """Reads a benchmark again, picture by picture; remembers the last one.

    Args:
        run: Of the rows.
        data: Folders in which data are looked for.

    Raises:
        DatasetError: The data are missing, or are not those that were measured.
    """

    def __init__(self, run: Run, data: Sequence[Path]) -> None:
        from self1e.evaluation.runner import open_benchmark

        self.opened = open_benchmark(find_benchmark(run.dataset), data)
        if self.opened.annotations != run.annotations:
            raise DatasetError(
                f"{run.dataset}: the data at hand have annotations {self.opened.annotations}, the rows were measured "
                f"on {run.annotations}: give the folder of those data."
            )
        self._last: tuple[int, Any] | None = None

    def find(self, row: Row) -> Found | None:
        """Find picture, words and truth of a row; None if its picture cannot be read."""
        if not isinstance(row.get("unit"), int):
            return None
        try:
            unit = self._unit(row["unit"])
        except (Self1EError, OSError, IndexError):  # the last: fewer pictures than were measured
            return None
        if hasattr(unit, "labels"):
            return self._class_map(unit, row)
        return _target(unit, row) if hasattr(unit, "targets") else _question(unit, row)

    def _unit(self, index: int) -> Any:
        if self._last is None or self._last[0] != index:
            self._last = (index, self.opened.units[index])
        return self._last[1]

    def _class_map(self, unit: Any, row: Row) -> Found:
        labels = self.opened.units.label_set  # type: ignore[attr-defined]
        prediction = None
        if "map" in row:
            prediction = np.full(unit.labels.shape, len(labels.classes), np.int64)
            for number, rle in row["map"]:
                prediction[decode_text_rle(rle)] = number
        return Found(
            image=unit.image,
            words="",
            truth=unit.labels.astype(np.int64),
            prediction=prediction,
            ignored=unit.labels == labels.ignore,
            classes=tuple(labels.classes),
        )


def _target(unit: Any, row: Row) -> Found | None:
    number = row["id"].rpartition("-")[2]
    if not number.isdecimal() or int(number) >= len(unit.targets):
        return None
    target = unit.targets[int(number)]
    truth, ignored = split_truth(target.mask)
    if target.ignore is not None:
        ignored = ignored | target.ignore
    prediction = decode_text_rle(row["mask"]) if row.get("mask") else None
    if prediction is not None and prediction.shape != truth.shape:
        raise DatasetError(
            f"{row['id']}: the row's mask is {prediction.shape}, the picture {truth.shape}: the data changed."
        )
    return Found(image=unit.image, words=target.text, truth=truth & ~ignored, prediction=prediction, ignored=ignored)


def _question(unit: Any, row: Row) -> Found | None:
    one = next((asked for asked in unit if asked.id == row["id"]), None)
    return None if one is None else Found(image=one.image(), words=one.prompt)
