"""A model as one function of three tensors, for ``torch.export`` and ONNX.

    pixels     uint8 (T, 3, S, S)      tiles of one picture; normalised within
    input_ids  int64 (K, N)            one row per query, ending with [SEG]; behind it anything else pads
    layout     int64 (rows, columns)   which tile lies where: ``arange(rows * columns).reshape(rows, columns)``
    ->
    mask_logits  float32 (K, h, w)     at the mask head's resolution, above 0 is foreground

T, K, N, rows and columns are free. The picture's place in a row, its tiles and [SEG] are found with index arithmetic,
because a graph may depend on the *sizes* of its inputs but on no number within them. All else is the model's own
modules: nothing is computed in a second way.

A graph cannot raise. Where the inputs do not fit each other (a row without [SEG], image tokens for another number of
tiles, a layout for other tiles) the logits of that row are NaN, so that no mask can come of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from self1e.errors import SettingError
from self1e.model import Self1EForConditionalGeneration
from self1e.model.attention import dual_perception
from self1e.model.mask_head import stitch_tiles
from self1e.processing.image import IMAGENET_MEAN, IMAGENET_STD

_CHANGING_ROPE = ("dynamic", "longrope")  # other numbers for longer texts


class _Marks(NamedTuple):
    """What is where in rows of ids."""

    is_image: Tensor
    is_seg: Tensor
    is_real: Tensor
    """All three bool ``(K, N)``."""
    last: Tensor
    """Place of the last [SEG], int64 ``(K, 1)``; 0 without any."""


class MaskGraph(nn.Module):
    """From a picture's tiles and rows of ids to mask logits; see above.

    Args:
        model: Put into evaluation mode, and read: its tensors are shared, but for the matrix of next-token
            scores, which masks do not need.
        image_mean, image_std: Of the image processor, on the 0..1 scale.

    Raises:
        SettingError: The model cannot be written as a graph; the message says why.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Self1EForConditionalGeneration,
        *,
        image_mean: float | Sequence[float] = IMAGENET_MEAN,
        image_std: float | Sequence[float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        reason = graph_obstacle(model)
        if reason is not None:
            raise SettingError(f"This model cannot be exported: {reason}")
        model.eval()
        self.config: Any = model.config
        self.inner: Any = model.model
        self.mask_head = model.mask_head
        self._fine_features = model.fine_features  # a method, not a part: the whole model would come along
        for name, values in (("mean", image_mean), ("std", image_std)):
            tensor = torch.as_tensor(values, dtype=torch.float32).expand(3)[:, None, None].clone()
            self.register_buffer(name, tensor.to(model.device), persistent=False)

    def forward(self, pixels: Tensor, input_ids: Tensor, layout: Tensor) -> Tensor:
        """Score every pixel for every row."""
        config = self.config
        grid = (layout.shape[0], layout.shape[1])
        order = layout.flatten()
        vision = self.inner.get_image_features(
            pixel_values=(pixels.float() / 255 - self.mean) / self.std, return_dict=True
        )
        coarse = vision.pooler_output[order]  # (T, tokens, D)
        fine = self._fine_features(vision.last_hidden_state[:, 1:][order])
        num_tokens = order.shape[0] * coarse.shape[1]
        marks = self._mark(input_ids)
        hidden = self._read(input_ids, marks, coarse.flatten(0, 1), num_tokens)

        first = marks.is_image.long().argmax(1, keepdim=True)
        image = first + torch.arange(num_tokens, device=first.device)
        per_query = config.num_seg_tokens
        seg = marks.last + torch.arange(1 - per_query, 1, device=first.device) - int(config.seg_readout == "before")
        side = config.patches_per_side // config.compression
        rows = torch.arange(input_ids.shape[0], device=first.device)
        logits = self.mask_head(
            fine=None if fine is None else _stitched(fine[None], config.patches_per_side, grid),
            coarse_in=_stitched(coarse[None], side, grid),
            coarse_out=_stitched(_taken(hidden, image).unflatten(1, (-1, side * side)), side, grid),
            seg=_taken(hidden, seg).flatten(0, 1),
            picture_of_row=torch.zeros_like(rows),
            row_of_seg=None if per_query == 1 else rows[:, None].expand(-1, per_query).flatten(),
        ).mask_logits.float()
        fits = (marks.is_image.sum(1) == num_tokens) & (marks.is_seg.sum(1) >= per_query)
        fits = fits & (_length(order) == _length(pixels[:, 0, 0, 0]))
        return torch.where(fits[:, None, None], logits, torch.nan)

    def _mark(self, input_ids: Tensor) -> _Marks:
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        is_seg = input_ids == self.config.seg_token_id
        last = (is_seg.long() * place).amax(1, keepdim=True)
        is_real = place <= last  # nothing follows [SEG] but padding
        return _Marks((input_ids == self.config.image_token_id) & is_real, is_seg, is_real, last)

    def _read(self, input_ids: Tensor, marks: _Marks, coarse: Tensor, num_tokens: int) -> Tensor:
        """Run the language model under dual perception, ``(K, N, D)``."""
        assert self.inner.language_model.config._attn_implementation == "sdpa", "the mask is made for it, see `trace`"
        words = self.inner.get_input_embeddings()(input_ids)
        number = (marks.is_image.long().cumsum(1) - 1).clamp(0, num_tokens - 1)
        embeddings = torch.where(marks.is_image[..., None], coarse[number], words)
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        row = torch.arange(input_ids.shape[0], device=input_ids.device)[:, None, None]
        asks, answers = place[None, :, None], place[None, None, :]
        allowed = answers <= asks
        pathways = dual_perception(marks.is_image, marks.is_seg, self.config.attention)
        if pathways is not None:
            allowed = allowed | pathways(row, row, asks, answers)
        allowed = allowed & marks.is_real[:, None, :] | (asks == answers)
        return self.inner.language_model(
            inputs_embeds=embeddings, attention_mask=allowed[:, None], use_cache=False
        ).last_hidden_state


def graph_obstacle(model: Any) -> str | None:
    """Say why a model has no graph, and what to do, or None."""
    if any(hasattr(module, "base_layer") for module in model.modules()):
        return "adapters are attached; merge them first (`self1e convert SRC DST --merge`, or merge_and_unload())."
    foreign = next((type(p).__name__ for p in model.parameters() if type(p) is not nn.Parameter), None)
    kinds = {parameter.dtype for parameter in model.parameters()}
    if foreign is not None or any(not kind.is_floating_point for kind in kinds):
        return f"its weights are quantised ({foreign or 'int8'}); load it with dtype='float32'."
    if kinds != {torch.float32}:
        found = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
        return f"its weights are {found}; load it with dtype='float32'."
    if model.config.seg_token_id is None:
        return "config.seg_token_id is not set: it was not trained to segment."
    rope = (getattr(model.config.text_config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in _CHANGING_ROPE:
        return f"its rotary embeddings are of type {rope!r}, which depends on the length of the text; use torch."
    return None


def _stitched(tokens: Tensor, side: int, grid: tuple[int, int]) -> Tensor:
    """Lay tiles side by side: ``(B, T, side * side, D) -> (B, rows * side, columns * side, D)``."""
    return stitch_tiles(tokens.unflatten(2, (side, side)), *grid)


def _taken(hidden: Tensor, places: Tensor) -> Tensor:
    """Take vectors by their places in each row, those outside at its ends: ``(K, N, D), (K, m) -> (K, m, D)``."""
    inside = places.clamp(0, hidden.shape[1] - 1)
    return hidden.gather(1, inside[..., None].expand(-1, -1, hidden.shape[-1]))


def _length(x: Tensor) -> Tensor:
    """Count entries, int64 without dimension: comparing sizes themselves would fix them for good."""
    return torch.ones_like(x, dtype=torch.int64).sum()
