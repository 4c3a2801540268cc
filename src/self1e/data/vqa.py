"""Questions with answers in words: LLaVA-Instruct-150k, VQAv2, OK-VQA, TextVQA, VizWiz, GQA.

On disk, as published (METHOD section 7.1)::

    <root>/llava_dataset/llava_instruct_150k.json, pictures in <root>/coco/train2017/
        [{"image": "000000033471.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat ...?"},
                                                         {"from": "gpt", "value": "The bus ..."}, ...]}, ...]
    <beside root>/data/vqav2/vqav2_train.jsonl, okvqa/okvqa_train.jsonl, textvqa/textvqa_train.jsonl,
                       vizwiz/vizwiz_train.jsonl, gqa/train_balanced.jsonl
        {"image": "data/coco/train2014/COCO_train2014_000000458752.jpg", "question": "What position ...?",
         "question_id": 458752001, "answer": "pitcher"}

Pictures of the JSON lines are named from the folder that holds ``data/``. `convert` makes the lines from each set's
official download. Of ten people's answers it takes the one most often given, of equals the first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from self1e.data.files import CocoPictures, read_json, read_rgb, read_size
from self1e.data.sample import Outline, Question, Sample
from self1e.errors import DatasetError, did_you_mean
from self1e.processing.prompts import IMAGE_PLACEHOLDER, SHORT_ANSWER_PROMPT, UNANSWERABLE_PROMPT

_KEYS = ("image", "question", "question_id", "answer")


@dataclass(frozen=True, kw_only=True)
class VqaSet:
    """One of the data sets whose training file is JSON lines."""

    lines: str
    """The training file, under ``data/``."""
    downloads: tuple[str, ...]
    """Names of the official files that it is made from, in the order that ``records`` takes them."""
    records: Callable[..., Iterator[dict[str, Any]]]
    """Turns the content of the official files into records of the training file."""
    prompt: str = SHORT_ANSWER_PROMPT
    """Follows each question after a space."""


class VqaLines(Sequence[Sample]):
    """Sample ``i`` is line ``i``: its picture, and one question with the prompt for a short answer.

    The file is indexed once and then read line by line: it may be large.
    """

    def __init__(self, data: str | Path, name: str) -> None:
        """Index a training file.

        Args:
            data: The folder ``data/`` that holds the set's folder.
            name: One of `VQA_SETS`.

        Raises:
            DatasetError: The file is missing or empty.
        """
        self.data, self.name, self.set = Path(data), name, find_vqa_set(name)
        self.path = self.data / self.set.lines
        if not self.path.is_file():
            raise DatasetError(
                f"No file {self.path}; expected JSON lines with {', '.join(_KEYS)}. Make it from the official "
                f"{' and '.join(self.set.downloads)} with self1e.data.vqa.convert({name!r}, ...)."
            )
        self._starts = _line_starts(self.path)
        if not len(self._starts):
            raise DatasetError(f"{self.path} is empty; expected JSON lines with {', '.join(_KEYS)}.")
        self._pictures = CocoPictures(self.data.parent / "dataset", self.data / "coco" / "train2014")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        source, picture, question, answer = self._read(index)
        asked = Question(text=f"{question} {self.set.prompt}", answer=answer, tag=self.name)
        return Sample(image=read_rgb(self._find(picture, source), source), questions=(asked,), source=source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        source, picture, question, answer = self._read(index)
        size_wh = read_size(self._find(picture, source), source) if with_size else None
        letters = len(question) + len(self.set.prompt) + len(answer)
        return Outline(letters=letters, has_mask=False, size_wh=size_wh)

    def _read(self, index: int) -> tuple[str, str, str, str]:
        """Read a line: its source, picture, question and answer."""
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            line = file.readline()
        source = f"{self.name}/{range(len(self))[index] + 1}"
        try:
            record = json.loads(line)
            picture, question, answer = (str(record[key]) for key in ("image", "question", "answer"))
        except (ValueError, KeyError, TypeError) as error:
            raise DatasetError(
                f"{source}: line {range(len(self))[index] + 1} of {self.path} is malformed at {error!r}; expected "
                f"one JSON object with {', '.join(_KEYS)}."
            ) from error
        return source, picture, question, answer

    def _find(self, picture: str, source: str) -> Path:
        path = self.data.parent / picture
        if not path.is_file() and "COCO" in picture:
            path = self._pictures.find(picture, source)
        return path


def _line_starts(path: Path) -> np.ndarray:
    """Find where each line that is not blank begins, int64."""
    starts, position = [], 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                starts.append(position)
            position += len(line)
    return np.array(starts, dtype=np.int64)


class LlavaInstruct(Sequence[Sample]):
    """Sample ``i`` is conversation ``i``: one `Question` whose ``before`` holds all turns but the last."""

    def __init__(self, root: str | Path) -> None:
        """Read the conversations.

        Args:
            root: Holds ``llava_dataset/`` and ``coco/``.

        Raises:
            DatasetError: The file is missing or malformed.
        """
        self.path = Path(root) / "llava_dataset" / "llava_instruct_150k.json"
        expected = "LLaVA-Instruct-150k, a list of records with image and conversations"
        self.records = read_json(self.path, expected)
        if not isinstance(self.records, list) or not self.records:
            raise DatasetError(f"{self.path} holds no list of records; expected {expected}.")
        self._pictures = CocoPictures(root, Path(root) / "coco" / "train2017")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices
        source, picture, (*before, (question, answer)) = self._read(index)
        image = read_rgb(self._pictures.find(picture, source), source)
        asked = Question(text=question, answer=answer, tag="conversation", before=tuple(before))
        return Sample(image=image, questions=(asked,), source=source)

    def peek(self, index: int, *, with_size: bool = False) -> Outline:
        """Outline a sample; see `Outline`."""
        source, picture, turns = self._read(index)
        size_wh = read_size(self._pictures.find(picture, source), source) if with_size else None
        letters = sum(len(question) + len(answer) for question, answer in turns)
        return Outline(letters=letters, has_mask=False, size_wh=size_wh)

    def _read(self, index: int) -> tuple[str, str, list[tuple[str, str]]]:
        """Check a record: its source, picture and turns."""
        record = self.records[index]
        source = f"llava_instruct_150k/{range(len(self))[index]}"
        try:
            return source, str(record["image"]), read_turns(record["conversations"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"{source}: record {range(len(self))[index]} of {self.path} is malformed at {error!r}; expected image "
                "and conversations, in which human and gpt take turns."
            ) from error


def read_turns(conversations: Sequence[dict[str, str]]) -> list[tuple[str, str]]:
    """Turn LLaVA's messages into questions with answers, ``<image>`` taken out: the picture goes before the first.

    A leading message that is not the human's is dropped, as published, and so is a last question without answer.

    Raises:
        ValueError: Human and model do not take turns, or nothing is asked.
    """
    messages = [(message["from"], message["value"].replace(IMAGE_PLACEHOLDER, "").strip()) for message in conversations]
    if messages and messages[0][0] != "human":
        messages = messages[1:]
    messages = messages[: len(messages) // 2 * 2]
    speakers = [speaker for speaker, _ in messages]
    if not messages or speakers != ["human", "gpt"] * (len(messages) // 2):
        raise ValueError(f"speakers {[message['from'] for message in conversations]}")
    texts = [text for _, text in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))


def convert(name: str, downloads: Sequence[str | Path], data: str | Path) -> Path:
    """Make a training file from the official download.

    Args:
        name: One of `VQA_SETS`.
        downloads: The official files, in the order of ``VQA_SETS[name].downloads``.
        data: The folder ``data/``; the file goes to its published place in it.

    Returns:
        The file that was written.

    Raises:
        DatasetError: A download is missing, is another file, or leaves a question unanswered.
    """
    chosen = find_vqa_set(name)
    if len(downloads) != len(chosen.downloads):
        raise DatasetError(
            f"{name} is made from {len(chosen.downloads)} file(s), found {len(downloads)}; give "
            f"{' and '.join(chosen.downloads)}, in this order."
        )
    paths = [Path(download) for download in downloads]
    found = [read_json(path, f"the official {known}") for path, known in zip(paths, chosen.downloads, strict=True)]
    try:
        records = list(chosen.records(*found))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise DatasetError(
            f"{' and '.join(map(str, paths))} cannot be read at {error!r}; expected the official "
            f"{' and '.join(chosen.downloads)}, in this order."
        ) from error
    if not records:
        raise DatasetError(f"{paths[0]} holds no question; expected the official {chosen.downloads[0]}.")
    written = Path(data) / chosen.lines
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text("".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records), "utf-8")
    return written


def most_frequent(answers: Iterable[str]) -> str:
    """Take the answer that most people gave, of equals the first."""
    return Counter(answers).most_common(1)[0][0]


def find_vqa_set(name: str) -> VqaSet:
    """Find a data set by its name in `VQA_SETS`.

    Raises:
        DatasetError: There is none.
    """
    if name not in VQA_SETS:
        raise DatasetError(f"Unknown data set {name!r}.{did_you_mean(name, VQA_SETS)} Known: {', '.join(VQA_SETS)}.")
    return VQA_SETS[name]


def _record(image: str, question: str, question_id: Any, answer: str) -> dict[str, Any]:
    return dict(zip(_KEYS, (image, question, question_id, answer), strict=True))


def _from_vqa(questions: Any, annotations: Any) -> Iterator[dict[str, Any]]:
    """VQAv2 and OK-VQA: questions and annotations apart, pictures of COCO's train2014."""
    answers = {
        annotation["question_id"]: annotation.get("multiple_choice_answer")
        or most_frequent(answer["answer"] for answer in annotation["answers"])
        for annotation in annotations["annotations"]
    }
    for question in questions["questions"]:
        image = f"data/coco/train2014/COCO_train2014_{question['image_id']:012d}.jpg"
        number = question["question_id"]
        yield _record(image, question["question"], number, answers[number])


def _from_textvqa(found: Any) -> Iterator[dict[str, Any]]:
    for one in found["data"]:
        image = f"data/textvqa/train_images/{one['image_id']}.jpg"
        yield _record(image, one["question"], one["question_id"], most_frequent(one["answers"]))


def _from_vizwiz(found: Any) -> Iterator[dict[str, Any]]:
    """VizWiz has no question ids: their order stands in."""
    for number, one in enumerate(found):
        answer = most_frequent(answer["answer"] for answer in one["answers"])
        yield _record(f"data/vizwiz/train/{one['image']}", one["question"], number, answer)


def _from_gqa(found: Any) -> Iterator[dict[str, Any]]:
    for number, one in found.items():
        yield _record(f"data/gqa/images/{one['imageId']}.jpg", one["question"], number, one["answer"])


VQA_SETS = {
    "vqav2": VqaSet(
        lines="vqav2/vqav2_train.jsonl",
        downloads=("v2_OpenEnded_mscoco_train2014_questions.json", "v2_mscoco_train2014_annotations.json"),
        records=_from_vqa,
    ),
    "okvqa": VqaSet(
        lines="okvqa/okvqa_train.jsonl",
        downloads=("OpenEnded_mscoco_train2014_questions.json", "mscoco_train2014_annotations.json"),
        records=_from_vqa,
    ),
    "textvqa": VqaSet(
        lines="textvqa/textvqa_train.jsonl", downloads=("TextVQA_0.5.1_train.json",), records=_from_textvqa
    ),
    "vizwiz": VqaSet(
        lines="vizwiz/vizwiz_train.jsonl",
        downloads=("train.json",),
        records=_from_vizwiz,
        prompt=UNANSWERABLE_PROMPT,
    ),
    "gqa": VqaSet(lines="gqa/train_balanced.jsonl", downloads=("train_balanced_questions.json",), records=_from_gqa),
}
"""The data sets, by the name that METHOD section 7.1 gives them."""
