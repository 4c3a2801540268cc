"""gRefCOCO: what a query means may be one thing, many, or not there at all (METRICS 2).

The official rule of the GRES benchmark. ``P`` is the mask, ``G`` the truth, ``pred_nt`` a rejection apart from it::

    truth       pred_nt   confusion   I        U        IoU of the sample
    not there   True      TP          0        0        1
    not there   False     FN          0        |P|      0, even if P is empty
    there       True      FP          0        |G|      0                       (ReLA's code: U = |P or G|)
    there       False     TN          |P & G|  |P or G| I / U, 0 if U is 0

``gres.mask_empty`` reads the rejection off the mask: at most ``empty_area`` pixels. ``gres.gsva_joint`` accumulates
as GSVA does, where a false rejection still earns its mask; never put the two into one table.

A sample on which the model failed is wrong in both: it neither rejects what is absent nor accepts what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.masks import MaskMetric, mask_row
from self1e.evaluation.metrics.rows import Ratio, Row, ratio

Rule = Literal["official", "mask_empty", "gsva"]

PRECISION_AT = (0.7, 0.8, 0.9)
T_ACC_AT = (0.99, 0.97, 0.95)


class GeneralizedIoU(MaskMetric):
    """gIoU, cIoU, N-acc, T-acc and precision of gRefCOCO.

    Args:
        rule: Who rejects, and what a false rejection costs: see above.
        empty_area: For ``mask_empty``, the most pixels that still count as "nothing found".
    """

    def __init__(self, rule: Rule = "official", *, empty_area: int = 0) -> None:
        super().__init__()
        if rule not in ("official", "mask_empty", "gsva"):
            raise SettingError(f"rule={rule!r}; known are 'official', 'mask_empty' and 'gsva'.")
        if empty_area < 0 or (empty_area and rule != "mask_empty"):
            raise SettingError(f"empty_area={empty_area} with rule={rule!r}: only 'mask_empty' has one, 0 or more.")
        self.rule = rule
        self.empty_area = empty_area

    @property
    def settings(self) -> dict[str, Any]:
        """Rule and area."""
        return {"rule": self.rule, "empty_area": self.empty_area}

    def check_row(self, row: Row) -> None:
        """Refuse rows that do not say what the rule needs."""
        super().check_row(row)
        needed = ("gt_nt",) if self.rule == "mask_empty" else ("gt_nt", "pred_nt")
        unknown = [key for key in needed if not isinstance(row[key], bool)]
        if unknown and not (row["failed"] and unknown == ["pred_nt"]):
            raise DatasetError(
                f"Row {row['id']!r}: {' and '.join(unknown)} must be true or false, found "
                f"{[row[key] for key in unknown]}. A model without an explicit rejection is measured with "
                "rule='mask_empty'."
            )

    def update(
        self,
        sample_id: str | int,
        prediction: np.ndarray | None,
        truth: np.ndarray,
        *,
        gt_nt: bool,
        pred_nt: bool | None = None,
        **extra: Any,
    ) -> Row:
        """Count one query.

        Args:
            sample_id: Unique within the benchmark.
            prediction: Bool ``(H, W)``, as predicted even where ``pred_nt`` is true; None if the model failed.
            truth: Bool ``(H, W)``. May be empty though the thing is there (crowd annotations are left out).
            gt_nt: The annotation says "not there".
            pred_nt: The model says so; for ``mask_empty`` it is not needed.
            extra: More of ``mask_row``.
        """
        return self.add_row(mask_row(sample_id, prediction, truth, gt_nt=gt_nt, pred_nt=pred_nt, **extra))

    def rejects(self, row: Row) -> bool:
        """Whether a row counts as "the model says it is not there"."""
        if row["failed"]:
            return not row["gt_nt"]
        return row["pred_area"] <= self.empty_area if self.rule == "mask_empty" else row["pred_nt"]

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """``giou``, ``ciou``, ``ciou_rela`` (but for ``gsva``), ``n_acc``, ``t_acc``, ``pr@0.7`` ... over targets."""
        rejected = [self.rejects(row) for row in rows]
        counted = [self._count(row, said) for row, said in zip(rows, rejected, strict=True)]
        ious = [value for _, _, _, value in counted]
        above, cleared, raw = ([entry[k] for entry in counted] for k in range(3))
        found = {"giou": ratio(rows, ious), "ciou": ratio(rows, above, raw if self.rule == "gsva" else cleared)}
        if self.rule != "gsva":
            found["ciou_rela"] = ratio(rows, above, raw)
        absent = [int(row["gt_nt"]) for row in rows]
        there = [1 - flag for flag in absent]
        found["n_acc"] = ratio(rows, [int(a and said) for a, said in zip(absent, rejected, strict=True)], absent)
        found["t_acc"] = ratio(rows, [int(t and not said) for t, said in zip(there, rejected, strict=True)], there)
        for at in PRECISION_AT:
            hits = [int(t and value >= at) for t, value in zip(there, ious, strict=True)]
            found[f"pr@{at}"] = ratio(rows, hits, there)
        return found

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The ratios, the number of queries about absent things, and how well scores tell them apart."""
        return {
            **super().figures(rows),
            "no_target": sum(row["gt_nt"] for row in rows),
            **rejection_curve(rows),
        }

    def _count(self, row: Row, rejected: bool) -> tuple[int, int, int, float]:
        """Intersection, union with rejected masks cleared, union with masks as they are, IoU of the sample."""
        union, pred_area = row["U"], row["pred_area"]
        if row["gt_nt"]:
            return (0, 0, 0, 1.0) if rejected else (0, pred_area, pred_area, 0.0)
        own = 0.0 if row["failed"] or not union else row["I"] / union
        if rejected and self.rule != "gsva":
            return 0, row["gt_area"], union, 0.0
        return row["I"], union, union, own


def rejection_curve(rows: Sequence[Row]) -> dict[str, float | None]:
    """How well the score tells "there" from "not there", whatever the threshold (METRICS 2.5).

    Args:
        rows: Mask rows with ``gt_nt`` and ``score`` (confidence that the thing is there).

    Returns:
        ``rejection_auroc`` (ties count half), and ``n_acc@t_acc=0.99`` ...: the most absent things rejected by any
        threshold that keeps so many of the present ones. None if scores or either kind of query are missing.
    """
    names = ["rejection_auroc", *(f"n_acc@t_acc={at}" for at in T_ACC_AT)]
    worst = {True: np.inf, False: -np.inf}  # a crash is never right
    scores = [worst[row["gt_nt"]] if row["failed"] else row["score"] for row in rows]
    if any(score is None for score in scores):
        return dict.fromkeys(names)
    absent = np.sort([s for s, row in zip(scores, rows, strict=True) if row["gt_nt"]])
    there = np.sort([s for s, row in zip(scores, rows, strict=True) if not row["gt_nt"]])
    if not len(absent) or not len(there):
        return dict.fromkeys(names)
    below = np.searchsorted(there, absent, "left").sum()
    ties = np.searchsorted(there, absent, "right").sum() - below
    pairs = len(absent) * len(there)
    found: dict[str, float | None] = {"rejection_auroc": float((pairs - below - ties / 2) / pairs)}
    for at, name in zip(T_ACC_AT, names[1:], strict=True):
        # Below a threshold is rejected, so the best one is the highest that keeps enough: one of their own scores.
        lost = int(np.floor((1 - at) * len(there) + 1e-9))
        found[name] = float(np.searchsorted(absent, there[lost], "left") / len(absent))
    return found
