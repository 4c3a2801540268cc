"""Pieces of a result's masks: split, with holes closed and crumbs dropped, each with a score of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from self1e.components import Runs, encode_runs, hole_runs, joined, label_runs, read_runs
from self1e.errors import SettingError
from self1e.structures import Segmentation


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """What becomes of a mask's pieces; as it stands, nothing."""

    split: bool = False
    """One mask per connected piece, the largest first."""
    fill_holes: bool = False
    """Close what a piece encloses; done first."""
    min_area: int = 0
    """Leave out pieces of fewer pixels."""
    connectivity: int = 8
    """8 if pixels that touch at a corner belong together, else 4."""

    def __post_init__(self) -> None:
        if isinstance(self.min_area, bool) or not isinstance(self.min_area, int) or self.min_area < 0:
            raise SettingError(f"min_area={self.min_area!r} must be a whole number of pixels, 0 or more.")
        if self.connectivity not in (4, 8):
            raise SettingError(f"connectivity={self.connectivity!r}; expected 4 (edges) or 8 (edges and corners).")

    @property
    def is_idle(self) -> bool:
        """True if masks stay what they are."""
        return not (self.split or self.fill_holes or self.min_area)

    def apply(self, result: Segmentation) -> Segmentation:
        """Make the result anew; see ``Segmentation.parts``. Logits are dropped: they are the whole query's."""
        if self.is_idle:
            return result
        owners: list[int] = []
        rles: list[dict[str, Any]] = []
        scores: list[float] = []
        for k in range(len(result)):
            for rle, score in self._pieces(result, k):
                owners.append(k)
                rles.append(rle)
                scores.append(score)
        return replace(
            result,
            queries=tuple(result.queries[k] for k in owners),
            rles=tuple(rles),
            scores=np.array(scores, dtype=np.float32),
            text=tuple(result.text[k] for k in owners) if len(result) else result.text,
            mask_logits=None,
        )

    def _pieces(self, result: Segmentation, k: int) -> list[tuple[dict[str, Any], float]]:
        """Return code and score of each piece of mask ``k``, or of what is left of it."""
        rle = result.rles[k]
        size_hw = result.size_wh[1], result.size_wh[0]
        runs = read_runs(rle)
        if self.fill_holes:
            runs = joined(runs, hole_runs(rle, self.connectivity))
        labels = label_runs(runs, size_hw, self.connectivity)
        areas = np.bincount(labels, weights=runs.lengths).astype(np.int64)
        kept = np.flatnonzero(areas >= max(self.min_area, 1))
        if not self.split:
            runs = runs.take(np.isin(labels, kept))
            labels, kept = np.zeros(len(runs.column), np.int64), kept[:1]
            areas = np.array([runs.lengths.sum()])
        if not len(kept):
            return [(encode_runs(runs.take(np.zeros(len(runs.column), dtype=bool)), size_hw), 0.0)]
        number = kept if self.split else np.zeros(1, np.int64)
        scores = self._scores(result, k, runs, labels, areas)
        order = np.argsort(labels, kind="stable")
        ends = np.cumsum(np.bincount(labels, minlength=len(areas)))
        starts = ends - np.bincount(labels, minlength=len(areas))
        number = number[np.argsort(-areas[number], kind="stable")]
        return [(encode_runs(runs.take(order[starts[n] : ends[n]]), size_hw), float(scores[n])) for n in number]

    @staticmethod
    def _scores(result: Segmentation, k: int, runs: Runs, labels: np.ndarray, areas: np.ndarray) -> np.ndarray:
        if result.mask_logits is None:
            return np.full(len(areas), result.scores[k])
        return np.clip(_sums(result.mask_logits[k], result.size_wh, runs, labels, len(areas)) / areas, 0, 1)


def _sums(logits: np.ndarray, size_wh: tuple[int, int], runs: Runs, labels: np.ndarray, count: int) -> np.ndarray:
    """Sum the sigmoid over each piece, float64 ``(count,)``, in strips of columns as ``enlarge`` does."""
    import torch

    from self1e.inference.masks import STRIP, stretched

    width, height = size_wh
    columns = stretched(torch.from_numpy(np.ascontiguousarray(logits)).T, (width, logits.shape[0]))  # (W, h)
    step = max(STRIP // height, 1)
    sums = np.zeros(count)
    for left in range(0, width, step):
        some = slice(*np.searchsorted(runs.column, [left, left + step]))
        if some.start == some.stop:
            continue
        strip = columns[left : left + step]
        probs = stretched(strip, (len(strip), height)).sigmoid().numpy().ravel()
        before = np.concatenate([[0.0], np.cumsum(probs, dtype=np.float64)])
        first = (runs.column[some] - left) * height
        inside = before[first + runs.bottom[some]] - before[first + runs.top[some]]
        sums += np.bincount(labels[some], weights=inside, minlength=count)
    return sums
