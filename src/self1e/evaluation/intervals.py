"""How sure a figure is: bootstrap intervals over samples, and over differences of two models.

The percentile bootstrap: draw as many samples as there are, with replacement, compute the figure, repeat; the middle
95 % of what comes out is the interval. Seeded, so that a table can be printed twice. Two models are drawn *together*:
both have the same hard samples, so the difference is surer than either figure.

Sentences about one picture are not independent. ``by_group=True`` draws pictures (or whatever ``group`` a row names)
instead of samples, which is the honest, wider interval.

200 pictures of ReasonSeg val give several points of cIoU: no table without the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from self1e.errors import SettingError
from self1e.evaluation.metrics.rows import Metric, Ratio, Row

RESAMPLES = 2000
LEVEL = 0.95
_DRAWS_AT_ONCE = 2**20  # some 25 MB


@dataclass(frozen=True)
class Interval:
    """A figure and what it could as well have been."""

    value: float | None
    """The figure of all samples; None where it is undefined."""
    low: float | None
    high: float | None
    units: int
    """What was drawn from: samples, pictures or questions. A single one has no interval: it says nothing of others."""

    def __str__(self) -> str:
        if self.value is None:
            return "-"
        if self.low is None or self.high is None:
            return f"{100 * self.value:.2f}"
        return f"{100 * self.value:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def interval(
    figure: Ratio, *, by_group: bool = False, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Bootstrap one figure that is a sum over a sum: ``metric.ratios(metric.rows)["ciou"]``.

    Args:
        figure: Per-unit numerators and denominators.
        by_group: Draw groups of units instead of units.
        level: Share of resamples inside the interval.
        resamples: How often to draw.
        seed: Of the draws.
    """
    _check(level, resamples)
    sums = _sums_per_draw_unit(figure, by_group)
    drawn = _drawn_ratios(sums, resamples, seed)
    return _between(figure.value, drawn, level, len(sums))


def difference(
    first: Ratio,
    second: Ratio,
    *,
    by_group: bool = False,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Bootstrap ``first - second`` of two models on the same samples, drawn together.

    Raises:
        SettingError: The two were not measured on the same units.
    """
    _check(level, resamples)
    order = _same_units(first, second)
    second = Ratio(first.units, second.numerators[order], second.denominators[order], first.groups)
    sums = np.hstack([_sums_per_draw_unit(entry, by_group) for entry in (first, second)])
    drawn = _drawn_ratios(sums[:, :2], resamples, seed) - _drawn_ratios(sums[:, 2:], resamples, seed)
    both = first.value, second.value
    value = None if both[0] is None or both[1] is None else both[0] - both[1]
    return _between(value, drawn, level, len(sums))


def intervals(metric: Metric, **options: Any) -> dict[str, Interval]:
    """Bootstrap every figure of a metric that is a sum over a sum; ``options`` as for ``interval``."""
    return {name: interval(figure, **options) for name, figure in metric.ratios(metric.rows).items()}


def interval_of(
    metric: Metric,
    figure: str,
    *,
    level: float = LEVEL,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Bootstrap any figure by computing it again from drawn rows: mIoU over classes, cgF1, a mean of F1.

    Slower than ``interval``: the metric runs once per resample. Rows of one group (the two questions of an MME picture)
    are drawn together.

    Args:
        metric: Holds the rows.
        figure: A name in ``metric.result()``.
        level: Share of resamples inside the interval.
        resamples: How often to draw.
        seed: Of the draws.
    """
    return intervals_of(metric, [figure], level=level, resamples=resamples, seed=seed)[figure]


def intervals_of(
    metric: Metric,
    figures: Sequence[str],
    *,
    level: float = LEVEL,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Interval]:
    """Bootstrap several figures as `interval_of` does each: the metric runs once per resample for all of them."""
    _check(level, resamples)
    rows = metric.rows
    simple, found = metric.ratios(rows), metric.figures(rows)
    known = [name for name, value in found.items() if isinstance(value, float)]
    for name in figures:
        if name not in simple and (name not in found or not isinstance(found[name], int | float | None)):
            raise SettingError(f"{type(metric).__name__} has no figure {name!r}; it has {', '.join(known)}.")
    slow = [name for name in figures if name not in simple]
    drawn = _drawn_figures(rows, metric, slow, resamples, seed) if slow else np.empty((0, 0))
    count = len(_groups(rows))
    return {
        name: interval(simple[name], by_group=True, level=level, resamples=resamples, seed=seed)
        if name in simple
        else _between(found[name], drawn[slow.index(name)], level, count)
        for name in figures
    }


def difference_of(
    first: Metric,
    second: Metric,
    figure: str,
    *,
    level: float = LEVEL,
    resamples: int = 200,
    seed: int = 0,
) -> Interval:
    """Bootstrap ``first - second`` of any figure, as `interval_of` does; both metrics draw the same groups.

    Args:
        first: Holds the rows of one model.
        second: Holds the rows of another one on the same samples.
        figure: A name in ``result()`` of both.
        level: Share of resamples inside the interval.
        resamples: How often to draw.
        seed: Of the draws.

    Raises:
        SettingError: The samples differ, or there is no such figure.
    """
    _check(level, resamples)
    both = first.rows, second.rows
    ratios = [metric.ratios(rows).get(figure) for metric, rows in zip((first, second), both, strict=True)]
    if ratios[0] is not None and ratios[1] is not None:
        return difference(ratios[0], ratios[1], by_group=True, level=level, resamples=resamples, seed=seed)
    names = [[(row["id"], row.get("group")) for row in rows] for rows in both]
    if names[0] != names[1]:
        raise SettingError(f"{figure}: the two were measured on different samples; a paired difference needs the same.")
    values, drawn = [], []
    for metric, rows in zip((first, second), both, strict=True):
        found = metric.figures(rows)
        if not isinstance(found.get(figure), int | float | None) or figure not in found:
            raise SettingError(f"{type(metric).__name__} has no figure {figure!r}.")
        values.append(found[figure])
        # The same rows in the same order and one seed: the same pictures are drawn for both.
        drawn.append(_drawn_figures(rows, metric, [figure], resamples, seed)[0])
    value = None if None in values else values[0] - values[1]
    return _between(value, drawn[0] - drawn[1], level, len(_groups(both[0])))


def _drawn_figures(
    rows: Sequence[Row], metric: Metric, figures: Sequence[str], resamples: int, seed: int
) -> np.ndarray:
    """Compute figures of rows drawn by group (rows of one group stay together), ``(figures, resamples)``."""
    members = _groups(rows)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        chosen = rng.integers(len(members), size=len(members)) if members else []
        # A picture drawn twice is two pictures: metrics that pair rows tell them apart by `copy`.
        found = metric.figures([row | {"copy": copy} for copy, k in enumerate(chosen) for row in members[k]])
        drawn.append([np.nan if found[name] is None else found[name] for name in figures])
    return np.array(drawn, float).T


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Put rows together that are drawn together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("group") or row["id"], []).append(row)
    return list(groups.values())


def _sums_per_draw_unit(figure: Ratio, by_group: bool) -> np.ndarray:
    """Numerators and denominators of what is drawn, float64 ``(N, 2)``."""
    sums = np.stack([figure.numerators, figure.denominators], axis=1).astype(np.float64)
    if not by_group:
        return sums
    index: dict[str, int] = {}
    of_unit = np.array([index.setdefault(name, len(index)) for name in figure.groups], int)
    grouped = np.zeros((len(index), 2))
    np.add.at(grouped, of_unit, sums)
    return grouped


def _drawn_ratios(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Figures of resamples, float64 ``(resamples,)``; NaN where the denominators drawn sum to 0."""
    count = len(sums)
    if not count:
        return np.full(resamples, np.nan)
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_ONCE // count)
    found = []
    for start in range(0, resamples, step):
        drawn = sums[rng.integers(count, size=(min(step, resamples - start), count))].sum(axis=1)
        found.append(np.divide(drawn[:, 0], drawn[:, 1], out=np.full(len(drawn), np.nan), where=drawn[:, 1] != 0))
    return np.concatenate(found)


def _between(value: float | None, drawn: np.ndarray, level: float, units: int) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if value is None or not len(drawn) or units < 2:
        return Interval(value, None, None, units)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), units)


def _same_units(first: Ratio, second: Ratio) -> list[int]:
    """Where each unit of the first stands in the second."""
    place = {name: k for k, name in enumerate(second.units)}
    odd = sorted(set(first.units) ^ set(second.units))
    if odd:
        raise SettingError(
            f"The two figures are of {len(first.units)} and {len(second.units)} samples; {len(odd)} are only in one, "
            f"e.g. {odd[0]!r}: a paired difference needs the same samples."
        )
    return [place[name] for name in first.units]


def _check(level: float, resamples: int) -> None:
    if not 0 < level < 1 or resamples < 1:
        raise SettingError(f"level={level}, resamples={resamples}: the level lies in 0..1, resamples are at least 1.")
