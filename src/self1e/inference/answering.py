"""Answers in words to many questions at once: greedy, pictures encoded once, short rows padded on the left.

`Self1E.chat` is this for one question; more of them get the same answers (up to rounding where rows are padded) with
fewer passes. No mask is made, so the fine branch is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from self1e.errors import PromptError, SettingError
from self1e.inference.segmenter import EncodedPicture, Self1E
from self1e.inference.writing import encode_for_words, write_greedily
from self1e.model import VisionFeatures
from self1e.processing.pictures import open_picture

BATCH = 16
"""Most questions per pass, if the caller does not say."""


@torch.inference_mode()
def answer_questions(
    model: Self1E,
    requests: Iterable[tuple[Any, Sequence[str]]],
    *,
    max_new_tokens: int = 64,
    max_tiles: int | None = None,
    batch_size: int = BATCH,
) -> list[list[str]]:
    """Answer every question about every picture.

    Args:
        model: To be asked.
        requests: ``(picture, questions)`` each; a picture is what ``Self1E.encode`` takes or returned, or None.
        max_new_tokens: Longest answer.
        max_tiles: Most tiles per picture, 1 to 12; left out, what the checkpoint says.
        batch_size: Most questions per pass.

    Returns:
        Per request, the answers in the order of its questions.

    Raises:
        PromptError: A question is empty.
        PictureError: A picture cannot be read.
        SettingError: A number cannot work.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise SettingError(f"{name}={value} must be at least 1.")
    asked = [(picture, list(questions)) for picture, questions in requests]
    for _, questions in asked:
        for question in questions:
            if not isinstance(question, str) or not question.strip():
                raise PromptError(f"question={question!r}; expected words.")
    found: list[list[str]] = [[] for _ in asked]
    rows = [(index, question) for index, (_, questions) in enumerate(asked) for question in questions]
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        used = sorted({index for index, _ in batch})
        visions = [_encode(model, asked[index][0], max_tiles) for index in used]
        pictures = [used.index(index) for index, _ in batch]
        answers = _answer(model, [question for _, question in batch], pictures, visions, max_new_tokens)
        for (index, _), answer in zip(batch, answers, strict=True):
            found[index].append(answer)
    return found


def _encode(model: Self1E, picture: Any, max_tiles: int | None) -> VisionFeatures | None:
    """Encode a picture, unless it is or there is none."""
    if picture is None:
        return None
    if isinstance(picture, EncodedPicture):
        model._check_encoded(picture, max_tiles, None)
        return picture.vision
    return encode_for_words(model, open_picture(picture).image, max_tiles)


def _answer(
    model: Self1E,
    questions: Sequence[str],
    pictures: Sequence[int],
    visions: Sequence[VisionFeatures | None],
    max_new_tokens: int,
) -> list[str]:
    """Answer one batch; ``pictures[row]`` is an index into ``visions``."""
    processor = model.processor
    tiles = [0 if vision is None else len(vision.coarse) for vision in visions]
    rows = [
        processor.tokenize_conversation([(question.strip(), None)], num_tiles=tiles[picture]).input_ids
        for question, picture in zip(questions, pictures, strict=True)
    ]
    answers = write_greedily(model, rows, _of_rows(pictures, visions), max_new_tokens=max_new_tokens)
    return [text.strip() for text in processor.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def _of_rows(pictures: Sequence[int], visions: Sequence[VisionFeatures | None]) -> dict[str, Any]:
    """What the model needs to know of the rows' pictures; nothing if there is none."""
    there = [index for index, vision in enumerate(visions) if vision is not None]
    if not there:
        return {}
    kept = [vision for vision in visions if vision is not None]
    joined = VisionFeatures(
        coarse=torch.cat([vision.coarse for vision in kept]),
        fine=None,
        patches=torch.cat([vision.patches for vision in kept]),
        tile_grids=[grid for vision in kept for grid in vision.tile_grids],
    )
    return {"vision": joined, "picture_of_row": [there.index(row) if row in there else -1 for row in pictures]}
