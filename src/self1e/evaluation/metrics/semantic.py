"""Semantic segmentation with an open vocabulary: one query per class, the highest logit wins (METRICS 4).

Two averages over classes are in use, and on PC-459 they differ, because many of its classes are not in the
validation pictures: ``miou_cls`` (detectron2) averages classes that the truth has, ``miou_cls_mmseg`` (mmseg) also
those that were only predicted, with 0. Counts run over the whole data set: no mean of pictures.

There is no background class and no background query: what no class covers is ignored in the truth.

A row is a sparse confusion matrix::

    {"id": "ade20k/val/1", "failed": false, "confusion": [[truth, predicted, pixels], ...]}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from self1e.data import class_names
from self1e.errors import DatasetError, SettingError, did_you_mean
from self1e.evaluation.metrics.rows import Metric, Row, sample_row


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """The classes of one benchmark, and how its truth is stored."""

    name: str
    classes: tuple[str, ...]
    ignore: int
    """Truth label of pixels that count nowhere."""

    @property
    def dtype(self) -> type[np.unsignedinteger]:
        """What holds every label and ``ignore``."""
        return np.uint8 if self.ignore < 256 else np.uint16

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """Map a stored truth, 0 = background or unlabelled and ``k`` = class ``k - 1``, to labels.

        Args:
            stored: Integer ``(H, W)``: ADE20K's and VOC's PNG, PC-459's LabelMap, and for PC-59 the index into the
                sorted list of its 60 values. ``ignore`` stays what it is.

        Returns:
            Labels 0..C-1 and ``ignore``, ``(H, W)``: uint8, or uint16 where 255 is a class.
        """
        _check_labels(stored, f"{self.name}: the stored truth")
        if stored.dtype.itemsize == 1 and self.ignore > 255:
            raise DatasetError(
                f"{self.name}: the stored truth is {stored.dtype}, which cannot hold {len(self.classes)} classes: "
                "read it as uint16."
            )
        wide = stored.astype(np.int64)
        _check_values(
            wide[wide != self.ignore], range(len(self.classes) + 1), f"{self.name}: the stored truth", self.ignore
        )
        unlabelled = (wide == 0) | (wide == self.ignore)
        return np.where(unlabelled, self.ignore, wide - 1).astype(self.dtype)


LABEL_SETS = {
    entry.name: entry
    for entry in (
        LabelSet(name="ade20k-150", classes=class_names.ADE20K, ignore=255),
        LabelSet(name="pc-59", classes=class_names.PASCAL_CONTEXT_59, ignore=255),
        LabelSet(name="pc-459", classes=class_names.PASCAL_CONTEXT_459, ignore=65535),
        LabelSet(name="pas-20", classes=class_names.PASCAL_VOC_20, ignore=255),
    )
}
"""The four benchmarks without background. PC-60 and PAS-21, which have one, are others."""


def label_set(name: str, classes: Sequence[str] | None = None) -> LabelSet:
    """Find a benchmark by name.

    Args:
        name: One of ``LABEL_SETS``.
        classes: The list that queries were made from; it must be the benchmark's, in its order.

    Raises:
        SettingError: The name is unknown, or the classes are others.
    """
    if name not in LABEL_SETS:
        known = ", ".join(LABEL_SETS)
        raise SettingError(f"Unknown benchmark {name!r}.{did_you_mean(name, LABEL_SETS)} Known: {known}.")
    found = LABEL_SETS[name]
    if classes is not None and tuple(classes) != found.classes:
        if len(classes) != len(found.classes):
            what = f"{len(classes)} classes were given, {name} has {len(found.classes)} and no background"
        else:
            k = next(k for k, (a, b) in enumerate(zip(classes, found.classes, strict=True)) if a != b)
            what = f"class {k} is {classes[k]!r}, {name} has {found.classes[k]!r} there"
        raise SettingError(f"Wrong class list: {what}. Use self1e.data.class_names.")
    return found


def label_map(
    logits: Iterable[Any], size_wh: tuple[int, int], num_classes: int, *, class_of: Sequence[int] | None = None
) -> np.ndarray:
    """Give every pixel the class of the highest logit; no threshold, ties to the lower class.

    Arguments and errors are those of ``self1e.inference.semantic.highest``, with the truth's size.

    Returns:
        Labels ``(H, W)``, uint8, or uint16 for more than 255 classes.
    """
    from self1e.inference.semantic import highest

    labels, _ = highest(logits, size_wh, num_classes, class_of=class_of)
    return labels.astype(np.uint8 if num_classes <= 255 else np.uint16)


class SemanticIoU(Metric):
    """mIoU over classes, frequency-weighted IoU and accuracies.

    Args:
        classes: Names in index order, without background.
        ignore: Truth label of pixels that count nowhere; 65535 for PC-459, where 255 is a class.
    """

    required = ("confusion",)

    def __init__(self, classes: Sequence[str], *, ignore: int = 255) -> None:
        super().__init__()
        self._entries: dict[int, tuple[Any, np.ndarray, np.ndarray]] = {}
        self.classes = tuple(classes)
        self.ignore = ignore
        if isinstance(classes, str) or not self.classes or len(set(self.classes)) != len(self.classes):
            raise SettingError(f"classes={classes!r:.80} must be different names, one per class.")
        if "background" in self.classes:
            raise SettingError(
                "The class list holds 'background': these benchmarks have none, its pixels are ignored in the truth. "
                "PC-60 and PAS-21 are other benchmarks."
            )
        if 0 <= ignore < len(self.classes):
            raise SettingError(
                f"ignore={ignore} is the label of class {self.classes[ignore]!r} ({len(self.classes)} classes): use a "
                "larger one and a wider dtype; PC-459 has 65535 in uint16."
            )

    @classmethod
    def of(cls, benchmark: str) -> SemanticIoU:
        """Make the metric of one of ``LABEL_SETS``."""
        found = label_set(benchmark)
        return cls(found.classes, ignore=found.ignore)

    @property
    def settings(self) -> dict[str, Any]:
        """Classes and ignored label."""
        return {"classes": self.classes, "ignore": self.ignore}

    def update(self, sample_id: str | int, prediction: np.ndarray | None, truth: np.ndarray) -> Row:
        """Count one picture at the size of its truth.

        Args:
            sample_id: Unique within the benchmark.
            prediction: Labels 0..C-1, integer ``(H, W)``, see ``label_map``; None if the model failed: then every
                pixel of the truth is missed.
            truth: Labels 0..C-1 and ``ignore``, integer ``(H, W)``, see ``LabelSet.from_stored``.

        Raises:
            SettingError: Sizes or dtypes do not fit, or the prediction holds other labels.
            DatasetError: The truth holds other labels.
        """
        count = len(self.classes)
        _check_labels(truth, f"{sample_id}: the truth")
        real = truth != self.ignore
        wanted = truth[real].astype(np.int64)
        _check_values(wanted, range(count), f"{sample_id}: the truth", self.ignore)
        if prediction is None:
            given = np.full_like(wanted, count)  # one more column: predicted as nothing
        else:
            _check_labels(prediction, f"{sample_id}: the prediction")
            if prediction.shape != truth.shape:
                raise SettingError(
                    f"{sample_id}: the prediction is {prediction.shape} but the truth {truth.shape}; enlarge the "
                    "logits to the truth's size before the highest is taken."
                )
            if count > np.iinfo(prediction.dtype).max + 1:
                raise SettingError(
                    f"{sample_id}: the prediction is {prediction.dtype}, which cannot hold {count} classes: use uint16."
                )
            if prediction.size and not 0 <= int(prediction.min()) <= int(prediction.max()) < count:
                raise SettingError(
                    f"{sample_id}: the prediction holds labels {prediction.min()} to {prediction.max()}, expected 0 "
                    f"to {count - 1}: every pixel gets a class, also where the truth is ignored."
                )
            given = prediction[real].astype(np.int64)
        pairs, pixels = np.unique(wanted * (count + 1) + given, return_counts=True)
        confusion = [
            [int(pair) // (count + 1), int(pair) % (count + 1), int(n)] for pair, n in zip(pairs, pixels, strict=True)
        ]
        return self.add_row(sample_row(sample_id, failed=prediction is None, confusion=confusion))

    def check_row(self, row: Row) -> None:
        """Refuse rows with labels beyond the classes."""
        super().check_row(row)
        count = len(self.classes)
        for entry in row["confusion"]:
            truth, given, pixels = entry
            if not (0 <= truth < count and 0 <= given <= count and pixels > 0):
                raise DatasetError(
                    f"Row {row['id']!r}: the entry {entry} of its confusion does not fit {count} classes: it was "
                    "written for another class list or is damaged."
                )

    def confusion(self, rows: Sequence[Row]) -> np.ndarray:
        """Sum the rows, int64 ``(C, C + 1)``: truth, predicted; the last column counts pixels of failed samples."""
        count = len(self.classes)
        total = np.zeros(count * (count + 1), np.int64)
        if rows:
            places, pixels = zip(*(self._as_arrays(row["confusion"]) for row in rows), strict=True)
            np.add.at(total, np.concatenate(places), np.concatenate(pixels))
        return total.reshape(count, count + 1)

    def _as_arrays(self, entries: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Places in the flat matrix and pixels: made once per row, since a bootstrap asks for them 200 times."""
        if id(entries) not in self._entries:
            made = np.array(entries, np.int64).reshape(-1, 3)
            # The list is kept, so that no other can have its id.
            self._entries[id(entries)] = entries, made[:, 0] * (len(self.classes) + 1) + made[:, 1], made[:, 2]
        return self._entries[id(entries)][1:]

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """``miou_cls``, ``miou_cls_mmseg``, ``fwiou``, ``macc``, ``pacc``, and ``iou_of`` each class seen."""
        matrix = self.confusion(rows)
        hits = np.diagonal(matrix)
        truth, given = matrix.sum(axis=1), matrix[:, :-1].sum(axis=0)
        union = truth + given - hits
        ious = hits / np.maximum(union, 1)
        in_truth, seen = truth > 0, union > 0
        total = int(truth.sum())
        return {
            "miou_cls": float(ious[in_truth].mean()) if in_truth.any() else None,
            "miou_cls_mmseg": float(ious[seen].mean()) if seen.any() else None,
            "fwiou": float((truth * ious)[in_truth].sum() / total) if total else None,
            "macc": float((hits[in_truth] / truth[in_truth]).mean()) if in_truth.any() else None,
            "pacc": int(hits.sum()) / total if total else None,
            "iou_of": {name: float(ious[k]) if seen[k] else None for k, name in enumerate(self.classes)},
        }


def _check_labels(labels: np.ndarray, what: str) -> None:
    if labels.ndim != 2 or labels.dtype.kind not in "ui":
        raise SettingError(
            f"{what} has shape {labels.shape} and dtype {labels.dtype}, expected integer labels (H, W): take the "
            "highest logit per pixel first (label_map)."
        )


def _check_values(labels: np.ndarray, allowed: range, what: str, ignore: int) -> None:
    if labels.size and not allowed.start <= int(labels.min()) <= int(labels.max()) < allowed.stop:
        wrong = sorted({int(v) for v in np.unique(labels)} - set(allowed))
        raise DatasetError(
            f"{what} holds labels {wrong[:5]}, expected {allowed.start} to {allowed.stop - 1} or {ignore} (ignored): "
            "it belongs to another class list, or its zero label was not reduced."
        )
