"""SELF1E as published, from our plain modules: every query runs everything, by itself.

Eager attention under a dense additive mask, the picture through the vision encoder once per query, the tokens behind
[SEG] too, next-token scores of the whole vocabulary at every position, and a mask head that takes one sample after the
other (METHOD sections 3 to 5). Opening and cutting the picture happen once: kinder than the published loader.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from common import REST
from torch import Tensor
from torch.nn import functional as F

from self1e.inference.segmenter import Self1E
from self1e.model.attention import dual_perception_attention_mask
from self1e.model.mask_head import MaskHead, depth_to_space, stitch_tiles, upsample
from self1e.processing.pictures import open_picture


def literal_masks(
    head: MaskHead, *, fine: Tensor, coarse_in: Tensor, coarse_out: Tensor, seg: Tensor, with_auxiliary: bool = True
) -> tuple[Tensor, ...]:
    """METHOD section 5, step by step: mask and auxiliary mask of one row."""
    language, known, final = head.expand_language, head.expand_vision, head.final_mlp
    assert language is not None
    assert known is not None
    assert final is not None
    seen = language(coarse_out)
    residual = depth_to_space(seen - known(coarse_in), language.scale)
    pixels = known.unfold(fine)
    pixels = final(pixels + upsample(residual, (pixels.shape[1], pixels.shape[2])))
    query = final(language.mean(seg))
    width = query.shape[-1] ** 0.5
    maps = (pixels, depth_to_space(seen, language.scale)) if with_auxiliary else (pixels,)
    return tuple(torch.einsum("khwd,kd->khw", x, query) / width for x in maps)


class LiteralSegmenter:
    """Segment one query after the other.

    Args:
        segmenter: Whose modules and processor are used; set its attention to ``"eager"`` before.
    """

    def __init__(self, segmenter: Self1E) -> None:
        self.model: Any = segmenter.model
        self.processor = segmenter.processor

    @torch.inference_mode()
    def segment(self, picture: Any, queries: Sequence[str], *, max_tiles: int | None = None) -> list[np.ndarray]:
        """Masks of the picture's size, bool ``(H, W)`` each."""
        opened = open_picture(picture)
        images = self.processor.image_processor
        levels, grid = images.cut(opened.image, max_tiles)
        pixels = torch.from_numpy(images.normalise(levels)).to(self.model.device, self.model.dtype)
        width, height = opened.image.size
        masks = []
        for query in queries:
            logits = self.mask_logits(self.row(query, len(levels)), pixels, grid)
            whole = F.interpolate(logits[None, None].float(), (height, width), mode="bilinear", align_corners=False)
            masks.append((whole[0, 0] > 0).cpu().numpy())
        return masks

    def row(self, query: str, tiles: int) -> Tensor:
        """Token ids of a query with its answer, and what is published behind [SEG]: as long, whatever it says."""
        ids = self.processor.segmentation_inputs(query, num_tiles=tiles)["input_ids"][0]
        return torch.cat([ids, torch.full((REST,), self.processor.turn_end_id)])

    def mask_logits(self, ids: Tensor, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run everything for one row; logits at the mask head's resolution, ``(h, w)``."""
        model, config = self.model, self.model.config
        where = np.flatnonzero((ids == config.image_token_id).numpy())  # on the host: one run of image tokens
        first, last = int(where[0]), int(where[-1]) + 1
        seg = len(ids) - REST - 1
        vision = model.encode_pictures(pixels, [grid])
        words = model.get_input_embeddings()(ids.to(pixels.device))
        embeddings = torch.cat([words[:first], vision.coarse.flatten(0, 1).to(words.dtype), words[last:]])[None]
        is_image, is_seg = ids == config.image_token_id, torch.arange(len(ids)) == seg
        allowed = dual_perception_attention_mask(is_image[None], is_seg[None], torch.ones_like(is_image)[None])
        dense = torch.zeros(allowed.shape, dtype=model.dtype).masked_fill(~allowed, torch.finfo(model.dtype).min)
        hidden = model.model.language_model(
            inputs_embeds=embeddings,
            attention_mask=dense[:, None].to(pixels.device),
            position_ids=torch.arange(len(ids), device=pixels.device)[None],
            use_cache=False,
        ).last_hidden_state
        model.lm_head(hidden)  # published: scores of the whole vocabulary, of every token
        rows, columns = grid
        side = config.patches_per_side
        coarse_side = side // config.compression

        def whole(tiles: Tensor, edge: int) -> Tensor:
            return stitch_tiles(tiles.reshape(1, rows * columns, edge, edge, -1), rows, columns)

        return literal_masks(
            model.mask_head,
            fine=whole(vision.fine, side),
            coarse_in=whole(vision.coarse, coarse_side),
            coarse_out=whole(hidden[0, first:last], coarse_side),
            seg=hidden[:, seg if config.seg_readout == "at" else seg - 1],
            with_auxiliary=False,
        )[0][0]
