"""What the page says: messages of a conversation, HTML, files to take home, examples."""

from __future__ import annotations

import io
import json
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.errors import SettingError
from self1e.inference.export import FORMATS
from self1e.inference.session import Done, Mask, NotThere, TextDelta
from self1e.structures import Segmentation
from self1e.web import words
from self1e.web.downloads import map_file, masks_file, stem_of
from self1e.web.examples import PORTRAIT, write_examples
from self1e.web.finding import Row
from self1e.web.talking import answered, turn_options


def result(*, is_there: bool = True, query: str = "the cup") -> Segmentation:
    mask = np.zeros((20, 30), dtype=bool)
    mask[:10] = is_there
    image = Image.new("RGB", (30, 20))
    return Segmentation.from_masks([mask], [0.9], [query], image=image, source="my picture.jpg")


def done(**changes: Any) -> Done:
    facts: dict[str, Any] = {
        "text": "",
        "mode": "auto",
        "decision": "text",
        "probability": 0.25,
        "stopped": "end",
        "new_tokens": 2,
        "prompt_tokens": 9,
        "known_tokens": 0,
        "dropped_turns": 0,
    }
    return Done(**facts | changes)


def test_words_grow_in_one_message_and_a_mask_stands_between():
    events = [TextDelta("It is "), TextDelta("[SEG]"), Mask(result()), TextDelta("."), done(decision="segment")]
    steps = list(answered(events))
    assert len(steps) == len(events)
    assert [message.text for message in steps[1][0]] == ["It is [SEG]"]
    last, told = steps[-1]
    assert [message.text for message in last] == ["It is [SEG]", "Mask: 50.0% of the picture, score 0.90.", "."]
    assert last[1].picture is not None
    assert last[1].picture.size == (30, 20)
    assert told == "The model chose a mask; its own probability of [SEG] was 25%; 2 tokens."
    assert all(told == "" for _, told in steps[:-1])


def test_not_there_and_silence_are_said():
    [(messages, _)] = answered([NotThere(result(is_there=False), 0.3)])
    assert [(message.text, message.picture) for message in messages] == [("“the cup”: not there.", None)]
    [(messages, told)] = answered([done(mode="text", stopped="length", new_tokens=1, dropped_turns=3)])
    assert messages[0].text == "(no words)"
    assert told.startswith("You asked for words only;")
    assert told.endswith("1 token, cut at the limit. The 3 oldest turns left the model's view.")


def test_words_of_the_base_are_said_to_be_its():
    [(_, told)] = answered([done(mode="text", adapter="off", probability=0.0)])
    assert told == "You asked for words only, from the base model, which knows no [SEG]; 2 tokens."


def test_what_has_no_effect_on_a_turn_is_not_passed_on():
    assert turn_options("auto", "off", 0, 0.5, 7, has_base=True) == {"mode": "auto", "temperature": 0}
    drawn = {"temperature": 0.7, "top_p": 0.5, "seed": 7}
    assert turn_options("segment", "off", 0.7, 0.5, 7, has_base=True) == {"mode": "segment", **drawn}
    assert turn_options("text", "off", 0.7, 0.5, 7, has_base=True) == {"mode": "text", "adapter": "off", **drawn}
    for wrong in (("text", "off", 0, 1, None), ("text", "upside down", 0, 1, None), ("poem", "on", 0, 1, None)):
        with pytest.raises(SettingError):
            turn_options(*wrong, has_base=False)


def test_why_the_base_cannot_answer_is_said():
    assert "--base FOLDER" in words.whose_words(has_base=False)
    assert "not at hand" not in words.whose_words(has_base=True)


def test_nothing_that_was_typed_becomes_html():
    evil = "<script>alert(1)</script>"
    row = Row(evil, (1, 2, 3), True, 0.5, 10, 0.1, 0.9)
    for html in (words.table([row]), words.table([row], what=evil), words.problem(evil), words.note(evil)):
        assert "<script>" not in html
        assert "&lt;script&gt;" in html


def test_the_table_says_not_there_as_such():
    absent = Row("a boat", (1, 2, 3), False, 0.0, 0, 0.0, 0.31)
    there = Row("a cup", (4, 5, 6), True, 0.876, 1234, 0.0004, 0.9)
    html = words.table([absent, there])
    assert "not there <small>(surest pixel 31%)</small>" in html
    assert "0.88" in html
    assert "&lt;0.1 %" in html or "<0.1 %" in html
    assert "1,234 px" in html
    assert "rgb(4,5,6)" in html


def test_an_alert_is_read_out_and_silence_is_silent():
    assert "role='alert'" in words.problem("x")
    assert "role='status'" in words.note("x")
    assert words.note("") == ""


def test_the_head_says_which_model_runs_and_what_it_knows(tiny_model):
    html = words.header(tiny_model)
    assert tiny_model.name in html.replace("&#x27;", "'")
    assert "float32" in html
    assert "not calibrated" in html
    nano = SimpleNamespace(name="nano", no_target_threshold=0.6)
    assert "people and 58 kinds of clothing" in words.knows(nano)
    assert "below 0.60" in words.rejects(nano)


def test_the_style_loads_nothing():
    assert "url(" not in words.style()
    assert "@import" not in words.style()
    assert "nth-of-type(16)" in words.style()


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_can_be_taken_home(name):
    file, data = masks_file(result(), [name])
    assert file.startswith("my_picture.")
    assert data


def test_several_files_are_a_zip_and_the_same_result_is_the_same_file():
    name, data = masks_file(result(), ["overlay", "json", "mask"])
    assert name == "my_picture.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.namelist() == ["my_picture.overlay.png", "my_picture.json", "my_picture.mask0.png"]
        assert json.loads(archive.read("my_picture.json"))["queries"][0]["query"] == "the cup"
    assert masks_file(result(), ["overlay", "json", "mask"]) == (name, data)


def test_no_format_is_said():
    with pytest.raises(SettingError, match="nothing would be written"):
        masks_file(result(), [])


def test_a_map_is_taken_home_with_its_legend():
    from self1e.inference.semantic import SemanticMap

    image = Image.new("RGB", (8, 8))
    found = SemanticMap(np.ones((8, 8), np.uint8), ("sky",), np.ones(1, np.float32), image=image, source="a.jpg")
    name, data = map_file(found)
    assert name == "a.semantic.zip"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert {"a.semantic.png", "a.legend.png", "a.semantic.json"} <= set(archive.namelist())


@pytest.mark.parametrize(
    ("source", "stem"),
    [("a b/c?.jpg", "c"), ("../../etc/passwd", "passwd"), ("", "picture"), ("...", "picture"), ("x" * 300, "x" * 80)],
)
def test_stems_are_file_names_everywhere(source, stem):
    assert stem_of(source) == stem


def test_examples_are_pictures_with_words_for_every_part(tmp_path):
    examples = write_examples(tmp_path)
    assert len(examples) == 3 + PORTRAIT.is_file()
    for one in examples:
        with Image.open(one.picture) as image:
            image.load()
        assert one.queries.splitlines()[0] == one.first_query != ""
        assert one.classes
        assert one.question
