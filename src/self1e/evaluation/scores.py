"""How right each sample is, 0 to 1: to find the best and the worst, to count wins, to draw histograms.

Masks: IoU by the rule of the run's protocol. Questions: the accuracy of the answer. Class maps: mean IoU of the classes
that the picture's truth holds. A mean of these is not always the figure that a table shows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from self1e.evaluation.metrics.choices import read_letter
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.metrics.yes_no import mme_answer
from self1e.evaluation.protocols import Run, protocol

_MEANS = ("giou", "accuracy", "pooled/accuracy")


def sample_scores(run: Run, rows: Sequence[Row]) -> dict[str, float]:
    """Score every row by its id; rows that no score is defined for (answers for a test server) are left out."""
    if not rows:
        return {}
    if "confusion" in rows[0]:
        return {row["id"]: 0.0 if row["failed"] else picture_iou(row) for row in rows}
    ratios = protocol(run.protocol).metric().add_rows(rows).ratios(rows)
    for name in _MEANS:
        if name in ratios:
            figure = ratios[name]
            pairs = zip(figure.numerators.tolist(), figure.denominators.tolist(), strict=True)
            return {unit: above / below for unit, (above, below) in zip(figure.units, pairs, strict=True) if below}
    return {row["id"]: found for row in rows if (found := _answer_score(row)) is not None}


def score_name(run: Run) -> str:
    """Name what `sample_scores` gives, for people."""
    if run.protocol.startswith("ovs."):
        return "mean IoU of the picture's classes"
    return "IoU" if run.protocol.startswith(("res.", "gres.", "reason.")) else "accuracy"


def picture_iou(row: Row) -> float:
    """Mean IoU of the classes in one picture's truth; 1 where nothing is labelled."""
    confusion = np.array(row["confusion"], np.int64).reshape(-1, 3)
    found = []
    for label in np.unique(confusion[:, 0]):
        truth, given = confusion[:, 0] == label, confusion[:, 1] == label
        found.append(confusion[truth & given, 2].sum() / confusion[truth | given, 2].sum())
    return float(np.mean(found)) if found else 1.0


def _answer_score(row: Row) -> float | None:
    """MME and MMBench judge pairs and rotations; here each answer by itself."""
    if "submitted" in row:  # only the test server knows
        return None
    if row["failed"]:
        return 0.0
    if "options" in row:
        return float(read_letter(row["prediction"], row["options"]) == row["answer"])
    if "label" in row:
        return float(mme_answer(row["prediction"]) == row["label"])
    return None
