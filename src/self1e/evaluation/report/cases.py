"""Samples as a reader asks for them: the best, the worst, some at random; small, long, of one category."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from self1e.evaluation.intervals import Interval, interval
from self1e.evaluation.metrics.rows import Row, ratio
from self1e.evaluation.protocols import protocol
from self1e.evaluation.scores import sample_scores
from self1e.evaluation.tables import Measured

SIZES = ("absent", "small", "medium", "large")
"""Of the target: none, below 32 x 32 pixels, below 96 x 96, above (COCO's)."""
LENGTHS = ("1-2 words", "3-5 words", "6 or more words")
PICKS = ("worst", "random", "best")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sample."""

    row: Row
    score: float | None
    """0 to 1; None where the truth is not public."""
    picks: tuple[str, ...] = ()
    """Why it is shown: some of `PICKS`, ``failed``."""
    classes: tuple[str, ...] = ()
    """What a class map's truth holds."""

    @property
    def size(self) -> str:
        """One of `SIZES`; empty for questions and class maps."""
        area = self.row.get("gt_area")
        if area is None:
            return ""
        return SIZES[0] if not area else SIZES[1] if area < 32**2 else SIZES[2] if area < 96**2 else SIZES[3]

    @property
    def length(self) -> str:
        """One of `LENGTHS`; empty if the row does not say what was asked."""
        return length_of(self.row.get("query", ""))

    @property
    def tags(self) -> tuple[str, ...]:
        """Categories that it belongs to."""
        named = [self.row.get(key) for key in ("tag", "task", "category", "answer_type", "file")]
        told = [str(name) for name in named if name]
        return tuple(dict.fromkeys([*self.row.get("subsets", ()), *told, *self.classes]))


def length_of(words: str) -> str:
    """One of `LENGTHS`; empty for no words."""
    count = len(words.split())
    return "" if not count else LENGTHS[0] if count < 3 else LENGTHS[1] if count < 6 else LENGTHS[2]


def cases_of(measured: Measured) -> list[Case]:
    """All samples of a run, by id."""
    scores = sample_scores(measured.run, measured.rows)
    names: Any = getattr(protocol(measured.run.protocol).metric(), "classes", ())
    return [Case(row=row, score=scores.get(row["id"]), classes=_classes_in(row, names)) for row in measured.rows]


def _classes_in(row: Row, names: Any) -> tuple[str, ...]:
    return tuple(names[label] for label in sorted({truth for truth, _, _ in row.get("confusion", ())}))


def class_ious(measured: Measured) -> dict[str, float | None]:
    """IoU of each class over the whole run; nothing for other benchmarks."""
    if "confusion" not in measured.rows[0]:
        return {}
    return protocol(measured.run.protocol).metric().add_rows(measured.rows).result()["iou_of"]


def pick(cases: Sequence[Case], each: int, *, seed: int = 0) -> list[Case]:
    """Choose what to show: failed ones, then worst, random and best in turn, so that a cut leaves some of each.

    Random ones are drawn first and from all samples: they alone say how the model usually does.

    Args:
        cases: All of a run.
        each: How many of each kind; of worst and best at most a third of all.
        seed: Of the random ones.
    """
    scored = [case for case in cases if case.score is not None and not case.row["failed"]]
    # Of equal scores the larger truth comes first: perfect "not there" answers show nothing.
    by_score = sorted(scored, key=lambda case: (case.score, -case.row.get("gt_area", 0), case.row["id"]))
    best = sorted(scored, key=lambda case: (-(case.score or 0), -case.row.get("gt_area", 0), case.row["id"]))
    chosen = np.random.default_rng(seed).permutation(len(cases))[:each].tolist()
    most = min(each, max(1, len(scored) // 3))  # of a short run not everything is among the worst
    lists = {"worst": by_score[:most], "random": [cases[k] for k in chosen], "best": best[:most]}
    lists["failed"] = [case for case in cases if case.row["failed"]][:each]
    picks: dict[str, list[str]] = {}
    order: dict[str, Case] = {case.row["id"]: case for case in lists["failed"]}
    for place in range(each):
        for name in PICKS:
            if place < len(lists[name]):
                order.setdefault(lists[name][place].row["id"], lists[name][place])
    for name, some in lists.items():
        for case in some:
            picks.setdefault(case.row["id"], []).append(name)
    return [replace(case, picks=tuple(picks[name])) for name, case in order.items()]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Mean score of the samples that share a property."""

    by: str
    name: str
    mean: Interval
    samples: int


def parts_of(cases: Sequence[Case]) -> list[Part]:
    """Mean scores by size of the target, length of the words, and category; 95 % intervals over pictures."""
    scored = [case for case in cases if case.score is not None]
    kinds: list[tuple[str, tuple[str, ...], Callable[[Case], tuple[str, ...]]]] = [
        ("size", SIZES, lambda case: (case.size,)),
        ("length", LENGTHS, lambda case: (case.length,)),
        ("category", tuple(sorted({tag for case in scored for tag in case.tags})), lambda case: case.tags),
    ]
    found = []
    for by, names, of in kinds:
        for name in names:
            some = [case for case in scored if name in of(case)]
            if some:
                figure = ratio([case.row for case in some], [case.score or 0.0 for case in some])
                mean = interval(figure, by_group=True, resamples=500)
                found.append(Part(by=by, name=name, mean=mean, samples=len(some)))
    return found


def histogram(cases: Sequence[Case]) -> list[int]:
    """Count scores in tenths; 1 belongs to the last."""
    counts = [0] * 10
    for case in cases:
        if case.score is not None:
            counts[min(9, int(case.score * 10))] += 1
    return counts
