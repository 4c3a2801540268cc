"""Many questions at once: the answers of one at a time."""

from __future__ import annotations

import pytest

from self1e.errors import PromptError, SettingError
from self1e.inference.answering import answer_questions

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_batch_answers_like_one_question_at_a_time(tiny_model, pictures):
    requests = [
        (pictures[0], ["What is it?", "Is there a red thing in the left half of the picture?"]),
        (None, ["Say something."]),
        (pictures[2], ["Where?"]),
        (pictures[1], []),
    ]
    for batch_size in (1, 3, 16):
        found = answer_questions(tiny_model, requests, max_new_tokens=6, max_tiles=4, batch_size=batch_size)
        expected = [
            [tiny_model.chat(picture, q, max_new_tokens=6, max_tiles=4 if picture else None) for q in questions]
            for picture, questions in requests
        ]
        assert found == expected
    assert len({answer for answers in found for answer in answers}) > 1


def test_questions_about_no_picture_alone(tiny_model):
    found = answer_questions(tiny_model, [(None, ["One?", "Another one?"])], max_new_tokens=4)
    assert found == [[tiny_model.chat(None, q, max_new_tokens=4) for q in ("One?", "Another one?")]]


def test_what_cannot_be_asked_is_refused(tiny_model, pictures):
    with pytest.raises(PromptError, match="expected words"):
        answer_questions(tiny_model, [(pictures[0], ["What?", " "])])
    with pytest.raises(SettingError, match="batch_size=0 must be at least 1"):
        answer_questions(tiny_model, [(pictures[0], ["What?"])], batch_size=0)
