"""A least score below which a mask means "not there": fitted on a validation split, kept with the model.

The score is ``Segmentation.scores``: the mean probability over the mask's pixels, 0 for an empty mask. The threshold is
the highest one that still keeps a wished share of what is there (T-acc); everything that scores less is rejected.
It goes into ``config.json`` as ``no_target_threshold``, so it travels with the weights, and ``segment`` uses it.

One threshold serves all splits of a benchmark. Never fit it on what is reported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.errors import CheckpointError, DatasetError, SettingError
from self1e.evaluation.metrics.generalized import rejection_curve
from self1e.evaluation.metrics.rows import Row
from self1e.files import atomic_write

TEST_SPLITS = ("test", "testA", "testB", "testC")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A fitted threshold and what it does on the split that it was fitted on."""

    threshold: float
    """Scores below it are rejected."""
    t_acc: float
    """Share of things that are there and are kept."""
    n_acc: float
    """Share of things that are not there and are rejected."""
    there: int
    absent: int
    curve: dict[str, float | None]
    """``rejection_auroc``, ``n_acc@t_acc=0.99`` ..."""


def fit_threshold(rows: Sequence[Row], *, t_acc: float = 0.95) -> Calibration:
    """Find the highest threshold that keeps a share of what is there.

    Args:
        rows: Mask rows with ``gt_nt`` and ``score``; those on which the model failed are left out.
        t_acc: The share to keep, above 0 and at most 1.

    Raises:
        SettingError: The share cannot be.
        DatasetError: The rows lack one of the two kinds of queries.
    """
    check_share(t_acc)
    known = [row for row in rows if not row["failed"]]
    if rows and not known:
        raise DatasetError(
            f"The model failed on all {len(rows)} queries, e.g. {rows[0].get('error', rows[0].get('id'))}."
        )
    there = sorted(row["score"] for row in known if not row["gt_nt"])
    absent = [row["score"] for row in known if row["gt_nt"]]
    if not there or not absent:
        raise DatasetError(
            f"Found {len(there)} queries about what is there and {len(absent)} about what is not; both are needed: "
            "take a benchmark with absent things (grefcoco/val, scenes/val, or own data with empty masks)."
        )
    # Kept scores are written as floats of JSON and compared as float32: a hair lower, so that equals are kept.
    lowest = there[min(math.floor((1 - t_acc) * len(there) + 1e-9), len(there) - 1)]
    threshold = max(0.0, lowest - 1e-7)
    return Calibration(
        threshold=threshold,
        t_acc=sum(score >= threshold for score in there) / len(there),
        n_acc=sum(score < threshold for score in absent) / len(absent),
        there=len(there),
        absent=len(absent),
        curve=rejection_curve(known),
    )


def check_share(t_acc: float) -> None:
    """Refuse what is no share, before anything is measured for it."""
    if not 0 < t_acc <= 1:
        raise SettingError(f"t_acc={t_acc} is a share of what is there: above 0, at most 1.")


def check_split(benchmark: str) -> None:
    """Refuse a test split: a threshold fitted on what is reported flatters the report."""
    if benchmark.split("/")[-1].split("#")[-1] in TEST_SPLITS:
        raise SettingError(f"{benchmark} is a test split; fit the threshold on a validation split.")


def save_threshold(folder: Path, threshold: float | None) -> Path:
    """Write the threshold into a model's ``config.json``; None takes it out.

    Raises:
        CheckpointError: The folder is no model of ours.
    """
    path = folder / "config.json"
    try:
        found: Any = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); expected the folder of a model.") from error
    if not isinstance(found, dict) or found.get("model_type") != "self1e":
        raise CheckpointError(f"{path} is not of a self1e model; convert it first: self1e convert.")
    found["no_target_threshold"] = threshold
    return atomic_write(path, (json.dumps(found, indent=2, ensure_ascii=False) + "\n").encode())
