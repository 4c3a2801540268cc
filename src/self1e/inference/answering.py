"""Answers in words to many questions at once: greedy, pictures encoded once, short rows padded on the left.

`Self1E.chat` answers one question; this gives the same answers (up to rounding where rows are padded) with fewer
passes. No mask is made, so the fine branch is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from self1e.errors import PromptError, SettingError
from self1e.inference.segmenter import Self1E
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
        requests: ``(picture, questions)`` each; a picture is what ``Self1E.encode`` opens, or None for none.
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
    if max_new_tokens < 1 or batch_size < 1:
        raise SettingError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1.")
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
        vision = _encode(model, [asked[index][0] for index in used], max_tiles)
        pictures = [used.index(index) for index, _ in batch]
        answers = _generate(model, [question for _, question in batch], pictures, vision, max_new_tokens)
        for (index, _), answer in zip(batch, answers, strict=True):
            found[index].append(answer)
    return found


def _encode(model: Self1E, pictures: Sequence[Any], max_tiles: int | None) -> list[VisionFeatures | None]:
    """Encode each picture, without the fine branch."""
    images = model.processor.image_processor
    found: list[VisionFeatures | None] = []
    for picture in pictures:
        if picture is None:
            found.append(None)
            continue
        levels, grid = images.cut(open_picture(picture).image, max_tiles)
        pixel_values = torch.from_numpy(images.normalise(np.ascontiguousarray(levels))).to(model.device, model.dtype)
        output: Any = model.model.model.get_image_features(pixel_values=pixel_values, return_dict=True)  # pyright: ignore
        found.append(VisionFeatures(output.pooler_output, None, output.last_hidden_state[:, 1:], [grid]))
    return found


def _generate(
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
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), processor.pad_token_id)
    is_real = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):  # on the left: every answer then begins in the same column
        input_ids[row, longest - len(ids) :] = torch.tensor(ids)
        is_real[row, longest - len(ids) :] = 1
    network: Any = model.model  # its `generate` is typed by a protocol that transformers' models do not meet
    output: Any = network.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=is_real.to(model.device),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=processor.turn_end_id,
        pad_token_id=processor.pad_token_id,
        **_of_rows(pictures, visions),
    )
    texts = processor.tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
    return [text.strip() for text in texts]


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
