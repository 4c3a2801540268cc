"""Mask metrics: exact integer counts first, ratios last (METHOD 7.3).

cIoU is the sum of intersections over the sum of unions; gIoU the mean of IoU per query (*not* "Generalised IoU").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from self1e.errors import SettingError


def intersection_union(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """Count pixels in both and pixels in either: bool ``(H, W)``, ``(H, W)``."""
    if prediction.shape != truth.shape:
        raise SettingError(
            f"The prediction is {prediction.shape} but the truth {truth.shape}; bring the logits to the picture's "
            "size before they are compared."
        )
    return int(np.count_nonzero(prediction & truth)), int(np.count_nonzero(prediction | truth))


def iou(intersection: int, union: int) -> float:
    """IoU of one query; 1 if truth and prediction are both empty."""
    return 1.0 if union == 0 else intersection / union


@dataclass
class MaskIoU:
    """Accumulate queries; read `ciou` and `giou` at any time."""

    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> float:
        """Count one query and return its IoU."""
        intersection, union = intersection_union(prediction, truth)
        self.intersections.append(intersection)
        self.unions.append(union)
        return iou(intersection, union)

    def __len__(self) -> int:
        return len(self.unions)

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; 1 if every truth and every prediction is empty, NaN of nothing."""
        if not self.unions:
            return float("nan")
        total = sum(self.unions)
        return 1.0 if total == 0 else sum(self.intersections) / total

    @property
    def giou(self) -> float:
        """Mean IoU over queries; NaN of nothing."""
        if not self.unions:
            return float("nan")
        return float(np.mean([iou(i, u) for i, u in zip(self.intersections, self.unions, strict=True)]))
