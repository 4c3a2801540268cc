"""Ask a model once, and keep every tensor that a figure shows.

Shapes: N tokens of the prompt; L layers; H, W coarse tokens of the stitched picture; h, w pixels of mask logits;
D LLM width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from self1e.errors import SettingError
from self1e.model.attention import attention_implementation, language_attention_mask
from self1e.model.mask_head import MaskHead, upsample

RULES = ("causal", "image", "image_seg", "image_text", "bidirectional")
"""The rows of Table 7, as `self1e.model.attention.dual_perception` calls them."""


@dataclass(frozen=True)
class Stage:
    """Mask logits with some terms of Eq. 5 left out."""

    name: str
    note: str
    logits: Tensor
    """Float32 ``(h, w)``; above 0 is foreground."""


@dataclass
class Seen:
    """What passes by while a model answers one query on one picture."""

    image: Image.Image
    query: str
    tokens: list[str]
    is_image: np.ndarray
    """Bool ``(N,)``, like ``is_seg``."""
    is_seg: np.ndarray
    readout: int
    """Position whose hidden state is F_SEG."""
    allowed: np.ndarray
    """Who sees whom, as the language model got it, bool ``(N, N)``; rows ask."""
    causal: np.ndarray
    attention: Tensor
    """Mean over heads, ``(L, N, N)``."""
    grid_hw: tuple[int, int]
    """H, W."""
    tile_grid: tuple[int, int]
    """Rows and columns of tiles."""
    fine: Tensor | None
    """F_V1^HQ ``(2H, 2W, D)``."""
    coarse_in: Tensor
    """F_V1 ``(H, W, D)``."""
    coarse_out: Tensor
    """F_IMG ``(H, W, D)``."""
    stages: list[Stage]
    """The last one is the model's mask."""

    def picture_attention(self, layer: int | None = None) -> Tensor:
        """Tell how much [SEG] looks at each coarse token, ``(H, W)``, stitched.

        Args:
            layer: 1 to L, or -1 for the last; None is the mean of all.

        Raises:
            SettingError: There is no such layer.
        """
        count = len(self.attention)
        if layer is not None and not (1 <= layer <= count or -count <= layer <= -1):
            raise SettingError(f"layer={layer}: the language model has layers 1 to {count} (-1 is the last).")
        chosen = self.attention.mean(0) if layer is None else self.attention[layer - 1 if layer > 0 else layer]
        seg = int(np.flatnonzero(self.is_seg)[0])
        weights = chosen[seg, torch.from_numpy(self.is_image)]
        rows, columns = self.tile_grid
        height, width = self.grid_hw[0] // rows, self.grid_hw[1] // columns
        # Tokens come tile by tile; what is left over at the end is a thumbnail.
        tiles = weights[: rows * columns * height * width].reshape(rows, columns, height, width)
        return tiles.transpose(1, 2).reshape(self.grid_hw)


@contextmanager
def asking(model: Any, *, rule: str | None = None) -> Iterator[None]:
    """Let a model tell its attention weights, under another attention rule if one is given."""
    config = model.config
    before = config.attention
    with attention_implementation(model, "eager"):  # the only one that tells its weights
        try:
            config.attention = rule or before
            yield
        finally:
            config.attention = before


@torch.inference_mode()
def look(segmenter: Any, image: Image.Image, query: str, *, rule: str | None = None, max_tiles: int | None = 1) -> Seen:
    """Ask once, [SEG] given, and keep what passes by.

    Args:
        segmenter: From ``self1e.load``.
        image: RGB.
        query: A phrase or a sentence.
        rule: One of `RULES`; left out, the model's own. Nothing is trained anew.
        max_tiles: See ``Self1E.encode``.

    Raises:
        SettingError: The rule is unknown.
    """
    if rule is not None and rule not in RULES:
        raise SettingError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}.")
    model, processor = segmenter.model, segmenter.processor
    config = model.config
    kept: dict[str, Any] = {}
    hooks = [
        model.model.language_model.register_forward_pre_hook(
            lambda module, args, kwargs: kept.update(mask=kwargs["attention_mask"]), with_kwargs=True
        ),
        model.mask_head.register_forward_pre_hook(
            lambda module, args, kwargs: kept.update(head=kwargs), with_kwargs=True
        ),
    ]
    try:
        with asking(model, rule=rule):
            encoded = segmenter.encode(image, max_tiles=max_tiles, exact="plain")
            answer = config_answer(config)
            inputs = processor.segmentation_inputs([query], num_tiles=encoded.grid.num_tiles, answer=answer)
            inputs = {name: x.to(segmenter.device) for name, x in inputs.items() if isinstance(x, Tensor)}
            output = model(**inputs, vision=encoded.vision, output_attentions=True)
    finally:
        for hook in hooks:
            hook.remove()
    ids = inputs["input_ids"][0]
    is_image, is_seg = ids == config.image_token_id, ids == config.seg_token_id
    causal = language_attention_mask(
        config.text_config,
        is_image=is_image[None],
        is_seg=is_seg[None],
        is_real=inputs["attention_mask"].bool(),
        rule="causal",
        dtype=torch.float32,
    )
    head = kept["head"]
    fine = head["fine"]
    coarse_out = head["coarse_out"][0]
    return Seen(
        image=encoded.image,
        query=query,
        tokens=[processor.tokenizer.decode([index]) for index in ids.tolist()],
        is_image=is_image.cpu().numpy(),
        is_seg=is_seg.cpu().numpy(),
        readout=int(is_seg.nonzero()[0]) - (config.seg_readout == "before"),
        allowed=_allowed(kept["mask"], len(ids)),
        causal=_allowed(causal, len(ids)),
        attention=torch.stack([layer[0].float().mean(0) for layer in output.attentions]).cpu(),
        grid_hw=(coarse_out.shape[0], coarse_out.shape[1]),
        tile_grid=encoded.grid.shape_hw,
        fine=None if fine is None else fine[0].float().cpu(),
        coarse_in=head["coarse_in"][0].float().cpu(),
        coarse_out=coarse_out.float().cpu(),
        stages=mask_stages(model.mask_head, head, output.mask_logits[0][0].float()),
    )


def config_answer(config: Any) -> str:
    """The answer that is given: as many [SEG] as the model reads."""
    from self1e.processing.prompts import SEG_TOKEN

    return SEG_TOKEN * config.num_seg_tokens


def _allowed(mask: Tensor | None, length: int) -> np.ndarray:
    """Read an additive mask (eager attention) or a bool one, ``(1, 1, N, N)``; none is causal."""
    if mask is None:
        return np.tril(np.ones((length, length), dtype=bool))
    return (mask if mask.dtype == torch.bool else mask == 0)[0, 0].cpu().numpy()


def mask_stages(head: MaskHead, given: dict[str, Any], final: Tensor) -> list[Stage]:
    """Score parts of Eq. 5 with the same weights and the same query: what each term carries.

    Nothing is trained anew, so these are not the rows of the paper's Table 5, where every row is a model of its own.
    A model without one of the terms has fewer stages.

    Args:
        head: Of the model.
        given: What its ``forward`` got: one picture, one row.
        final: Logits that the model made of it, ``(h, w)``.
    """
    coarse_out, which = given["coarse_out"], given["picture_of_row"]
    is_expanded = head.expand_language is not None and head.unshuffle != "residual_only"
    language = head.expand_language.unfold(coarse_out) if is_expanded and head.expand_language else coarse_out
    base, residual = head._maps(given["fine"], given["coarse_in"], coarse_out, language, which)
    query = head._query(given["seg"])

    def score(pixels: Tensor, final_mlp: Any = head.final_mlp) -> Tensor:
        pixels = pixels if final_mlp is None else final_mlp(pixels)
        return head._dot(pixels, query, given["row_of_seg"])[0].float().cpu()

    coarse_hw = (coarse_out.shape[1], coarse_out.shape[2])
    # As the auxiliary loss trains it.
    through = head.final_mlp if head.auxiliary == "through_final_mlp" or head.auxiliary == "off" else None
    stages = [Stage("F_{IMG} alone", "low resolution", score(_plain(language, coarse_hw), through))]
    if head.fine != "none":
        stages.append(Stage("F_{V1}^{HQ} alone", "fine, but has read no words", score(base)))
        size = (base.shape[1], base.shape[2])
        if residual is not None:
            plain = _plain(residual, coarse_hw)
            stages.append(Stage("+ residual (RFR)", "interpolated", score(base + upsample(plain, size))))
            if plain.shape != residual.shape:
                stages.append(Stage("+ residual (RFA)", "amplified", score(base + upsample(residual, size))))
    elif is_expanded:
        stages.append(Stage("F_{IMG} expanded", "no fine features", score(language)))
    if head.fine == "none" and not is_expanded:
        stages = [Stage("F_{IMG} alone", "low resolution", score(language))]
    # The figure shows the model, or nothing.
    tolerance = 1e-4 if next(head.parameters()).dtype == torch.float32 else 0.1
    torch.testing.assert_close(stages[-1].logits, final.cpu(), rtol=tolerance, atol=tolerance)
    return stages


def _plain(x: Tensor, shape_hw: tuple[int, int]) -> Tensor:
    """Average the sub-pixels of each token: what is left without amplifying, ``(B, H*s, W*s, D) -> (B, H, W, D)``."""
    batch, height, width, dim = x.shape
    rows, columns = shape_hw
    return x.reshape(batch, rows, height // rows, columns, width // columns, dim).mean((2, 4))
