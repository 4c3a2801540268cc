"""Words, greedily: the one place where answers of rows of text are generated.

`Self1E.chat` and `answer_questions` want words of them, `segment_generated` the tokens. A conversation writes token by
token instead (`self1e.inference.session`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from self1e.model import VisionFeatures

if TYPE_CHECKING:
    from self1e.inference.segmenter import Self1E


@torch.inference_mode()
def write_greedily(
    model: Self1E, rows: Sequence[Sequence[int]], about: dict[str, Any], *, max_new_tokens: int
) -> list[list[int]]:
    """Continue rows of text in one batch, under the causal mask.

    Args:
        model: To be asked.
        rows: Token ids, with the pictures' tokens. Shorter ones are padded on the left: every answer then begins in
            the same column.
        about: What the model's ``forward`` takes of the rows' pictures: ``vision`` and ``picture_of_row``, or nothing.
        max_new_tokens: Longest answer.

    Returns:
        Token ids of each answer, up to the end of the turn and without it.
    """
    processor = model.processor
    longest = max(map(len, rows))
    input_ids = torch.full((len(rows), longest), processor.pad_token_id)
    is_real = torch.zeros_like(input_ids)
    for row, ids in enumerate(rows):
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
        **about,
    )
    end = processor.turn_end_id
    return [ids[: ids.index(end)] if end in ids else ids for ids in output[:, longest:].tolist()]


@torch.inference_mode()
def encode_for_words(model: Self1E, image: Image.Image, max_tiles: int | None) -> VisionFeatures:
    """Encode a picture without the fine branch, which only masks need.

    Args:
        model: To be asked.
        image: Upright, RGB.
        max_tiles: Most tiles, 1 to 12; left out, what the checkpoint says.
    """
    images = model.processor.image_processor
    levels, grid = images.cut(image, max_tiles)
    pixel_values = torch.from_numpy(images.normalise(np.ascontiguousarray(levels))).to(model.device, model.dtype)
    output: Any = model.model.model.get_image_features(pixel_values=pixel_values, return_dict=True)  # pyright: ignore
    return VisionFeatures(output.pooler_output, None, output.last_hidden_state[:, 1:], [grid])
