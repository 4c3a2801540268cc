"""Dual perception: causal attention plus pathways for pixels (paper Sec. 3.5, METHOD 4).

One function says who sees whom; `transformers` turns it into whatever the attention
implementation needs (an additive mask for eager, a bool mask for SDPA, a block mask for FlexAttention).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def dual_perception_attention_mask(is_image: Tensor, is_seg: Tensor, is_real: Tensor) -> Tensor:
    """Causal attention plus two pathways for pixels: image->image and image->[SEG].

    Rows ask, columns answer. For two image tokens, two words and one [SEG]::

              I I w w S
            I 1 1 . . 1      pixels see the whole image, and [SEG]
            I 1 1 . . 1
            w 1 1 1 . .      words stay causal, so text can still be generated
            w 1 1 1 1 .
            S 1 1 1 1 1

    Pixels look ahead to [SEG], so this mask needs the complete sequence. A row without [SEG] is
    plain causal. This dense form is the specification and what the published code builds
    (METHOD 4: padding keys are invisible, everybody sees itself); the model uses `language_attention_mask`.

    Args:
        is_image: True at image tokens, bool ``(B, N)``.
        is_seg: True at [SEG] tokens, bool ``(B, N)``.
        is_real: False at padding, bool ``(B, N)``. ``input_ids != 0`` reproduces the published
            padding, which takes Qwen's "!" for padding too.

    Returns:
        ``allowed[b, query, key]``, bool ``(B, N, N)``.
    """
    n = is_image.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=is_image.device).tril()
    has_seg = is_seg.any(dim=1)[:, None, None]
    pathways = has_seg & is_image[:, :, None] & (is_image | is_seg)[:, None, :]
    itself = torch.eye(n, dtype=torch.bool, device=is_image.device)
    return (causal | pathways) & is_real[:, None, :] | itself


def published_attention_mask(input_ids: Tensor, *, image_token_id: int, seg_token_id: int) -> Tensor:
    """Reproduce the published collate step, quirks included: bool ``(B, N, N)``, True = may attend (METHOD 4).

    Padding is "id 0", whatever the tokenizer says; and a batch in which no row has a [SEG] is plain
    causal without the "everybody sees itself" exception. For parity tests only.
    """
    is_image, is_seg = input_ids == image_token_id, input_ids == seg_token_id
    is_real = input_ids != 0
    if is_seg.any():
        return dual_perception_attention_mask(is_image, is_seg, is_real)
    n = input_ids.shape[1]
    causal = torch.ones(n, n, dtype=torch.bool, device=input_ids.device).tril()
    return causal[None] & is_real[:, None, :]


def dual_perception(is_image: Tensor, is_seg: Tensor, rule: str = "image_seg") -> MaskFunction | None:
    """Say which pairs beyond the causal ones may attend, as an or-mask function of `transformers`.

    Args:
        is_image: True at image tokens, bool ``(B, N)``.
        is_seg: True at [SEG] tokens, bool ``(B, N)``; a row without any stays causal.
        rule: The row of Table 7: ``causal``, ``image``, ``image_seg`` (SELF1E), ``image_text``
            (image tokens see every word too), ``bidirectional``.

    Returns:
        ``f(batch, head, query, key) -> bool``, or None for ``causal``.
    """
    if rule == "causal":
        return None
    has_seg = is_seg.any(dim=1)
    everything = torch.ones_like(is_image)
    asks = everything if rule == "bidirectional" else is_image
    answers = {"image": is_image, "image_seg": is_image | is_seg}.get(rule, everything)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return has_seg[batch] & asks[batch, query] & answers[batch, key]

    return allowed


def seg_of_query(is_seg: Tensor, query: int, num_seg_tokens: int = 1) -> Tensor:
    """Keep the [SEG] of one query of each row; those of others become words like any other.

    What is kept takes the place of ``is_seg`` in the functions above. So a conversation may hold a [SEG] for every mask
    that it made, and pixels see the current one only::

              I I w S w S
            I 1 1 . . . 1      pixels do not see the [SEG] of an earlier turn,
            I 1 1 . . . 1
            w 1 1 1 . . .
            S 1 1 1 1 . .
            w 1 1 1 1 1 .      words do: it is part of what was said
            S 1 1 1 1 1 1

    Args:
        is_seg: True at [SEG] tokens, bool ``(B, N)``.
        query: Number of the query in its row, from the end if negative.
        num_seg_tokens: [SEG] tokens per query.
    """
    number = (is_seg.cumsum(1) - 1) // num_seg_tokens
    wanted = query if query >= 0 else is_seg.sum(1, keepdim=True) // num_seg_tokens + query
    return is_seg & (number == wanted)


def language_attention_mask(
    config: PreTrainedConfig,
    *,
    is_image: Tensor,
    is_seg: Tensor,
    is_real: Tensor | None,
    rule: str,
    dtype: torch.dtype,
):
    """Build the 4D mask (or block mask) that the language model of ``config`` accepts unchanged.

    Args:
        config: The language model's configuration; its attention implementation decides the form.
        is_image: bool ``(B, N)``.
        is_seg: bool ``(B, N)``.
        is_real: 2D attention mask, True at real tokens, ``(B, N)``; right padding.
        rule: See `dual_perception`.
        dtype: Of the hidden states (eager needs an additive mask of this type).
    """
    batch, length = is_image.shape
    # Only shape, type and device of the embeddings are read.
    embeddings = torch.empty(batch, length, 0, dtype=dtype, device=is_image.device)
    return create_causal_mask(
        config=config,
        inputs_embeds=embeddings,
        attention_mask=torch.ones_like(is_image) if is_real is None else is_real,
        past_key_values=None,
        or_mask_function=dual_perception(is_image, is_seg, rule),
    )


@contextmanager
def attention_implementation(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let all parts of a model attend by one implementation; afterwards each has its own again.

    Args:
        model: With a ``text_config`` and a ``vision_config``.
        name: Of `transformers`: ``eager``, ``sdpa`` ...
    """
    parts = {"": model.config, "text_config": model.config.text_config, "vision_config": model.config.vision_config}
    before = {part: config._attn_implementation for part, config in parts.items()}
    try:
        if set(before.values()) != {name}:
            model.set_attn_implementation(name)
        yield
    finally:
        if set(before.values()) != {name}:
            model.set_attn_implementation(before)
