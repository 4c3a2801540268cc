"""VQAv2, OK-VQA, TextVQA, VizWiz and GQA: questions that a word or a phrase answers.

Official downloads, with pictures where they unpack to (folders below ``data/``)::

    vqav2/   v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json     coco/val2014/
             v2_OpenEnded_mscoco_test-dev2015_questions.json                                    coco/test2015/
    okvqa/   OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json           coco/val2014/
    textvqa/ TextVQA_0.5.1_val.json                                                             textvqa/train_images/
    vizwiz/  val.json, test.json                                                                vizwiz/{val,test}/
    gqa/     testdev_balanced_questions.json                                                    gqa/images/

InternVL's own form (METHOD 7.5) is read as well: ``SET/SET_val.jsonl`` names pictures and asks, and
``SET_val_annotations.json`` (or the official annotations) has the ten answers; GQA's lines hold theirs::

    {"image": "data/coco/val2014/COCO_val2014_000000262148.jpg", "question": "Where is he looking?",
     "question_id": 262148000, "answer": "down"}

Quirks kept: OK-VQA is judged by ``answer``, not ``raw_answer``; TextVQA is asked without OCR tokens; VizWiz's
"unanswerable" is an ordinary answer, and its questions are numbered by their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self1e.data.files import CocoPictures, read_json, read_json_lines
from self1e.data.vqa_benchmarks.asked import Asked, find_home
from self1e.errors import DatasetError
from self1e.processing.prompts import SHORT_ANSWER_PROMPT, UNANSWERABLE_PROMPT

Records = Iterator[dict[str, Any]]
_KEYS = "image, question, question_id"


@dataclass(frozen=True, kw_only=True)
class OpenSet:
    """One split of one set."""

    folder: str
    """Below ``data/``."""
    official: tuple[str, ...]
    """Files of the download: questions, and answers where they are apart and public."""
    records: Callable[..., Records]
    """Their content to ``image`` (path below ``data/``), ``question``, ``question_id`` and the truth."""
    lines: str = ""
    """InternVL's file of questions, if it has one."""
    line_answers: tuple[str, ...] = ()
    """Files with the ten answers of ``lines``, the first that is there; () if the lines hold the one answer."""
    prompt: str = SHORT_ANSWER_PROMPT
    """Follows each question after a space."""


def read_open(root: str | Path, name: str) -> list[Asked]:
    """Read every question of a split.

    Args:
        root: The data sets' folder, see ``find_home``.
        name: One of `OPEN_SETS`, e.g. ``"vqav2/val"``.

    Raises:
        DatasetError: Files are missing or malformed, or a question has no answers.
    """
    chosen = OPEN_SETS[name]
    wanted = [chosen.official[0], *([chosen.lines] if chosen.lines else [])]
    home = find_home(root, chosen.folder, *wanted)
    is_official = (home / chosen.official[0]).is_file()
    used = home / (chosen.official[0] if is_official else chosen.lines)
    try:
        records = list(_official(home, chosen) if is_official else _from_lines(home, chosen))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"{used} cannot be read at {error!r}; expected the file of that name as {name} publishes it."
        ) from error
    if not records:
        raise DatasetError(f"{used} holds no question; expected the complete split {name}.")
    find = _Pictures(home.parent)
    return [
        Asked(
            id=str(record["question_id"]),
            prompt=f"{record['question']} {chosen.prompt}",
            picture=find(record["image"], f"{name}/{record['question_id']}"),
            picture_id=record["image"],
            truth=record["truth"] and record["truth"] | {"group": record["image"]},
            submitted={"question_id": record["question_id"], "image": Path(record["image"]).name},
        )
        for record in records
    ]


class _Pictures:
    """Pictures by their path below ``data/``, COCO's also under the names of its other editions."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self._coco = CocoPictures(data.parent / "dataset", data / "coco" / "val2014")

    def __call__(self, image: str, source: str) -> Path:
        path = self.data / image
        if path.is_file() or "_val2014_" not in path.name or not self._coco.folders:
            return path  # if it is not there, opening it says so
        try:
            return self._coco.find(path.name, source)
        except DatasetError:
            return path


def _official(home: Path, chosen: OpenSet) -> Records:
    found = [read_json(home / name, f"the official {name}") for name in chosen.official]
    yield from chosen.records(*found)


def _from_lines(home: Path, chosen: OpenSet) -> Records:
    answers: dict[Any, dict[str, Any]] = {}
    if chosen.line_answers:
        there = [home / name for name in chosen.line_answers if (home / name).is_file()]
        if not there:
            raise DatasetError(
                f"{home} has {chosen.lines} but no {' or '.join(chosen.line_answers)}: its ten answers per question "
                "are needed to judge."
            )
        answers = _ten_answers(read_json(there[0], "the annotations with ten answers per question"))
    for _, record in read_json_lines(home / chosen.lines, _KEYS):
        number = record["question_id"]
        if chosen.line_answers and number not in answers:
            raise DatasetError(f"{home / chosen.lines}: question {number!r} has no answers in the annotations.")
        yield {
            "image": str(record["image"]).removeprefix("./").removeprefix("data/"),
            "question": _bare(record["question"]),
            "question_id": number,
            "truth": answers[number] if chosen.line_answers else {"answer": record["answer"]},
        }


def _bare(question: str) -> str:
    """The question alone: some lines carry the request for a short answer already."""
    return question.removesuffix(SHORT_ANSWER_PROMPT).rstrip()


def _ten_answers(annotations: Any) -> dict[Any, dict[str, Any]]:
    return {one["question_id"]: _truth(one) for one in annotations["annotations"]}


def _truth(one: dict[str, Any]) -> dict[str, Any]:
    """Ten answers, and what kind of answer they are where the data tell."""
    answers = [answer["answer"] if isinstance(answer, dict) else answer for answer in one["answers"]]
    return {"answers": answers, "answer_type": one.get("answer_type") or ""}


def _from_vqa(folder: str) -> Callable[..., Records]:
    """VQAv2 and OK-VQA: the API's questions, and annotations unless they are kept by the test server."""

    def records(questions: Any, annotations: Any = None) -> Records:
        answers = {} if annotations is None else _ten_answers(annotations)
        for one in questions["questions"]:
            number = one["question_id"]
            if annotations is not None and number not in answers:
                raise DatasetError(
                    f"Question {number} has no annotation; the files of questions and annotations are of different "
                    "splits. Download both of the same."
                )
            yield {
                "image": f"coco/{folder}/COCO_{folder}_{int(one['image_id']):012d}.jpg",
                "question": one["question"],
                "question_id": number,
                "truth": answers.get(number),
            }

    return records


def _from_textvqa(found: Any) -> Records:
    for one in found["data"]:
        image = f"textvqa/train_images/{one['image_id']}.jpg"
        yield {"image": image, "question": one["question"], "question_id": one["question_id"], "truth": _truth(one)}


def _from_vizwiz(split: str) -> Callable[..., Records]:
    def records(found: Any) -> Records:
        for number, one in enumerate(found):
            truth = _truth(one) if "answers" in one else None
            yield {
                "image": f"vizwiz/{split}/{one['image']}",
                "question": one["question"],
                "question_id": number,
                "truth": truth,
            }

    return records


def _from_gqa(found: Any) -> Records:
    for number, one in found.items():
        image = f"gqa/images/{one['imageId']}.jpg"
        truth = {"answer": one["answer"]}
        yield {"image": image, "question": one["question"], "question_id": number, "truth": truth}


OPEN_SETS = {
    "vqav2/val": OpenSet(
        folder="vqav2",
        official=("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"),
        records=_from_vqa("val2014"),
        lines="vqav2_val.jsonl",
        line_answers=("v2_mscoco_val2014_annotations.json",),
    ),
    "vqav2/test-dev": OpenSet(
        folder="vqav2",
        official=("v2_OpenEnded_mscoco_test-dev2015_questions.json",),
        records=_from_vqa("test2015"),
    ),
    "okvqa/val": OpenSet(
        folder="okvqa",
        official=("OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"),
        records=_from_vqa("val2014"),
        lines="okvqa_val.jsonl",
        line_answers=("mscoco_val2014_annotations.json",),
    ),
    "textvqa/val": OpenSet(
        folder="textvqa",
        official=("TextVQA_0.5.1_val.json",),
        records=_from_textvqa,
        lines="textvqa_val.jsonl",
        line_answers=("textvqa_val_annotations.json",),
    ),
    "vizwiz/val": OpenSet(
        folder="vizwiz",
        official=("val.json",),
        records=_from_vizwiz("val"),
        lines="vizwiz_val.jsonl",
        line_answers=("vizwiz_val_annotations.json",),
        prompt=UNANSWERABLE_PROMPT,
    ),
    "vizwiz/test": OpenSet(
        folder="vizwiz", official=("test.json",), records=_from_vizwiz("test"), prompt=UNANSWERABLE_PROMPT
    ),
    "gqa/testdev": OpenSet(
        folder="gqa",
        official=("testdev_balanced_questions.json",),
        records=_from_gqa,
        lines="llava_gqa_testdev_balanced_qwen_format.jsonl",
    ),
}
"""The splits, by name."""
