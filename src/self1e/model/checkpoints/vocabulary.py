"""The rows of the vocabulary: as many as the tokenizer has tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def resized_rows(matrix: Tensor, rows: int) -> Tensor:
    """Cut a matrix with one row per token, or extend it by the mean of its rows (METHOD 1.3).

    Args:
        matrix: ``(V, D)``.
        rows: Wanted; a base that pads its vocabulary (Qwen3) has too many.

    Returns:
        ``(rows, D)``, of the same type; the mean is taken in float32.
    """
    if rows <= len(matrix):
        return matrix[:rows]
    mean = matrix.mean(0, keepdim=True, dtype=torch.promote_types(matrix.dtype, torch.float32)).to(matrix.dtype)
    return torch.cat([matrix, mean.expand(rows - len(matrix), -1)])


@torch.no_grad()
def resize_vocabulary(model: Any, rows: int) -> None:
    """Give a loaded model one row per token, in its input and output matrices and its configuration.

    Args:
        model: A `Self1EForConditionalGeneration`.
        rows: ``len(tokenizer)``.
    """
    if model.config.text_config.vocab_size == rows:
        return
    before = [module.weight.detach() for module in (model.get_input_embeddings(), model.get_output_embeddings())]
    model.resize_token_embeddings(rows, mean_resizing=False)
    # transformers draws new rows from a narrow normal distribution; the mean itself is the same every time.
    for module, old in zip((model.get_input_embeddings(), model.get_output_embeddings()), before, strict=True):
        module.weight.copy_(resized_rows(old, rows))
