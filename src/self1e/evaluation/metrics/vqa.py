"""Accuracy of short answers: soft accuracy over ten people's answers, and exact match (METRICS 6).

Soft accuracy is the mean over the ten people of ``min(1, others who say the same / 3)``: 0, 0.3, 0.6, 0.9 and 1 for 0,
1, 2, 3 and 4 or more equal answers. What "equal" means depends on the normaliser, so it is part of the number:

* ``m4c`` (EvalAI's; VQAv2, OKVQA, TextVQA and VizWiz in InternVL's tables) treats prediction and answers alike;
* ``official`` (the VQA API's) always treats the prediction, and the answers' punctuation only if people disagree.

Both are reproduced with their quirks, since figures are only comparable with them.

A row is ``{"id": ..., "failed": false, "prediction": "two", "answers": ["2", ...], "answer_type": "number"}``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.rows import Metric, Ratio, Row, ratio, sample_row

NUM_PEOPLE = 10

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COUNTING = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(k) for k, word in enumerate(_COUNTING)}
ARTICLES = frozenset({"a", "an", "the"})
_FULL_STOP = re.compile(r"\.(?!\d)")
"""The published pattern also looks behind for a digit, but misspells it so that it always holds."""
_MAX_FULL_STOPS = 32
"""The published code passes ``re.UNICODE``, which is 32, where the count goes."""
_NUMBER_COMMA = re.compile(r"\d,\d")


def _contractions() -> dict[str, str]:
    """Words that people write without one of their apostrophes, and the right spelling.

    The VQA API's table (BSD-2-Clause) follows this rule, but for one entry the other way round. Its entries with a
    capital letter can never match and are left out.
    """
    right = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
    """
    table = {"somebody'd": "somebodyd"}
    for word in right.split():
        table |= {word[:k] + word[k + 1 :]: word for k, letter in enumerate(word) if letter == "'"}
    return table


CONTRACTIONS = _contractions()


def strip_punctuation(text: str) -> str:
    """Delete or blank every mark, as the VQA API does.

    A mark that stands beside a space anywhere in the text (or any mark, if the text has a comma between digits) is
    deleted everywhere; otherwise each of its places becomes a space.
    """
    has_number_comma = _NUMBER_COMMA.search(text) is not None
    found = text
    for mark in PUNCTUATION:
        deletes = has_number_comma or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if deletes else " ")
    return _FULL_STOP.sub("", found, count=_MAX_FULL_STOPS)


def plain_words(text: str) -> str:
    """Lower the text, write numbers as digits, drop articles, mend apostrophes."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalise_m4c(text: str) -> str:
    """Normalise a prediction or an answer as EvalAI's processor does."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return plain_words(strip_punctuation(_one_line(text)))


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Leave-one-out accuracy of a normalised prediction against normalised answers of ten people."""
    same = sum(answer == prediction for answer in answers)
    others = same * min(3, max(same - 1, 0)) + (len(answers) - same) * min(3, same)
    return others / (3 * len(answers))


def accuracy_m4c(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy, both sides through ``normalise_m4c``."""
    return soft_accuracy(normalise_m4c(prediction), [normalise_m4c(answer) for answer in answers])


def accuracy_official(prediction: str, answers: Sequence[str]) -> float:
    """Soft accuracy of the VQA API: answers lose their punctuation only where people disagree."""
    answers = [_one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        answers = [strip_punctuation(answer) for answer in answers]
    return soft_accuracy(plain_words(strip_punctuation(_one_line(prediction))), answers)


RULES: dict[str, Callable[[str, Sequence[str]], float]] = {"m4c": accuracy_m4c, "official": accuracy_official}


class VqaAccuracy(Metric):
    """Mean soft accuracy, in all and per answer type.

    Args:
        rule: The normaliser.
    """

    required = ("prediction", "answers", "answer_type")

    def __init__(self, rule: Literal["m4c", "official"] = "m4c") -> None:
        super().__init__()
        if rule not in RULES:
            raise SettingError(f"rule={rule!r}; known are {', '.join(RULES)}.")
        self.rule = rule

    @property
    def settings(self) -> dict[str, Any]:
        """The normaliser."""
        return {"rule": self.rule}

    def update(
        self,
        sample_id: str | int,
        prediction: str | None,
        answers: Sequence[str],
        *,
        answer_type: str = "",
        group: str | None = None,
    ) -> Row:
        """Count one question.

        Args:
            sample_id: Unique within the benchmark.
            prediction: What the model said; None if it failed.
            answers: What ten people said.
            answer_type: ``"yes/no"``, ``"number"`` or ``"other"`` where the data tell.
            group: What the question belongs to, e.g. its picture.
        """
        row = sample_row(
            sample_id,
            failed=prediction is None,
            group=group,
            prediction=prediction,
            answers=list(answers) if not isinstance(answers, str) else answers,
            answer_type=answer_type,
        )
        return self.add_row(row)

    def check_row(self, row: Row) -> None:
        """Refuse questions without exactly ten answers."""
        super().check_row(row)
        answers = row["answers"]
        if not isinstance(answers, list) or len(answers) != NUM_PEOPLE:
            what = f"{len(answers)} answers" if isinstance(answers, list) else repr(answers)
            raise DatasetError(
                f"{row['id']}: {what:.80}, expected a list of {NUM_PEOPLE}, one per person: soft accuracy is defined "
                "for ten. Data with one answer are measured by ExactMatch."
            )

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """``accuracy``, and ``accuracy/<answer type>`` where types are given."""
        score = RULES[self.rule]
        values = [0.0 if row["failed"] else score(row["prediction"], row["answers"]) for row in rows]
        found = {"accuracy": ratio(rows, values)}
        for kind in sorted({row["answer_type"] for row in rows} - {""}):
            found[f"accuracy/{kind}"] = ratio(
                rows,
                [value if row["answer_type"] == kind else 0.0 for value, row in zip(values, rows, strict=True)],
                [int(row["answer_type"] == kind) for row in rows],
            )
        return found


class ExactMatch(Metric):
    """GQA: the prediction without full stops at its end, in lower case, is the one answer."""

    required = ("prediction", "answer")

    def update(
        self, sample_id: str | int, prediction: str | None, answer: str, *, group: str | None = None, tag: str = ""
    ) -> Row:
        """Count one question.

        Args:
            sample_id: Unique within the benchmark.
            prediction: What the model said; None if it failed.
            answer: The one right answer.
            group: What the question belongs to, e.g. its picture.
            tag: What it asks for, where the data tell: figures are given for each.
        """
        values = {"prediction": prediction, "answer": _text(sample_id, answer)} | ({"tag": tag} if tag else {})
        return self.add_row(sample_row(sample_id, failed=prediction is None, group=group, **values))

    def ratios(self, rows: Sequence[Row]) -> dict[str, Ratio]:
        """``accuracy``, and ``accuracy/<tag>`` where tags are given."""
        right = [int(not row["failed"] and _matches(row)) for row in rows]
        found = {"accuracy": ratio(rows, right)}
        tags = [row.get("tag", "") for row in rows]
        for name in sorted(set(tags) - {""}):
            of_tag = [int(tag == name) for tag in tags]
            found[f"accuracy/{name}"] = ratio(rows, [a * b for a, b in zip(right, of_tag, strict=True)], of_tag)
        return found


class Submitted(Metric):
    """Answers whose truth only a test server has: no figure is computed from them here.

    A row is ``{"id": ..., "failed": false, "prediction": "two", "submitted": {"question_id": 7}}``.
    """

    required = ("prediction", "submitted")

    def update(self, sample_id: str | int, prediction: str | None, *, submitted: dict[str, Any]) -> Row:
        """Keep one answer.

        Args:
            sample_id: Unique within the benchmark.
            prediction: What the model said; None if it failed.
            submitted: What the server's file says of the question, besides the answer.
        """
        row = sample_row(sample_id, failed=prediction is None, prediction=prediction, submitted=submitted)
        return self.add_row(row)


def _matches(row: Row) -> bool:
    return row["prediction"].rstrip(".").lower() == row["answer"].lower()


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _text(sample_id: str | int, answer: Any) -> str:
    if not isinstance(answer, str):
        raise DatasetError(f"{sample_id}: the answer is {answer!r:.80}, expected text.")
    return answer
