"""What every metric is: one row per sample, and figures that are a function of the rows alone.

A row is a flat JSON object. ``update`` turns a prediction and its truth into a row, ``merge`` takes the rows of
another process, ``result`` computes the figures. So a file of rows recomputes every table, and it does not matter
how many processes wrote it: integers are summed as integers, floats by ``math.fsum``, which no order changes.

Figures are fractions in 0..1 (MME's scores alone are points), and None where the data leave them undefined.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from self1e.errors import DatasetError, SettingError

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Ratio:
    """A figure of the form "sum over sum", kept per unit so that it can be resampled.

    Units are what may be drawn again: samples, or what cannot be split (the two questions of an MME picture).
    """

    units: tuple[str, ...]
    """Names, N of them."""
    numerators: np.ndarray
    """Int64 or float64 ``(N,)``."""
    denominators: np.ndarray
    """Int64 ``(N,)``."""
    groups: tuple[str, ...]
    """What units belong together, e.g. the picture of a sentence; N names."""

    @property
    def value(self) -> float | None:
        """The figure; None if the denominators sum to 0."""
        below = _exact_sum(self.denominators)
        return _exact_sum(self.numerators) / below if below else None


def ratio(rows: Sequence[Row], numerators: Iterable[float], denominators: Iterable[float] | None = None) -> Ratio:
    """Build a ``Ratio`` whose units are rows; left out, the denominators are 1 each (a mean)."""
    above = np.array(list(numerators))
    below = np.ones(len(rows), np.int64) if denominators is None else np.array(list(denominators))
    units = tuple(row["id"] for row in rows)
    groups = tuple(row.get("group") or row["id"] for row in rows)
    return Ratio(units, above, below, groups)


def mean(values: Sequence[float]) -> float | None:
    """Mean whose last digit does not depend on the order; None of nothing."""
    return math.fsum(values) / len(values) if len(values) else None


class Metric:
    """Accumulates rows. A subclass gives ``update`` and ``ratios``, or overrides ``figures``."""

    required: tuple[str, ...] = ()
    """Keys that a row must have besides ``id`` and ``failed``."""

    def __init__(self) -> None:
        self._rows: dict[str, Row] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the figures depend on besides rows; only metrics with equal settings merge."""
        return {}

    @property
    def rows(self) -> list[Row]:
        """All rows by id: the order in which processes finish changes nothing."""
        return [self._rows[sample_id] for sample_id in sorted(self._rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """Every figure that is a sum over a sum: ``self1e.evaluation.intervals`` resamples these."""
        return {}

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Compute the figures of any rows, in any order: a pure function of them and of ``settings``."""
        return {name: share.value for name, share in self.ratios(rows).items()}

    def result(self) -> dict[str, Any]:
        """Compute the figures, beside the number of samples and of those whose prediction failed."""
        rows = self.rows
        return {"samples": len(rows), "failed": sum(row["failed"] for row in rows), **self.figures(rows)}

    def check_row(self, row: Row) -> None:
        """Refuse a row that this metric could not have written.

        Raises:
            DatasetError: Keys are missing, or values contradict each other.
        """
        missing = [key for key in ("id", "failed", *self.required) if key not in row]
        if missing:
            raise DatasetError(
                f"Row {row.get('id', row)!r:.80} has no {', '.join(missing)}; {type(self).__name__} needs "
                f"{', '.join(('id', 'failed', *self.required))}: it was written for another metric or is damaged."
            )

    def add_row(self, row: Row) -> Row:
        """Take one row that ``update`` made, here or in another process.

        Raises:
            DatasetError: The id was counted before, or the row is damaged.
        """
        self.check_row(row)
        if row["id"] in self._rows:
            raise DatasetError(
                f"Sample {row['id']!r} was counted before. Every sample counts once: use a sampler that does not pad "
                "the last shard by repeating samples (DistributedSampler does)."
            )
        self._rows[row["id"]] = row
        return row

    def add_rows(self, rows: Iterable[Row]) -> Self:
        """Take many rows, e.g. those of a dump; returns the metric."""
        for row in rows:
            self.add_row(row)
        return self

    def merge(self, other: Metric) -> None:
        """Take the rows of another process's metric.

        Raises:
            SettingError: The other is of another kind, or has other settings.
            DatasetError: Both counted the same sample.
        """
        if type(other) is not type(self) or other.settings != self.settings:
            raise SettingError(
                f"{type(other).__name__}({other.settings}) cannot be merged into {type(self).__name__}"
                f"({self.settings}): their rows or rules differ. Make both with the same arguments."
            )
        self.add_rows(other.rows)

    def check_complete(self, expected: int | Iterable[str]) -> None:
        """Refuse a result of part of a benchmark.

        Args:
            expected: The number of samples, or their ids.

        Raises:
            DatasetError: Samples are missing or unknown.
        """
        if isinstance(expected, int):
            if len(self) != expected:
                raise DatasetError(
                    f"{len(self)} samples were counted, expected {expected}: evaluate the rest, or report a subset "
                    "under a name of its own."
                )
            return
        wanted = set(expected)
        for found, what in ((wanted - set(self._rows), "missing"), (set(self._rows) - wanted, "unknown")):
            if found:
                some = ", ".join(repr(name) for name in sorted(found)[:3])
                raise DatasetError(f"{len(found)} of {len(wanted)} samples are {what}, e.g. {some}.")


def sample_row(sample_id: str | int, *, failed: bool, group: str | None = None, **values: Any) -> Row:
    """Begin a row.

    Args:
        sample_id: Unique within the benchmark.
        failed: No prediction could be made; it counts as an empty mask or a wrong answer, never as skipped.
        group: What the sample belongs to, e.g. its picture.
        values: The rest of the row.
    """
    if sample_id == "" or isinstance(sample_id, bool) or not isinstance(sample_id, str | int):
        raise SettingError(f"A sample's id is {sample_id!r}, expected text or a number that no other sample has.")
    row: Row = {"id": str(sample_id), "failed": failed}
    if group is not None:
        row["group"] = str(group)
    return row | values


def finite_or_none(value: float | None, name: str) -> float | None:
    """Check a score: JSON has no NaN."""
    if value is None:
        return None
    if not math.isfinite(value):
        raise SettingError(f"{name} is {value}, expected a finite number: the model's output overflowed.")
    return float(value)


def _exact_sum(values: np.ndarray) -> float:
    if values.dtype.kind in "bui":
        return int(values.sum(dtype=np.int64))
    return math.fsum(values.tolist())
