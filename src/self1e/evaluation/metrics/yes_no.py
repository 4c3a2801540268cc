"""Questions whose answer is yes or no: POPE and MME (METRICS 7).

The two read an answer differently, and each reading is part of its number. POPE: before the first full stop, one of
the words No, not, no is a no, *everything else* a yes. MME: after InternVL's clean-up, "yes" or "no" in the first
four characters; everything else is wrong.

Rows: ``{"id": ..., "failed": false, "file": "random", "prediction": "Yes", "label": "yes"}`` and
``{"id": ..., "failed": false, "task": "color", "image": "1.jpg", "prediction": "Yes", "label": "yes"}``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from self1e.errors import DatasetError, did_you_mean
from self1e.evaluation.metrics.rows import Metric, Ratio, Row, ratio, sample_row

POPE_FILES = ("random", "popular", "adversarial")

PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

Answer = Literal["yes", "no", "other"]

_CHINESE = re.compile("[\u4e00-\u9fa5]")


def pope_answer(text: str) -> Answer:
    """Read an answer as POPE's evaluation does: what is not a no is a yes."""
    words = _first_words(text)
    return "no" if any(word in words for word in ("No", "not", "no")) else "yes"


def strict_answer(text: str) -> Answer:
    """Read an answer in any case; ``other`` if it says neither."""
    words = [word.strip().lower() for word in _first_words(text)]
    return "no" if "no" in words or "not" in words else "yes" if "yes" in words else "other"


def mme_answer(text: str) -> Answer:
    """Read an answer as InternVL's MME evaluation does."""
    text = text.replace("\n", "").replace("不是", "No").replace("是", "Yes").replace("否", "No")
    text = _CHINESE.sub("", text.lower().replace("true", "yes").replace("false", "no"))
    start = text[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


class Pope(Metric):
    """Accuracy, precision, recall, F1 and share of yes, per file and pooled; positive is "yes".

    Precision and F1 of nothing (no yes at all) are None. A failed sample counts as the wrong answer.
    """

    required = ("file", "prediction", "label")

    def update(
        self,
        sample_id: str | int,
        prediction: str | None,
        label: str,
        *,
        file: str,
        group: str | None = None,
    ) -> Row:
        """Count one question.

        Args:
            sample_id: Unique over the three files.
            prediction: What the model said; None if it failed.
            label: ``"yes"`` or ``"no"``.
            file: ``"random"``, ``"popular"`` or ``"adversarial"``.
            group: What the question belongs to, e.g. its picture.
        """
        row = sample_row(
            sample_id, failed=prediction is None, group=group, file=file, prediction=prediction, label=label
        )
        return self.add_row(row)

    def check_row(self, row: Row) -> None:
        """Refuse unknown files and labels."""
        super().check_row(row)
        if row["file"] not in POPE_FILES:
            raise DatasetError(f"{row['id']}: POPE has no file {row['file']!r}; it has {', '.join(POPE_FILES)}.")
        _check_label(row)

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """Per file ``random/f1`` ..., ``pooled/f1`` ..., and the same with ``strict/`` in front."""
        files = [name for name in POPE_FILES if any(row["file"] == name for row in rows)]
        found = {}
        for name in [*files, "pooled"]:
            part = [row for row in rows if name in (row["file"], "pooled")]
            found |= _yes_no_ratios(part, [_heard(row, pope_answer) for row in part], name)
            found |= _yes_no_ratios(part, [_heard(row, strict_answer) for row in part], f"strict/{name}")
        return found

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The ratios, ``f1`` (mean of the three files' F1; None if one is missing) and ``missing`` files."""
        found = super().figures(rows)
        missing = [name for name in POPE_FILES if f"{name}/f1" not in found]
        three = [found.get(f"{name}/f1") for name in POPE_FILES]
        complete = [value for value in three if value is not None]
        return {**found, "f1": sum(complete) / 3 if len(complete) == 3 else None, "missing": missing}


class Mme(Metric):
    """Scores of MME: per task 100 times the share of right answers, plus 100 times that of pictures with both right."""

    required = ("task", "image", "prediction", "label")

    def update(
        self,
        sample_id: str | int,
        prediction: str | None,
        label: str,
        *,
        task: str,
        image: str,
    ) -> Row:
        """Count one question.

        Args:
            sample_id: Unique within the benchmark.
            prediction: What the model said; None if it failed.
            label: ``"yes"`` or ``"no"``, in any case.
            task: One of ``PERCEPTION`` or ``COGNITION``.
            image: The picture's name within its task: two questions share it.
        """
        row = sample_row(
            sample_id,
            failed=prediction is None,
            group=f"{task}/{image}",
            task=task,
            image=image,
            prediction=prediction,
            label=str(label).strip().lower(),
        )
        return self.add_row(row)

    def check_row(self, row: Row) -> None:
        """Refuse unknown tasks and labels."""
        super().check_row(row)
        known = (*PERCEPTION, *COGNITION)
        if row["task"] not in known:
            raise DatasetError(
                f"{row['id']}: MME has no task {row['task']!r}.{did_you_mean(str(row['task']), known)} It has "
                f"{', '.join(known)}."
            )
        _check_label(row)

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """``color/acc`` and ``color/acc+`` per task; units are pictures.

        Raises:
            DatasetError: A picture has not exactly two questions.
        """
        found = {}
        for task in (*PERCEPTION, *COGNITION):
            pictures: dict[tuple[str, int], list[bool]] = defaultdict(list)
            for row in rows:
                if row["task"] == task:
                    pictures[row["image"], row.get("copy", 0)].append(_heard(row, mme_answer) == row["label"])
            for (name, _), right in pictures.items():
                if len(right) != 2:
                    raise DatasetError(
                        f"MME {task}: picture {name} has {len(right)} questions, expected 2. Measure complete tasks, "
                        "and merge the processes' rows before asking for a result."
                    )
            if pictures:
                units = tuple(f"{task}/{name}" for name, _ in pictures)
                two = np.full(len(units), 2)
                above = np.array([sum(right) for right in pictures.values()])
                both = np.array([int(all(right)) for right in pictures.values()])
                found[f"{task}/acc"] = Ratio(units, above, two, units)
                found[f"{task}/acc+"] = Ratio(units, both, np.ones(len(units), np.int64), units)
        return found

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The ratios, ``score`` per task (0..200), ``perception`` (0..2000), ``cognition`` (0..800), ``total``.

        A sum is None unless all of its tasks are there; ``missing`` names the others.
        """
        found = super().figures(rows)
        score = {
            task: 100 * (found[f"{task}/acc"] + found[f"{task}/acc+"])
            for task in (*PERCEPTION, *COGNITION)
            if f"{task}/acc" in found
        }
        perception, cognition = _sum_of(score, PERCEPTION), _sum_of(score, COGNITION)
        return {
            **found,
            "score": score,
            "perception": perception,
            "cognition": cognition,
            "total": None if perception is None or cognition is None else perception + cognition,
            "missing": [task for task in (*PERCEPTION, *COGNITION) if task not in score],
        }


def _yes_no_ratios(rows: Sequence[Row], heard: Sequence[Answer], name: str) -> dict[str, Ratio]:
    said, true = [answer == "yes" for answer in heard], [row["label"] == "yes" for row in rows]
    pairs = list(zip(said, true, strict=True))
    both = [int(a and b) for a, b in pairs]
    return {
        f"{name}/accuracy": ratio(rows, [int(a == b) for a, b in pairs]),
        f"{name}/precision": ratio(rows, both, [int(a) for a in said]),
        f"{name}/recall": ratio(rows, both, [int(b) for b in true]),
        f"{name}/f1": ratio(rows, [2 * hit for hit in both], [a + b for a, b in pairs]),
        f"{name}/yes": ratio(rows, [int(a) for a in said]),
    }


def _heard(row: Row, read: Any) -> Answer:
    """What the model said; where it failed, or a strict reading finds nothing, the wrong answer."""
    answer: Answer = "other" if row["failed"] else read(row["prediction"])
    if answer == "other":
        return "no" if row["label"] == "yes" else "yes"
    return answer


def _first_words(text: str) -> list[str]:
    return text.split(".")[0].replace(",", "").split(" ")


def _check_label(row: Row) -> None:
    if row["label"] not in ("yes", "no"):
        raise DatasetError(f"{row['id']}: the label is {row['label']!r}, expected 'yes' or 'no'.")


def _sum_of(score: dict[str, float], tasks: Sequence[str]) -> float | None:
    return sum(score[task] for task in tasks) if all(task in score for task in tasks) else None
