"""Public data sets: the table holds together, and what is there is counted."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from self1e.data.prepare import find_source, prepare, verify
from self1e.data.sources import SOURCES, Archive, Expected, Source
from self1e.errors import DatasetError, SettingError

NAMES = (
    "ade20k cocostuff paco_lvis pascal_part refcoco refcoco+ refcocog refclef grefcoco reasonseg llava_instruct_150k "
    "vqav2 okvqa textvqa vizwiz gqa coco2014 coco2017"
)


@pytest.fixture
def toy(monkeypatch):
    """A set with an archive and a count, and one that needs its pictures."""
    pictures = Source(
        name="pictures",
        title="Pictures",
        page="https://example.org",
        licence="unknown",
        archives=(Archive("pictures.zip", "toy", "top"),),
        expected=(Expected("toy/train", "files", 2, ".jpg"),),
    )
    words = Source(
        name="words",
        title="Words",
        page="https://example.org",
        licence="unknown",
        expected=(Expected("toy/words.json", "records", 3, key="refs"), Expected("toy/any.jsonl", "records")),
        needs=("pictures",),
    )
    monkeypatch.setitem(SOURCES, "pictures", pictures)
    monkeypatch.setitem(SOURCES, "words", words)


def write_archive(path: Path, count: int) -> None:
    with zipfile.ZipFile(path, "w") as file:
        for number in range(count):
            file.writestr(f"top/train/{number}.jpg", b"x")
        file.writestr("top/train/readme.txt", b"x")


def test_every_set_of_the_method_is_there():
    assert set(NAMES.split()) <= set(SOURCES)


@pytest.mark.parametrize("source", SOURCES.values(), ids=lambda source: source.name)
def test_every_entry_is_complete(source):
    assert source.page.startswith(("https://", "http://"))
    assert not source.page.endswith((".zip", ".tar", ".gz", ".json"))  # pages stay, files move
    assert source.licence
    assert source.expected
    assert set(source.needs) <= set(SOURCES)
    for expected in source.expected:
        assert not Path(expected.path).is_absolute()
        assert ".." not in expected.path
        assert (expected.unit == "files") == bool(expected.suffix)


def test_published_counts():
    counts = {one.path: one.count for source in SOURCES.values() for one in source.expected}
    assert counts["reason_seg/ReasonSeg/train"] == 239  # METHOD 7.1
    assert counts["refer_seg/refcoco/instances.json"] == 19_994
    assert counts["refer_seg/refcoco+/instances.json"] == 19_992
    assert counts["coco/train2017"] == counts["cocostuff/train2017"]


def test_an_unknown_name_gets_a_suggestion():
    with pytest.raises(SettingError, match="Did you mean 'refcocog'"):
        find_source("refcocogg")


def test_archives_are_unpacked_once_and_counted(toy, tmp_path):
    downloads, root = tmp_path / "downloads", tmp_path / "root"
    downloads.mkdir()
    (result,) = prepare("pictures", root, downloads)
    assert not result.is_complete
    assert result.absent == ["pictures.zip"]
    assert result.checked[0].state == "missing"
    write_archive(downloads / "pictures.zip", 2)
    (result,) = prepare("pictures", root, downloads)
    assert result.is_complete
    assert (result.unpacked[0].new, result.checked[0].found) == (3, 2)
    (downloads / "pictures.zip").unlink()
    (result,) = prepare("pictures", root, downloads)
    assert result.is_complete
    assert (result.unpacked[0].new, result.absent) == (0, [])


def test_a_wrong_number_differs(toy, tmp_path):
    write_archive(tmp_path / "pictures.zip", 3)
    (result,) = prepare("pictures", tmp_path)
    assert not result.is_complete
    assert (result.checked[0].state, result.checked[0].found) == ("differs", 3)
    assert json.loads(json.dumps(result.to_json()))["expected"][0]["found"] == 3


def test_pictures_that_are_needed_come_first(toy, tmp_path):
    write_archive(tmp_path / "pictures.zip", 2)
    pictures, words = prepare("words", tmp_path)
    assert pictures.is_complete
    assert [one.state for one in words.checked] == ["missing", "missing"]
    (tmp_path / "toy" / "words.json").write_text('{"refs": [1, 2, 3]}')
    (tmp_path / "toy" / "any.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n')
    _, words = prepare("words", tmp_path)
    assert words.is_complete
    assert [(one.state, one.found) for one in words.checked] == [("ok", 3), ("there", 2)]


@pytest.mark.parametrize("content", ["{", "[]", '{"refs": 3}', "null"])
def test_what_cannot_be_counted_is_unreadable(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    assert verify(Expected("x.json", "records", 3, key="refs"), tmp_path).state == "unreadable"


def test_files_are_counted_at_any_depth_and_hidden_ones_are_not(tmp_path):
    for name in ("a/1.jpg", "a/b/2.jpg", "a/._3.jpg", "a/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert verify(Expected("a", "files", 2, ".jpg"), tmp_path).state == "ok"
    assert verify(Expected("a/1.jpg", "files", 1, ".jpg"), tmp_path).state == "missing"


def test_questions_are_made_into_lines_beside_the_root(tmp_path):
    root, downloads = tmp_path / "root", tmp_path / "downloads"
    root.mkdir()
    (downloads / "gqa").mkdir(parents=True)
    (result,) = prepare("gqa", root, downloads)
    assert result.absent == ["gqa/train_balanced_questions.json"]
    questions = {"7": {"imageId": "3", "question": "Is it?", "answer": "yes"}}
    (downloads / "gqa" / "train_balanced_questions.json").write_text(json.dumps(questions))
    (result,) = prepare("gqa", root, downloads)
    assert (result.checked[0].state, result.checked[0].found) == ("differs", 1)
    lines = (tmp_path / "data" / "gqa" / "train_balanced.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["answer"] == "yes"
    (downloads / "gqa" / "train_balanced_questions.json").unlink()
    (result,) = prepare("gqa", root, downloads)
    assert result.absent == []


def test_a_dangerous_archive_stops_the_preparation(toy, tmp_path):
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as file:
        file.writestr("../x", b"1")
    with pytest.raises(DatasetError, match="leads out"):
        prepare("pictures", tmp_path)
