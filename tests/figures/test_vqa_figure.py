"""Answers of two models side by side: drawn as they were given, judged by a stated rule."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from self1e.cli.main import main
from self1e.errors import DatasetError, SettingError
from self1e.figures.sheet import ZOOM
from self1e.figures.vqa import Asked, draw_vqa, is_right, read_asked


def saying(*answers):
    """A model of a few fixed answers, and what it was asked."""
    heard = []

    def answering(requests):
        heard.extend((image.size, question) for image, [question] in requests)
        return [[answer] for answer in answers]

    return answering, heard


def test_right_is_the_expected_words_within_the_answer():
    assert is_right("The output of the code is '12'.", "12")
    assert is_right("Two cats.", "2")
    assert not is_right("The output is 120.", "12")
    assert not is_right("Yes, it is.", "no")


def test_every_model_is_asked_everything_and_its_words_are_drawn():
    pictures = [Image.new("RGB", (80, 60), "red"), Image.new("RGB", (30, 90), "blue")]
    asked = [
        Asked(picture=pictures[0], question="Is it red?", answer="yes"),
        Asked(picture=pictures[1], question="Set _{ or ^{ apart?"),
    ]
    first, heard = saying("Yes, it is red.", "word " * 300)
    second, _ = saying("No.", "")
    sheet = draw_vqa([("A", first), ("B", second)], asked)
    assert heard == [((80, 60), "Is it red?"), ((30, 90), "Set _{ or ^{ apart?")]
    assert sheet.image.width == 860 * ZOOM
    pixels = np.asarray(sheet.image).reshape(-1, 3)
    colours = {tuple(colour) for colour in np.unique(pixels, axis=0).tolist()}
    assert {(255, 0, 0), (0, 0, 255), (20, 130, 60), (190, 40, 30)} <= colours  # pictures, right, wrong
    other, _ = saying("Yes.", "")
    again = draw_vqa([("A", first), ("B", other)], asked)
    assert (190, 40, 30) not in {tuple(c) for c in np.unique(np.asarray(again.image).reshape(-1, 3), axis=0).tolist()}


def test_one_model_is_no_comparison():
    with pytest.raises(SettingError, match=r"1 model\(s\) and 1 question\(s\)"):
        draw_vqa([("A", saying("yes")[0])], [Asked(picture=Image.new("RGB", (8, 8)), question="What?")])


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_lists_of_questions_are_read(tmp_path, ending):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    entry = {"picture": "a.png", "question": "What is it, really?", "answer": "black"}
    path = tmp_path / f"list.{ending}"
    lines = ["picture,question,answer", 'a.png,"What is it, really?",black'] if ending == "csv" else [json.dumps(entry)]
    path.write_text("\n".join(lines) + "\n")
    assert read_asked(path) == [Asked(picture=tmp_path / "a.png", question=entry["question"], answer="black")]
    path.write_text(path.read_text().replace("a.png", "b.png"))
    with pytest.raises(DatasetError, match="entry 1: no picture"):
        read_asked(path)
    path.write_text(lines[0].replace("question", "query") + "\n" + (lines[-1] if ending == "csv" else ""))
    with pytest.raises(DatasetError, match="entry 1 has no picture or no question"):
        read_asked(path)
    path.unlink()
    with pytest.raises(DatasetError, match=f"No file .*list.{ending}"):
        read_asked(path)


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("one_thread")
def test_the_command_draws_and_says_what_it_lacks(tiny_model_folder, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures[0].save(tmp_path / "a.png")
    common = ("figure", "vqa", tmp_path / "a.png", "--model", tiny_model_folder, "--device", "cpu")
    other = ("--against", tiny_model_folder)
    assert run(*common, *other, "-q", "What is it?", "-q", "Where?", "--max-new-tokens", 3) == 0
    with Image.open(tmp_path / "a.vqa.png") as drawn:
        assert drawn.width == 860 * ZOOM
        two = drawn.height
    assert run(*common, *other, "-q", "What is it?", "--max-new-tokens", 3, "--out", tmp_path / "one.png") == 0
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.height < two
    assert run(*common, "-q", "What?") == 2
    assert run(*common, *other) == 2
    assert run(*common, "-q", "What?", "--base", tiny_model_folder) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "give --against MODEL or --base FOLDER" in said
    assert "a picture needs them: -q" in said
    assert "its adapters are merged" in said
