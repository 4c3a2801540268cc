"""Real answers of a published model give the published figures, which are read from the data's README."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from pycocotools import mask as coco

from self1e.errors import DatasetError
from self1e.evaluation.coco_results import CocoResult, read_coco_results, write_coco_results
from self1e.evaluation.metrics.yes_no import Mme, Pope
from self1e.structures import encode_mask


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    assert len(found) == 1, f"{folder} holds {len(found)} files {pattern}, expected one."
    return found[0]


@pytest.fixture
def readme(conformance):
    """The text that states the figures."""
    for folder in (conformance, conformance.parent):
        if (folder / "README.md").is_file():
            return (folder / "README.md").read_text("utf-8")
    pytest.fail(f"No README.md in {conformance} or its parent: nothing says what the answers should give.")


def question(text):
    """The question without what was put after it."""
    return text.split("\n")[0].replace("Please answer yes or no.", "").strip()


def test_mme_per_task(conformance, readme):
    folder = conformance / "mme"
    asked, answered = lines_of(only(folder, "*questions.jsonl")), lines_of(only(folder, "answers_*.jsonl"))
    said = {}
    for ask, answer in zip(asked, answered, strict=True):
        assert (ask["question_id"], ask["text"]) == (answer["question_id"], answer["prompt"])
        said[ask["category"], Path(ask["image"]).name, question(ask["text"])] = answer["text"]
    metric = Mme()
    for path in sorted((folder / "Your_Results").glob("*.txt")):
        for number, line in enumerate(path.read_text("utf-8").splitlines()):
            image, text, label = line.split("\t")
            prediction = said[path.stem, image, question(text)]
            metric.update(f"{path.stem}/{number}", prediction, label, task=path.stem, image=image)
    found = metric.result()
    stated = {task: value for task, value in re.findall(r"(\w+) (\d+\.\d\d)\b", readme) if task in found["score"]}
    assert {task: f"{score:.2f}" for task, score in found["score"].items()} == stated
    assert len(metric) == len(answered) > 0
    assert sorted([*found["score"], *found["missing"]]) == sorted({*found["score"]} | {*found["missing"]})


def test_pope_random(conformance, readme):
    folder = conformance / "pope"
    truth = lines_of(only(folder, "coco_pope_random.json"))
    labels = {(entry["image"], entry["text"]): entry["label"] for entry in truth}
    answers = {entry["question_id"]: entry["text"] for entry in lines_of(only(folder, "answers_*_random.jsonl"))}
    metric, unlabelled = Pope(), 0
    for entry in lines_of(only(folder, "*test_random.jsonl")):
        key = entry["image"], question(entry["text"])
        if key not in labels:
            unlabelled += 1
            continue
        metric.update(entry["question_id"], answers[entry["question_id"]], labels[key], file="random", group=key[0])
    found = metric.result()
    pattern = r"(\d+) of (\d+) questions have no row.*?other (\d+): acc (\S+) P (\S+) R (\S+) F1 (\S+) yes (\S+?)\.\s"
    stated = re.search(pattern, readme, re.DOTALL)
    assert stated is not None
    assert [unlabelled, len(answers), len(metric)] == [int(count) for count in stated.groups()[:3]]
    names = ("accuracy", "precision", "recall", "f1", "yes")
    ours = [f"{found[f'random/{name}']:.4f}".lstrip("0") for name in names]
    assert ours == list(stated.groups()[3:])
    assert found["strict/random/f1"] == found["random/f1"]  # this model always says Yes or No


def test_coco_result_files_round_trip(conformance, tmp_path):
    path = only(conformance / "coco_results", "*_results.json")
    results = read_coco_results(path)
    assert results
    again = []
    for result in results:
        mask = result.mask()
        assert mask.shape == result.size_hw
        assert mask.sum() == coco.area({"size": list(result.size_hw), "counts": result.counts.encode()})
        again.append(
            CocoResult.from_mask(mask, image_id=result.image_id, category_id=result.category_id, score=result.score)
        )
        assert again[-1] == result
    copy = write_coco_results(tmp_path / "copy.json", again)
    assert json.loads(copy.read_text()) == json.loads(path.read_text("utf-8"))
    assert read_coco_results(copy) == results
    assert Counter(result.image_id for result in results).most_common(1)[0][1] > 1


def test_coco_annotations_are_no_results(conformance):
    with pytest.raises(DatasetError, match="holds a dict, expected a list of records"):
        read_coco_results(only(conformance / "coco_results", "instances_*sample.json"))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}, "record 0 has no segmentation"),
        ({"segmentation": [[0, 0, 1, 1, 2, 2]]}, "expected a compressed run-length code"),
        ({"score": float("nan")}, "score is nan"),
        (3, "has no image_id"),
    ],
)
def test_bad_coco_records_are_named(tmp_path, record, message):
    import numpy as np

    counts = encode_mask(np.eye(3, dtype=bool))["counts"].decode()
    good = {"image_id": 1, "category_id": 1, "segmentation": {"size": [3, 3], "counts": counts}, "score": 0.5}
    changed = record if not isinstance(record, dict) or "bbox" in record else good | record
    path = tmp_path / "results.json"
    path.write_text(json.dumps([changed]))
    with pytest.raises(DatasetError, match=message):
        read_coco_results(path)
