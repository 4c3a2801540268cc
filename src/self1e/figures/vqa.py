"""Fig. 5: the answers of two models to the same questions, side by side.

A mark says whether an expected answer, where one is given, stands in what the model said, by whole words and after the
normaliser of VQA (METRICS 6.2). That is a rule and no judge: an answer in other words counts as wrong.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from self1e.data.files import read_json_lines
from self1e.errors import DatasetError, SettingError
from self1e.evaluation.metrics.vqa import normalise_m4c
from self1e.figures.sheet import FAINT, INK, LINE, ZOOM, Sheet
from self1e.inference.answering import answer_questions
from self1e.inference.base_answers import base_answers
from self1e.processing.pictures import open_picture

Answering = Callable[[Sequence[tuple[Any, Sequence[str]]]], list[list[str]]]
"""From pictures with questions to answers, see ``answer_questions``."""

_WIDTH, _SIDE, _MARGIN, _GAP, _TOP = 860, 180, 22, 18, 58
_TALLEST = 420  # of one entry; answers are cut before
_LONGEST_ANSWER = 400  # characters
_RIGHT, _WRONG = (20, 130, 60), (190, 40, 30)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question about a picture."""

    picture: Any
    """What ``Self1E.encode`` takes."""
    question: str
    answer: str = ""
    """What is expected; empty if that is not known."""


def read_asked(file: str | Path) -> list[Asked]:
    """Read a list of questions: CSV with the columns ``picture``, ``question`` and perhaps ``answer``, or JSON lines.

    Paths of pictures are relative to the list.

    Raises:
        DatasetError: No such file, or a line lacks picture or question, or a picture is not there.
    """
    file = Path(file)
    if file.suffix.lower() == ".csv":
        if not file.is_file():
            raise DatasetError(f"No file {file}; expected CSV with the columns picture and question.")
        try:
            text = file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(
                f"{file} cannot be read as text ({error}); expected CSV with the columns picture and question."
            ) from error
        rows = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = [row for _, row in read_json_lines(file, "picture, question")]
    found = []
    for number, row in enumerate(rows, 1):
        picture, question = row.get("picture"), row.get("question")
        if not (isinstance(picture, str) and picture and isinstance(question, str) and question.strip()):
            raise DatasetError(f"{file}, entry {number} has no picture or no question; expected both, as text.")
        if not (file.parent / picture).is_file():
            raise DatasetError(f"{file}, entry {number}: no picture {file.parent / picture}; paths are relative to it.")
        found.append(Asked(picture=file.parent / picture, question=question, answer=str(row.get("answer") or "")))
    if not found:
        raise DatasetError(f"{file} lists no question.")
    return found


def is_right(said: str, expected: str) -> bool:
    """Whether the expected words stand in an answer, both normalised."""
    return f" {_words(expected)} " in f" {_words(said)} "


def _words(text: str) -> str:
    return " ".join(word.strip("'") for word in normalise_m4c(text).split())


def answering(model: Any, *, max_new_tokens: int = 64, max_tiles: int | None = None) -> Answering:
    """Let a model answer; the settings are those of ``answer_questions``."""
    return partial(answer_questions, model, max_new_tokens=max_new_tokens, max_tiles=max_tiles)


def base_answering(model: Any, *, max_new_tokens: int = 64, max_tiles: int | None = None) -> Answering:
    """Let the base of a model answer (`self1e.inference.base_answers`)."""

    def answer(requests: Sequence[tuple[Any, Sequence[str]]]) -> list[list[str]]:
        with base_answers(model):
            return answer_questions(model, requests, max_new_tokens=max_new_tokens, max_tiles=max_tiles)

    return answer


def draw_vqa(models: Sequence[tuple[str, Answering]], asked: Sequence[Asked]) -> Sheet:
    """Ask every model everything, and draw the answers.

    Args:
        models: Two or more names, each with what answers.
        asked: Questions, in the order in which they are drawn.

    Raises:
        SettingError: There is nothing to compare.
    """
    if len(models) < 2 or not asked:
        raise SettingError(
            f"{len(models)} model(s) and {len(asked)} question(s): answers side by side need two models and a question."
        )
    images = [open_picture(one.picture).image for one in asked]
    requests = [(image, [one.question]) for image, one in zip(images, asked, strict=True)]
    answers = [[answer for [answer] in answering(requests)] for _, answering in models]
    sheet = Sheet(_WIDTH, _TOP + _TALLEST * len(asked))
    sheet.text(_MARGIN, 28, " | ".join(name for name, _ in models), 15, bold=True)
    y = float(_TOP)
    for k, (one, image) in enumerate(zip(asked, images, strict=True)):
        said = [(name, answers[m][k]) for m, (name, _) in enumerate(models)]
        y = _draw_entry(sheet, y, image, one, said) + _GAP
    sheet.image = sheet.image.crop((0, 0, sheet.image.width, round(y * ZOOM)))
    return sheet


def _draw_entry(sheet: Sheet, y: float, image: Image.Image, one: Asked, said: Sequence[tuple[str, str]]) -> float:
    """Draw one question; return where it ends."""
    sheet.box(_MARGIN, y - _GAP / 2, _WIDTH - 2 * _MARGIN, 0.5, LINE)
    scale = _SIDE / max(image.size)
    height = image.height * scale
    sheet.panel(_MARGIN, y, image.width * scale, height, image)
    x, room = _MARGIN + _SIDE + _GAP, _WIDTH - _SIDE - _GAP - 2 * _MARGIN
    below = sheet.lines(x, y, _plain(one.question), room, 13, INK)
    if one.answer:
        below = sheet.lines(x, below + 2, f"expected: {_plain(one.answer)}", room)
    for name, answer in said:
        ink, mark = FAINT, ""
        if one.answer:
            right = is_right(answer, one.answer)
            ink, mark = (_RIGHT, " (right)") if right else (_WRONG, " (wrong)")
        below = sheet.lines(x, below + 7, f"{_plain(name)}{mark}", room, 11, ink)
        below = sheet.lines(x, below, _plain(answer) or "(no words)", room, 12, INK)
    return min(max(below, y + height), y + _TALLEST - _GAP)


def _plain(words: str) -> str:
    """Text as it stands: the sheet would read indices out of ``_{`` and ``^{``."""
    words = " ".join(words.split()).replace("_{", "_ {").replace("^{", "^ {")
    return words if len(words) <= _LONGEST_ANSWER else f"{words[:_LONGEST_ANSWER].rstrip()} ..."
