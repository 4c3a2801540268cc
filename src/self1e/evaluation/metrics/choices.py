"""MMBench: questions with lettered options, each asked once per rotation of its options (METRICS 8).

A row's number at or above a million is a rotation of the question ``number % 1_000_000``. ``circular`` counts a
question only if every rotation is right; ``vanilla`` counts the unrotated rows alone. Never compare the two.

Letters are read by rules alone, no judge and no guess: label the number "static". Public answers exist for the
development split; the test split is scored by its server.

A row is ``{"id": "241", "failed": false, "prediction": "B", "options": {"A": "...", "B": "..."}, "answer": "B",
"category": "...", "l2_category": "..."}``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from self1e.errors import DatasetError
from self1e.evaluation.metrics.rows import Metric, Ratio, Row, ratio, sample_row

LETTERS = "ABCDE"
ROTATION = 1_000_000
DECORATIONS = tuple(
    pair.split("_") for pair in ("_.", "_,", "_:", "_)", "_).", "(_)", "(_).", ":_", ":_,", ":_.", ":_)", ":_).")
)
"""What may stand before and after a letter, in the order of MMBench's evaluation."""


def read_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Find the option that an answer means, or None.

    In this order: exactly one letter among its words (but an "A" among more than three words may be the article);
    exactly one letter in one of the ``DECORATIONS``; exactly one option's text within the answer, in any case.

    Args:
        text: What the model said.
        options: Letter to text; empty texts are no options.
    """
    words = text.split()
    letters = [letter for letter in LETTERS if letter in words]
    if len(letters) == 1 and not (letters == ["A"] and len(words) > 3):
        return letters[0]
    for before, after in DECORATIONS:
        letters = [letter for letter in LETTERS if before + letter + after in words]
        if len(letters) == 1:
            return letters[0]
    lowered = text.lower()
    named = [letter for letter, option in options.items() if option and option.lower() in lowered]
    return named[0] if len(named) == 1 else None


class MMBench(Metric):
    """Circular and vanilla accuracy, in all and per category."""

    required = ("prediction", "options", "answer", "category", "l2_category")

    def update(
        self,
        sample_id: str | int,
        prediction: str | None,
        answer: str,
        options: Mapping[str, str],
        *,
        category: str = "",
        l2_category: str = "",
        group: str | None = None,
    ) -> Row:
        """Count one question or rotation.

        Args:
            sample_id: The ``index`` of MMBench's table.
            prediction: What the model said; None if it failed.
            answer: The right letter.
            options: Letter to text; empty texts are left out.
            category: Finer category.
            l2_category: Coarser category.
            group: What the question belongs to, e.g. its picture; the same for all of its rotations.
        """
        kept = {letter: str(text) for letter, text in options.items() if text not in (None, "")}
        row = sample_row(
            sample_id,
            failed=prediction is None,
            group=group,
            prediction=prediction,
            options=kept,
            answer=answer,
            category=category,
            l2_category=l2_category,
        )
        return self.add_row(row)

    def check_row(self, row: Row) -> None:
        """Refuse numbers that are none, and answers that are no option."""
        super().check_row(row)
        if not row["id"].isdecimal():
            raise DatasetError(f"Row {row['id']!r}: MMBench numbers its rows; the id must be the table's index.")
        if row["answer"] not in row["options"] or not set(row["options"]) <= set(LETTERS):
            raise DatasetError(
                f"MMBench {row['id']}: the answer {row['answer']!r} is not among the options "
                f"{', '.join(row['options'])} (letters A to E)."
            )

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """``vanilla``; and ``circular``, with ``circular/<category>``, if every question has all its rotations."""
        plain = [row for row in rows if int(row["id"]) < ROTATION]
        found = {"vanilla": ratio(plain, [int(_is_right(row)) for row in plain])}
        questions = _questions(rows)
        if not questions or _incomplete(questions):
            return found
        groups = [("circular", list(questions))]
        for key in ("l2_category", "category"):
            by_name: dict[str, list[int]] = defaultdict(list)
            for base, parts in questions.items():
                by_name[parts[0][key]].append(base)
            groups += [(f"circular/{name}", bases) for name, bases in sorted(by_name.items()) if name]
        for name, bases in groups:
            hits = np.array([int(all(map(_is_right, questions[base]))) for base in bases])
            units = tuple(str(base) for base in bases)
            groups_of = tuple(questions[base][0].get("group") or str(base) for base in bases)
            found[name] = Ratio(units, hits, np.ones(len(bases), np.int64), groups_of)
        return found

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The ratios, ``circular`` None if rotations are missing, ``incomplete`` (questions that lack some)."""
        incomplete = len(_incomplete(_questions(rows)))
        return {"circular": None, **super().figures(rows), "incomplete": incomplete}


def _questions(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """Group rotations by question, the unrotated row first."""
    found: dict[int, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: int(row["id"])):
        found[int(row["id"]) % ROTATION].append(row)
    return found


def _incomplete(questions: Mapping[int, Sequence[Row]]) -> list[int]:
    """Questions that have not as many rows as options, or no unrotated row."""
    return [
        base for base, rows in questions.items() if len(rows) != len(rows[0]["options"]) or int(rows[0]["id"]) != base
    ]


def _is_right(row: Row) -> bool:
    return not row["failed"] and read_letter(row["prediction"], row["options"]) == row["answer"]
