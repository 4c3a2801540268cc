"""Mask metrics: exact integer counts first, ratios last (METHOD 7.3, METRICS 0.1, 1.5 and 3).

cIoU is the sum of intersections over the sum of unions; gIoU the mean of IoU per query (*not* "Generalised IoU").

One row, shared by all mask metrics (areas and counts in pixels that are not ignored)::

    {"id": "refcoco/val/17-0", "failed": false, "I": 812, "U": 1024, "iou": 0.793, "pred_area": 900, "gt_area": 936,
     "score": 0.91, "pred_nt": null, "gt_nt": null, "text": "[SEG].", "box_iou": null}

``iou`` is for readers: figures are computed from the integers. ``pred_nt`` and ``gt_nt`` say "not there" for
benchmarks that ask about things that are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.rows import Metric, Ratio, Row, finite_or_none, mean, ratio, sample_row

IGNORE = 255
"""Truth value of pixels that count nowhere (LISA's convention)."""

PRECISION_AT = (0.5, 0.6, 0.7, 0.8, 0.9)


def intersection_union(
    prediction: np.ndarray, truth: np.ndarray, *, ignored: np.ndarray | None = None
) -> tuple[int, int]:
    """Count pixels in both and pixels in either.

    Args:
        prediction: Bool ``(H, W)``.
        truth: Bool ``(H, W)``.
        ignored: True at pixels that count in neither, bool ``(H, W)``.
    """
    _check_masks(prediction, truth, ignored)
    both, either = prediction & truth, prediction | truth
    if ignored is not None:
        both, either = both & ~ignored, either & ~ignored
    return int(np.count_nonzero(both)), int(np.count_nonzero(either))


def iou(intersection: int, union: int) -> float:
    """IoU of one query; 1 if truth and prediction are both empty."""
    return 1.0 if union == 0 else intersection / union


def split_truth(
    labels: np.ndarray, *, overlaps: Literal["union", "published"] = "union"
) -> tuple[np.ndarray, np.ndarray]:
    """Read a target as published data sets store it: 0 background, 255 ignored, anything else foreground.

    Args:
        labels: Integer or bool ``(H, W)``. A target that was summed over polygons holds 2 where two overlap.
        overlaps: ``"union"`` counts such pixels as foreground. ``"published"`` reproduces the published evaluation,
            whose histogram has bins for 0 and 1 alone: they leave the truth, but a prediction there is still wrong.

    Returns:
        Truth and ignored pixels, both bool ``(H, W)``.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "bui":
        raise SettingError(f"A target has shape {labels.shape} and dtype {labels.dtype}, expected integers (H, W).")
    if overlaps not in ("union", "published"):
        raise SettingError(f"overlaps={overlaps!r}; known are 'union' and 'published'.")
    if labels.dtype == bool:
        return labels, np.zeros_like(labels)
    ignored = labels == IGNORE
    truth = (labels == 1) if overlaps == "published" else (labels != 0) & ~ignored
    return truth, ignored


def mask_box(mask: np.ndarray, *, half_open: bool = True) -> tuple[int, int, int, int] | None:
    """Find the tight box of a bool mask ``(H, W)``.

    Args:
        mask: Foreground.
        half_open: ``(left, top, right + 1, bottom + 1)``. False leaves the 1 out, as MLLMSeg's evaluation does.

    Returns:
        x, y, x, y in pixels; None if the mask is empty.
    """
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(ys):
        return None
    end = int(half_open)
    return int(xs[0]), int(ys[0]), int(xs[-1]) + end, int(ys[-1]) + end


def box_iou(first_xyxy: Sequence[float], second_xyxy: Sequence[float]) -> float:
    """IoU of two boxes as areas of the plane; 0 if both have none."""
    left, top = max(first_xyxy[0], second_xyxy[0]), max(first_xyxy[1], second_xyxy[1])
    right, bottom = min(first_xyxy[2], second_xyxy[2]), min(first_xyxy[3], second_xyxy[3])
    both = max(right - left, 0) * max(bottom - top, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first_xyxy, second_xyxy)]
    either = sum(areas) - both
    return both / either if either else 0.0


def mask_row(
    sample_id: str | int,
    prediction: np.ndarray | None,
    truth: np.ndarray,
    *,
    ignored: np.ndarray | None = None,
    score: float | None = None,
    pred_nt: bool | None = None,
    gt_nt: bool | None = None,
    text: str | None = None,
    truth_box_xywh: Sequence[float] | None = None,
    half_open: bool = True,
    group: str | None = None,
) -> Row:
    """Make the row of one query.

    Args:
        sample_id: Unique within the benchmark.
        prediction: Bool ``(H, W)``, logits enlarged to the picture first and thresholded second; None if the model
            failed on this sample.
        truth: Bool ``(H, W)``.
        ignored: Pixels that count nowhere, bool ``(H, W)``.
        score: Confidence that the thing is there.
        pred_nt: The model says that the thing is not there, apart from the mask.
        gt_nt: It is not there.
        text: What the model said.
        truth_box_xywh: The annotated box, COCO's left, top, width, height: adds the box's IoU.
        half_open: How boxes of masks end, see ``mask_box``.
        group: What the sample belongs to, e.g. its picture.

    Raises:
        SettingError: Sizes or dtypes differ from the above, or ``gt_nt`` comes with a truth that is not empty.
    """
    failed = prediction is None
    prediction = np.zeros_like(truth) if prediction is None else prediction
    intersection, union = intersection_union(prediction, truth, ignored=ignored)
    real = slice(None) if ignored is None else ~ignored
    pred_area, gt_area = (int(np.count_nonzero(mask[real])) for mask in (prediction, truth))
    if gt_nt and gt_area:
        raise SettingError(f"{sample_id}: gt_nt says the thing is not there, but its truth has {gt_area} pixels.")
    overlap = None
    if truth_box_xywh is not None:
        left, top, width, height = truth_box_xywh
        box = mask_box(prediction, half_open=half_open)
        overlap = 0.0 if box is None else box_iou(box, (left, top, left + width, top + height))
    return sample_row(
        sample_id,
        failed=failed,
        group=group,
        I=intersection,
        U=union,
        iou=iou(intersection, union),
        pred_area=pred_area,
        gt_area=gt_area,
        score=finite_or_none(score, f"{sample_id}: score"),
        pred_nt=pred_nt,
        gt_nt=gt_nt,
        text=text,
        box_iou=overlap,
    )


class MaskMetric(Metric):
    """What metrics over mask rows share."""

    required = ("I", "U", "pred_area", "gt_area", "score", "pred_nt", "gt_nt", "box_iou")

    def check_row(self, row: Row) -> None:
        """Refuse rows whose counts contradict each other."""
        super().check_row(row)
        counts = [row[key] for key in ("I", "U", "pred_area", "gt_area")]
        if any(isinstance(count, bool) or not isinstance(count, int) or count < 0 for count in counts):
            raise DatasetError(f"Row {row['id']!r}: I, U, pred_area, gt_area are {counts}, expected pixel counts.")
        intersection, union, pred_area, gt_area = counts
        if intersection > min(pred_area, gt_area) or union != pred_area + gt_area - intersection:
            raise DatasetError(
                f"Row {row['id']!r}: I={intersection}, U={union} do not follow from areas {pred_area} and {gt_area} "
                "(I at most either, U = their sum - I): the row is damaged, evaluate the sample again."
            )


class MaskIoU(MaskMetric):
    """cIoU, gIoU and precision of masks: RefCOCO/+/g and, with ignored pixels, ReasonSeg.

    Two empty masks have IoU 1. A sample on which the model failed has IoU 0, whatever its truth.

    Args:
        eps: ``"none"`` for the exact formulas; ``"lisa"`` for the published evaluation's, which adds 1e-10 to the
            denominator of cIoU, 1e-5 to each union, and 1e-5 to the number of samples (float64 here, float32 there).
    """

    def __init__(self, eps: Literal["none", "lisa"] = "none") -> None:
        super().__init__()
        if eps not in ("none", "lisa"):
            raise SettingError(f"eps={eps!r}; known are 'none' and 'lisa'.")
        self.eps = eps

    @property
    def settings(self) -> dict[str, Any]:
        """The epsilons."""
        return {"eps": self.eps}

    def update(
        self,
        sample_id: str | int,
        prediction: np.ndarray | None,
        truth: np.ndarray,
        *,
        ignored: np.ndarray | None = None,
        **extra: Any,
    ) -> Row:
        """Count one query: arguments of ``mask_row``, whose row is returned."""
        return self.add_row(mask_row(sample_id, prediction, truth, ignored=ignored, **extra))

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> float:
        """Count one query without a name (its number) and return its IoU."""
        return self.update(f"{len(self):09d}", prediction, truth)["iou"]

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """The exact figures; ``acc@0.5`` only over samples that came with a box."""
        ious = [sample_iou(row) for row in rows]
        found = {"ciou": ratio(rows, [r["I"] for r in rows], [r["U"] for r in rows]), "giou": ratio(rows, ious)}
        for at in PRECISION_AT:
            found[f"pr@{at}"] = ratio(rows, [int(value >= at) for value in ious])
        boxed = [row for row in rows if row["box_iou"] is not None]
        if boxed:
            found["acc@0.5"] = ratio(boxed, [int(row["box_iou"] > 0.5) for row in boxed])
        return found

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """``ciou`` (1 if every truth and prediction is empty), ``giou``, ``pr@0.5`` ... ``pr@0.9``, ``acc@0.5``."""
        found = super().figures(rows)
        if not rows:
            return found
        if self.eps == "lisa":
            found["ciou"] = sum(row["I"] for row in rows) / (sum(row["U"] for row in rows) + 1e-10)
            found["giou"] = (
                sum(row["I"] / (row["U"] + 1e-5) + (row["U"] == 0 and not row["failed"]) for row in rows)
            ) / (len(rows) + 1e-5)
        elif found["ciou"] is None:
            found["ciou"] = 1.0
        return found

    @property
    def intersections(self) -> list[int]:
        """Pixels in both, per query."""
        return [row["I"] for row in self.rows]

    @property
    def unions(self) -> list[int]:
        """Pixels in either, per query."""
        return [row["U"] for row in self.rows]

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; 1 if every truth and every prediction is empty, NaN of nothing."""
        return float("nan") if not len(self) else self.figures(self.rows)["ciou"]

    @property
    def giou(self) -> float:
        """Mean IoU over queries; NaN of nothing."""
        found = mean([sample_iou(row) for row in self.rows])
        return float("nan") if found is None else found


def sample_iou(row: Row) -> float:
    """IoU of a row by LISA's rule: 1 if both are empty; 0 if the model failed."""
    return 0.0 if row["failed"] else iou(row["I"], row["U"])


def _check_masks(prediction: np.ndarray, truth: np.ndarray, ignored: np.ndarray | None) -> None:
    if prediction.shape != truth.shape:
        raise SettingError(
            f"The prediction is {prediction.shape} but the truth {truth.shape}; bring the logits to the picture's "
            "size before they are compared."
        )
    if ignored is not None and ignored.shape != truth.shape:
        raise SettingError(f"The ignored pixels are {ignored.shape} but the truth {truth.shape}; they must be equal.")
    named = {"prediction": prediction, "truth": truth, "ignored": ignored}
    for name, mask in named.items():
        if mask is not None and mask.dtype != bool:
            raise SettingError(
                f"The {name} has dtype {mask.dtype}, expected bool: threshold logits with > 0, and read a target "
                "that holds 255 with split_truth."
            )
