"""POPE and MME: questions that yes or no answers.

POPE, as its authors ship it, with pictures of COCO's val2014 (``data/coco/val2014`` or ``data/pope/val2014``)::

    data/pope/coco/coco_pope_{random,popular,adversarial}.json          (or data/pope/coco_pope_*.json)
        {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
         "label": "yes"}

MME, as its authors ship it; some tasks keep pictures and questions apart, others together::

    data/mme/MME_Benchmark_release_version/<task>/{images/NAME.jpg, questions_answers_YN/NAME.txt}
    data/mme/MME_Benchmark_release_version/<task>/{NAME.jpg, NAME.txt}
        Is the word in the logo "angie's"? Please answer yes or no.<tab>Yes

or in InternVL's form, ``data/mme/Your_Results/<task>.txt`` with ``NAME.jpg<tab>question<tab>Yes`` lines. Each
picture has exactly two questions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from self1e.data.files import CocoPictures, read_json_lines
from self1e.data.vqa_benchmarks.asked import Asked, find_home
from self1e.errors import DatasetError
from self1e.processing.prompts import SHORT_ANSWER_PROMPT

_POPE_KEYS = "question_id, image, text, label"
_PICTURES = (".jpg", ".png", ".jpeg", ".JPG", ".PNG")


def read_pope(root: str | Path, files: tuple[str, ...]) -> list[Asked]:
    """Read the three files of POPE; the request for a short answer follows on a line of its own.

    Args:
        root: The data sets' folder.
        files: ``random``, ``popular``, ``adversarial``.

    Raises:
        DatasetError: A file is missing or malformed: the headline is the mean of all three.
    """
    home = find_home(root, "pope", *(f"{folder}coco_pope_{name}.json" for folder in ("", "coco/") for name in files))
    coco = CocoPictures(home.parent.parent / "dataset", home.parent / "coco" / "val2014", home / "val2014")
    found: list[Asked] = []
    for name in files:
        path = home / f"coco_pope_{name}.json"
        path = path if path.is_file() else home / "coco" / path.name
        for number, record in read_json_lines(path, _POPE_KEYS):
            try:
                image, text, label = (str(record[key]) for key in ("image", "text", "label"))
                sample_id = f"{name}/{record['question_id']}"
            except KeyError as error:
                raise DatasetError(f"{path}, line {number} has no {error}; expected {_POPE_KEYS}.") from error
            found.append(
                Asked(
                    id=sample_id,
                    prompt=f"{text}\n{SHORT_ANSWER_PROMPT}",
                    picture=coco.find(image, sample_id) if coco.folders else home / "val2014" / image,
                    picture_id=image,
                    truth={"label": label, "file": name, "group": image},
                )
            )
    return found


def read_mme(root: str | Path, tasks: tuple[str, ...]) -> list[Asked]:
    """Read the tasks of MME that are there.

    Args:
        root: The data sets' folder.
        tasks: Names of its 14 tasks.

    Raises:
        DatasetError: No task is there, a file is malformed, or a picture has not two questions.
    """
    release = "MME_Benchmark_release_version"
    folders = (f"{release}/{release}", release, "MME_Benchmark_release", ".")
    patterns = [f"{folder}/{task}" for folder in folders for task in tasks] + [f"Your_Results/{t}.txt" for t in tasks]
    try:
        home = find_home(root, "mme", *patterns)
    except DatasetError as error:
        raise DatasetError(
            f"No task of MME below {root}; expected data/mme/{release}/<task>/ with its pictures and questions, for "
            f"{', '.join(tasks)}."
        ) from error
    found: list[Asked] = []
    for task in tasks:
        folder = next((home / name / task for name in folders if (home / name / task).is_dir()), None)
        lines = _mme_lines(home / "Your_Results" / f"{task}.txt", folder)
        counts: dict[str, int] = {}
        for picture, name, question, label in lines:
            counts[name] = counts.get(name, 0) + 1
            found.append(
                Asked(
                    id=f"{task}/{name}/{counts[name]}",
                    prompt=f"{question} {SHORT_ANSWER_PROMPT}",
                    picture=picture,
                    picture_id=f"{task}/{name}",
                    truth={"label": label, "task": task, "image": name},
                )
            )
        odd = [name for name, count in counts.items() if count != 2]
        if odd:
            raise DatasetError(f"MME {task}: picture {odd[0]} has {counts[odd[0]]} questions, expected 2.")
    return found


def _mme_lines(listed: Path, folder: Path | None) -> Iterator[tuple[Path, str, str, str]]:
    """Yield picture, its name, question and label of one task: from the task's folder, else from InternVL's list."""
    questions = sorted(_text_files(folder)) if folder is not None else []
    if folder is not None and questions:
        for path in questions:
            picture = _picture(folder, path.stem)
            for question, label in _fields(path, 2):
                yield picture, picture.name, question, label
    elif listed.is_file():
        task = listed.stem
        pictures = folder or listed.parent.parent / task
        for name, question, label in _fields(listed, 3):
            inside = pictures / "images" / name
            yield (inside if inside.is_file() else pictures / name), name, question, label


def _text_files(folder: Path) -> Iterator[Path]:
    apart = folder / "questions_answers_YN"
    return (apart if apart.is_dir() else folder).glob("*.txt")


def _picture(folder: Path, stem: str) -> Path:
    for place in (folder / "images", folder):
        for ending in _PICTURES:
            if (path := place / f"{stem}{ending}").is_file():
                return path
    return folder / f"{stem}{_PICTURES[0]}"  # opening it says that it is missing


def _fields(path: Path, count: int) -> Iterator[list[str]]:
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) < count or fields[count - 1].lower() not in ("yes", "no"):
            raise DatasetError(
                f"{path}, line {number} is {line[:60]!r}; expected {count} fields with tabs between, the last "
                "Yes or No."
            )
        yield fields[:count]
