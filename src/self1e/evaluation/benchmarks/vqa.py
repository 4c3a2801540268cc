"""Benchmarks of questions: VQAv2, OK-VQA, TextVQA, VizWiz, GQA, POPE, MME, MMBench, drawn scenes.

A unit is one picture with all questions about it. Answers are greedy, asked for and judged as in InternVL's tables
(METHOD 7.5, METRICS 6 to 8), with at most 6 tiles; there is no thumbnail (InternVL's own evaluation adds one), which
the prompt's id says. What the papers leave open is set here: up to 100 new tokens for POPE and MMBench, 20 for MME.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self1e.errors import DatasetError, Self1EError
from self1e.evaluation.benchmarks.interface import Benchmark, Opened, Options, hash_names
from self1e.evaluation.benchmarks.masks import summarise
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.metrics.yes_no import COGNITION, PERCEPTION, POPE_FILES
from self1e.evaluation.protocols import PROTOCOLS

if TYPE_CHECKING:
    from self1e.data.vqa_benchmarks import Asked

SCENES = 500
"""Drawn scenes whose questions are asked."""
SCENE_SIZE = (160, 160)

Unit = tuple["Asked", ...]


@dataclass(frozen=True, kw_only=True)
class Questions:
    """One split: where its questions come from, and how a model is asked."""

    read: Callable[[Path | None], list[Asked]]
    """From the data sets' folder."""
    protocols: tuple[str, ...]
    prompt: str
    """Id of the request that follows each question."""
    max_new_tokens: int = 10
    max_tiles: int | None = 6
    """None is what the checkpoint says."""
    expected: int | tuple[int, ...] | None = None
    """Questions of the complete split, if known; of each edition where there are several."""


def _benchmark(name: str, questions: Questions) -> Benchmark:
    tiles = "own tiles" if questions.max_tiles is None else f"{questions.max_tiles} tiles, no thumbnail"
    return Benchmark(
        name=name,
        protocols=questions.protocols,
        prompt=f"{questions.prompt}; {tiles}; {questions.max_new_tokens} tokens",
        open=partial(_open, questions),
        measure=partial(_measure, questions),
        failed=partial(_failed, questions),
        expected=questions.expected,
        answers=("generated",),
    )


def _open(questions: Questions, root: Path | None) -> Opened:
    """Group the questions by picture, in the order in which pictures come."""
    asked = questions.read(root)
    units: dict[str, list[Asked]] = {}
    for question in asked:
        units.setdefault(question.picture_id, []).append(question)
    told = [json.dumps([one.id, one.prompt, one.picture_id, one.truth], ensure_ascii=False) for one in asked]
    missing = sorted({str(one.picture) for one in asked if isinstance(one.picture, Path) and not one.picture.is_file()})
    problems = (*summarise(missing), *_wrong_truths(questions, asked))
    return Opened(units=[tuple(unit) for unit in units.values()], annotations=hash_names(told), problems=problems)


def _wrong_truths(questions: Questions, asked: Sequence[Asked]) -> tuple[str, ...]:
    """Find what cannot be judged before a model spends hours on it."""
    told: list[str] = []
    seen: set[str] = set()
    for one in asked:
        try:
            _rows(questions, (one,), [None])
        except Self1EError as error:
            told.append(str(error))
        if one.id in seen:
            told.append(f"Question {one.id} stands there twice; download the file anew.")
        seen.add(one.id)
    return tuple(told[:1]) if len(told) < 2 else (f"{told[0]} So it is with {len(told)} of {len(asked)} questions.",)


def _measure(questions: Questions, model: Any, unit: Unit, options: Options) -> list[Row]:
    """Ask everything about one picture, in batches that share its encoding; one by one if that cannot be done."""
    image = unit[0].image()
    errors: dict[str, str] = {}
    try:
        answers: list[str | None] = [*_ask(questions, model, image, unit)]
    except Exception:
        answers = []
        for one in unit:
            try:
                answers += _ask(questions, model, image, (one,))
            except Exception as error:
                answers.append(None)
                errors[one.id] = f"{type(error).__name__}: {error}"
    rows = _rows(questions, unit, answers)
    return [row | {"error": errors[row["id"]]} if row["id"] in errors else row for row in rows]


def _ask(questions: Questions, model: Any, image: Any, unit: Unit) -> list[str]:
    from self1e.inference.answering import answer_questions

    [answers] = answer_questions(
        model,
        [(image, [one.prompt for one in unit])],
        max_new_tokens=questions.max_new_tokens,
        max_tiles=questions.max_tiles,
    )
    return answers


def _failed(questions: Questions, opened: Opened, index: int) -> list[Row]:
    unit: Unit = opened.units[index]
    return _rows(questions, unit, [None] * len(unit))


def _rows(questions: Questions, unit: Unit, answers: Sequence[str | None]) -> list[Row]:
    metric: Any = PROTOCOLS[questions.protocols[0]].metric()
    is_submitted = questions.protocols[0] == "vqa.submission"
    rows = []
    for one, answer in zip(unit, answers, strict=True):
        truth = {"submitted": one.submitted} if is_submitted else one.truth
        if truth is None:
            raise DatasetError(
                f"{one.id}: the data give no answer, so that this split cannot be scored here; the test splits "
                "(vqav2/test-dev, vizwiz/test, mmbench-*-test) write answers for their servers."
            )
        rows.append(metric.update(one.id, answer, **truth))
    return rows


# --------------------------------------------------------------------------- readers, imported when they are used


def _needs(root: Path | None, name: str) -> Path:
    if root is None:
        raise DatasetError(f"{name} needs its official files: give the folder of the data sets (--data ROOT).")
    return root


def _open_set(name: str, root: Path | None) -> list[Asked]:
    from self1e.data.vqa_benchmarks.open_answers import read_open

    return read_open(_needs(root, name), name)


def _pope(root: Path | None) -> list[Asked]:
    from self1e.data.vqa_benchmarks.yes_no import read_pope

    return read_pope(_needs(root, "pope"), POPE_FILES)


def _mme(root: Path | None) -> list[Asked]:
    from self1e.data.vqa_benchmarks.yes_no import read_mme

    return read_mme(_needs(root, "mme"), (*PERCEPTION, *COGNITION))


def _mmbench(table: str, root: Path | None) -> list[Asked]:
    from self1e.data.vqa_benchmarks.options import read_mmbench

    return read_mmbench(_needs(root, table), table, chinese="_cn_" in table)


def _scenes(root: Path | None) -> list[Asked]:
    from self1e.data.vqa_benchmarks.drawn import read_scene_questions

    return read_scene_questions(SCENES, size_wh=SCENE_SIZE)


_SHORT = "short answer"
_M4C = ("vqa.m4c", "vqa.official")
_LETTER = partial(Questions, prompt="option's letter", max_new_tokens=100)

QUESTIONS: dict[str, Questions] = {
    "vqav2/val": Questions(read=partial(_open_set, "vqav2/val"), protocols=_M4C, prompt=_SHORT, expected=214_354),
    "vqav2/test-dev": Questions(
        read=partial(_open_set, "vqav2/test-dev"), protocols=("vqa.submission",), prompt=_SHORT, expected=107_394
    ),
    "okvqa/val": Questions(read=partial(_open_set, "okvqa/val"), protocols=_M4C, prompt=_SHORT, expected=5_046),
    "textvqa/val": Questions(
        read=partial(_open_set, "textvqa/val"), protocols=_M4C, prompt=f"{_SHORT}, no OCR tokens", expected=5_000
    ),
    "vizwiz/val": Questions(
        read=partial(_open_set, "vizwiz/val"), protocols=_M4C, prompt=f"{_SHORT} or unanswerable", expected=4_319
    ),
    "vizwiz/test": Questions(
        read=partial(_open_set, "vizwiz/test"),
        protocols=("vqa.submission",),
        prompt=f"{_SHORT} or unanswerable",
        expected=8_000,
    ),
    "gqa/testdev": Questions(
        read=partial(_open_set, "gqa/testdev"), protocols=("gqa.exact",), prompt=_SHORT, expected=12_578
    ),
    "pope": Questions(
        read=_pope,
        protocols=("pope.ivl", "pope.pooled"),
        prompt=f"{_SHORT}, own line",
        max_new_tokens=100,
        expected=(9_000, 8_910),  # as POPE's authors ship it; with the shorter "random" of LLaVA's evaluation
    ),
    "mme": Questions(read=_mme, protocols=("mme",), prompt=_SHORT, max_new_tokens=20, expected=2_374),
    "mmbench-en/dev": _LETTER(
        read=partial(_mmbench, "mmbench_dev_20230712"), protocols=("mmb.circular", "mmb.vanilla")
    ),
    "mmbench-cn/dev": _LETTER(
        read=partial(_mmbench, "mmbench_dev_cn_20231003"), protocols=("mmb.circular", "mmb.vanilla")
    ),
    "mmbench-en/test": _LETTER(read=partial(_mmbench, "mmbench_test_en_20231003"), protocols=("vqa.submission",)),
    "mmbench-cn/test": _LETTER(read=partial(_mmbench, "mmbench_test_cn_20231003"), protocols=("vqa.submission",)),
    "scenes-questions/test": Questions(
        read=_scenes, protocols=("scenes.exact",), prompt="bare", max_new_tokens=8, max_tiles=None
    ),
}
"""Every split by name. Counts are of complete, official files."""

VQA_BENCHMARKS: dict[str, Benchmark] = {name: _benchmark(name, chosen) for name, chosen in QUESTIONS.items()}
"""The same as benchmarks."""
