"""cgF1: find every instance of a phrase, and say when there is none (METRICS 5; the metric of SAM 3).

Per picture and phrase, predictions with a score of at least 0.5 are matched one to one to the true instances, so that
the sum of mask IoU is largest. At each threshold t of .50, .55 ... .95 a match counts if its IoU is at least t::

    pmP = TP / (TP + FP over pictures that have the thing)     R = TP / (TP + FN)     pmF1 = their harmonic mean
    IL_MCC = correlation of "something was predicted" with "something is there", over pictures
    cgF1 = mean of pmF1 over t, times IL_MCC

Formulas are exact: no epsilon in a denominator. A correlation without any picture on one side is 0, as with epsilon.

A row is ``{"id": "...", "failed": false, "num_truth": 3, "num_predicted": 2, "ious": [0.91, 0.4]}``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.masks import intersection_union
from self1e.evaluation.metrics.rows import Metric, Row, finite_or_none, mean, sample_row

THRESHOLDS = tuple(k / 100 for k in range(50, 100, 5))
MIN_SCORE = 0.5


class ConceptF1(Metric):
    """cgF1 and its parts."""

    required = ("num_truth", "num_predicted", "ious")

    def update(
        self,
        sample_id: str | int,
        predictions: Sequence[np.ndarray] | None,
        scores: Sequence[float],
        truths: Sequence[np.ndarray],
    ) -> Row:
        """Count one phrase on one picture.

        Args:
            sample_id: Unique within the benchmark.
            predictions: Masks, bool ``(H, W)`` each; None if the model failed, which on a picture without the thing
                counts as a false alarm.
            scores: Confidence per prediction; below 0.5 it is dropped.
            truths: Masks of the true instances, bool ``(H, W)`` each; none if the thing is not there.
        """
        if predictions is None:
            row = sample_row(
                sample_id, failed=True, num_truth=len(truths), num_predicted=0 if len(truths) else 1, ious=[]
            )
            return self.add_row(row)
        if len(scores) != len(predictions):
            raise SettingError(f"{sample_id}: {len(scores)} scores for {len(predictions)} masks; pass one per mask.")
        kept = [
            mask
            for mask, score in zip(predictions, scores, strict=True)
            if (finite_or_none(score, f"{sample_id}: score") or 0.0) >= MIN_SCORE
        ]
        table = np.array([[_iou(mask, truth) for truth in truths] for mask in kept]).reshape(len(kept), len(truths))
        ious = [float(table[p, g]) for p, g in best_pairs(table)]
        row = sample_row(sample_id, failed=False, num_truth=len(truths), num_predicted=len(kept), ious=ious)
        return self.add_row(row)

    def check_row(self, row: Row) -> None:
        """Refuse rows with more matches than instances, or IoU outside 0..1."""
        super().check_row(row)
        if len(row["ious"]) > min(row["num_truth"], row["num_predicted"]) or not all(0 <= v <= 1 for v in row["ious"]):
            raise DatasetError(
                f"Row {row['id']!r}: matches {row['ious']} of {row['num_predicted']} predictions and "
                f"{row['num_truth']} instances: at most as many as either, each in 0..1; the row is damaged."
            )

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """``cgf1`` (-1..1), ``pmf1``, ``il_mcc``, and pmF1 at IoU 0.5 and 0.75."""
        per_threshold = {at: positive_f1(rows, at) for at in THRESHOLDS}
        pmf1 = mean(list(per_threshold.values()))
        correlation = image_correlation(rows)
        return {
            "cgf1": None if pmf1 is None or not rows else pmf1 * correlation,
            "pmf1": pmf1 if rows else None,
            "il_mcc": correlation if rows else None,
            "pmf1@0.5": per_threshold[0.5] if rows else None,
            "pmf1@0.75": per_threshold[0.75] if rows else None,
        }


def positive_f1(rows: Sequence[Row], threshold: float) -> float:
    """F1 over instances of all pictures that have the thing; 0 without a hit."""
    there = [row for row in rows if row["num_truth"]]
    hits = sum(value >= threshold for row in there for value in row["ious"])
    predicted, true = sum(row["num_predicted"] for row in there), sum(row["num_truth"] for row in there)
    return 2 * hits / (predicted + true) if hits else 0.0


def image_correlation(rows: Sequence[Row]) -> float:
    """Matthews correlation of "predicted anything" with "there is something"; 0 if either never varies."""
    pairs = [(row["num_truth"] > 0, row["num_predicted"] > 0) for row in rows]
    tp, fp, fn, tn = (pairs.count(kind) for kind in ((True, True), (False, True), (True, False), (False, False)))
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return (tp * tn - fp * fn) / math.sqrt(below) if below else 0.0


def best_pairs(worth: np.ndarray) -> list[tuple[int, int]]:
    """Pair rows with columns, each at most once and as many as possible, so that the sum is largest.

    The Hungarian method with potentials: one shortest augmenting path per row, O(n^3).

    Args:
        worth: Float ``(P, G)``.

    Returns:
        ``min(P, G)`` pairs (row, column), by row.
    """
    if not worth.size:
        return []
    if worth.shape[0] > worth.shape[1]:
        return sorted((row, column) for column, row in best_pairs(worth.T))
    num_rows, num_columns = worth.shape
    cost = np.zeros((num_rows + 1, num_columns + 1))  # row and column 0 stand for "none"
    cost[1:, 1:] = -worth
    of_row, of_column = np.zeros(num_rows + 1), np.zeros(num_columns + 1)  # potentials
    owner = np.zeros(num_columns + 1, int)
    for row in range(1, num_rows + 1):
        owner[0], column = row, 0
        slack = np.full(num_columns + 1, np.inf)
        came_from = np.zeros(num_columns + 1, int)
        is_done = np.zeros(num_columns + 1, bool)
        while owner[column]:
            is_done[column] = True
            reduced = cost[owner[column]] - of_row[owner[column]] - of_column
            is_closer = ~is_done & (reduced < slack)
            slack[is_closer], came_from[is_closer] = reduced[is_closer], column
            nearest = int(np.argmin(np.where(is_done, np.inf, slack)))
            step = slack[nearest]
            of_row[owner[is_done]] += step
            of_column[is_done] -= step
            slack[~is_done] -= step
            column = nearest
        while column:
            owner[column] = owner[came_from[column]]
            column = came_from[column]
    return sorted((int(owner[column]) - 1, column - 1) for column in range(1, num_columns + 1) if owner[column])


def _iou(mask: np.ndarray, truth: np.ndarray) -> float:
    intersection, union = intersection_union(mask, truth)
    return intersection / union if union else 0.0
