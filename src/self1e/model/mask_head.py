"""Mask head: one [SEG] embedding in, mask logits out. There is no decoder.

    fine ------> expand_vision ---------------------------+
    coarse_in -> expand_vision ----+                      |
    coarse_out > expand_language -(-)-> upsample x2 ->---(+)-> final MLP -> pixels . query -> logits
    seg -------> expand_language -> mean ----------------------> final MLP -> query

RFR (residual features refilling, paper Sec. 3.3): what the LLM *changed* about a coarse token is its
semantic signal; add that change to the fine features, which the LLM never saw.
RFA (residual features amplifier, Sec. 3.4): reach fine resolution by widening channels and
unfolding them into space, not by interpolating.

With gradients the final MLP, the widest part, runs where there is least to compute and to keep, exactly: its first
linear before the upsampling (it mixes channels, the other mixes places) and once on what rows of one picture share; its
second on the query instead of the pixels, ``(W g + b) . q = g . (W^T q) + b . q``.

Shapes: P pictures (all of one tile grid), B rows (one query each; several rows may share a picture),
K [SEG] tokens over all rows; H, W coarse tokens of the stitched map (tile rows x tokens per side, ...);
s compression per side (2 for InternVL); D LLM width. Vectors last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from self1e.configuration import Self1EConfig

# --------------------------------------------------------------------------- space and depth


def space_to_depth(x: Tensor, scale: int) -> Tensor:
    """Compress space into channels: ``(..., H*s, W*s, C) -> (..., H, W, s*s*C)``.

    The ``s*s`` neighbours of a window follow each other row-major: for ``s`` 2 top-left, top-right,
    bottom-left, bottom-right (InternVL's "pixel shuffle" v2, METHOD 3.1).
    """
    *lead, height, width, channels = x.shape
    x = x.reshape(*lead, height // scale, scale, width // scale, scale, channels)
    x = x.transpose(-4, -3)
    return x.reshape(*lead, height // scale, width // scale, scale * scale * channels)


def depth_to_space(x: Tensor, scale: int) -> Tensor:
    """Unfold channels into space: ``(..., H, W, s*s*C) -> (..., H*s, W*s, C)``.

    The exact inverse of `space_to_depth`, on any grid (the published code transposes and mixes
    non-square maps, METHOD 3.4; for square maps both agree).
    """
    *lead, height, width, depth = x.shape
    channels = depth // (scale * scale)
    x = x.reshape(*lead, height, width, scale, scale, channels)
    x = x.transpose(-4, -3)
    return x.reshape(*lead, height * scale, width * scale, channels)


def stitch_tiles(x: Tensor, rows: int, columns: int) -> Tensor:
    """Lay tiles side by side: ``(..., rows*columns, h, w, C) -> (..., rows*h, columns*w, C)``, tiles row-major."""
    *lead, _, height, width, channels = x.shape
    x = x.reshape(*lead, rows, columns, height, width, channels)
    x = x.transpose(-4, -3)
    return x.reshape(*lead, rows * height, columns * width, channels)


def replicate(x: Tensor, times: int) -> Tensor:
    """Repeat each vector as a whole: ``(..., C) -> (..., times*C)`` = [x, x, ...] (RFR, METHOD 3.2)."""
    return x.repeat(*(1,) * (x.ndim - 1), times)


def scan(x: Tensor, scale: int) -> Tensor:
    """Cut ``s x s`` windows with stride 1, repeating edges: ``(..., H, W, C) -> (..., H, W, s*s*C)`` (Table 11)."""
    height, width = x.shape[-3:-1]
    down = torch.arange(height + scale - 1, device=x.device).clamp(max=height - 1)
    right = torch.arange(width + scale - 1, device=x.device).clamp(max=width - 1)
    padded = x[..., down, :, :][..., right, :]
    windows = [padded[..., i : i + height, j : j + width, :] for i in range(scale) for j in range(scale)]
    return torch.cat(windows, dim=-1)


def upsample(x: Tensor, shape_hw: tuple[int, int]) -> Tensor:
    """Bilinear, ``align_corners=False``, no antialias: ``(B, H, W, D) -> (B, *shape_hw, D)``."""
    if x.shape[1:3] == shape_hw:
        return x
    x = F.interpolate(x.permute(0, 3, 1, 2), size=shape_hw, mode="bilinear", align_corners=False)
    return x.permute(0, 2, 3, 1)


# --------------------------------------------------------------------------- the head


class MLP(nn.Module):
    """Linear, exact GELU, Linear: ``(..., D) -> (..., out)``."""

    first: type[nn.Linear] = nn.Linear
    second: type[nn.Linear] = nn.Linear

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.linear_1 = self.first(dim, dim)
        self.linear_2 = self.second(dim, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(x)))


class _ForDifferences(nn.Linear):
    """Maps differences too: there the bias cancels."""

    def forward(self, input: Tensor, *, is_difference: bool = False) -> Tensor:
        return F.linear(input, self.weight, None if is_difference else self.bias)


class _ForQueries(nn.Linear):
    """Can move from pixels to the query: ``linear(g) . q`` is ``g`` times the first tensor plus the second.

    In its own forward, so that whoever shards weights gathers these for it.
    """

    def forward(self, input: Tensor, *, is_query: bool = False) -> Any:
        return (input @ self.weight, input @ self.bias) if is_query else super().forward(input)


class FinalMLP(MLP):
    """The MLP before the dot product; its linears can run where there is least to compute."""

    first, second = _ForDifferences, _ForQueries


class Expand(MLP):
    """MLP-with-pixel-unshuffle (f_PUS, RFA): coarse tokens to fine ones."""

    def __init__(self, dim: int, scale: int) -> None:
        super().__init__(dim, dim * scale * scale)
        self.scale = scale

    def unfold(self, x: Tensor) -> Tensor:
        """``(..., H, W, D) -> (..., H*s, W*s, D)``."""
        return depth_to_space(self(x), self.scale)

    def mean(self, x: Tensor) -> Tensor:
        """Average the sub-pixels: ``(K, D) -> (K, D)`` (Eq. 6)."""
        return self(x).unflatten(-1, (self.scale * self.scale, -1)).mean(-2)


@dataclass
class MaskHeadOutput:
    """Logits of every [SEG]; above 0 is foreground."""

    mask_logits: Tensor
    """``(K, height, width)``: 4 values per coarse token and side with the published switches (64 x 64 per tile)."""
    low_resolution_logits: Tensor | None
    """``(K, 2H, 2W)``, the auxiliary mask of the training loss; None when it is off."""


class MaskHead(nn.Module):
    """Score every fine pixel against every [SEG] embedding (paper Sec. 3.3 and 3.4, METHOD 5)."""

    def __init__(self, config: Self1EConfig) -> None:
        super().__init__()
        dim, scale = config.text_config.hidden_size, config.compression
        self.fine = config.fine
        self.residual = config.residual
        self.unshuffle = config.unshuffle
        self.auxiliary = config.auxiliary_low_resolution
        self.seg_side = round(config.num_seg_tokens**0.5)
        # f'_PUS, for what passed through the LLM; with unshuffle="one" it serves everything.
        self.expand_language = Expand(dim, scale) if self.unshuffle != "none" else None
        # f_PUS, for features that never entered it; F_V1^HQ gets its own with unshuffle="three".
        is_apart = self.unshuffle in ("two", "three") and self.fine != "none"
        self.expand_vision = Expand(dim, scale) if is_apart else None
        self.expand_fine = Expand(dim, scale) if self.unshuffle == "three" else None
        self.final_mlp = FinalMLP(dim, dim) if config.final_mlp else None

    def forward(
        self,
        *,
        fine: Tensor | None,
        coarse_in: Tensor,
        coarse_out: Tensor,
        seg: Tensor,
        picture_of_row: Tensor,
        row_of_seg: Tensor | None,
        with_auxiliary: bool = False,
    ) -> MaskHeadOutput:
        """Compute mask logits.

        Args:
            fine: F_V1^HQ, uncompressed features through the projector, ``(P, H*s, W*s, D)``; None if ``fine="none"``.
            coarse_in: F_V1, compressed tokens as they enter the LLM, ``(P, H, W, D)``.
            coarse_out: F_IMG, the same tokens as they leave it, ``(B, H, W, D)``.
            seg: F_SEG, ``(K, D)``.
            picture_of_row: Which picture each row looks at, int64 ``(B,)``.
            row_of_seg: Which row each [SEG] belongs to, int64 ``(K,)``; None if row k has exactly [SEG] k.
            with_auxiliary: Also compute the low-resolution mask of the loss.
        """
        language = coarse_out  # (B, H, W, D), or (B, H*s, W*s, D) once expanded
        if self.expand_language is not None and self.unshuffle != "residual_only":
            language = self.expand_language.unfold(coarse_out)
        base, residual = self._maps(fine, coarse_in, coarse_out, language, picture_of_row)
        query = self._query(seg)
        if self.final_mlp is not None and torch.is_grad_enabled():
            hidden = self.final_mlp.linear_1(base)
            if residual is not None:
                residual = self.final_mlp.linear_1(residual, is_difference=True)
            pixels = F.gelu(self._refill(hidden, residual, picture_of_row))
            moved, constant = self.final_mlp.linear_2(query, is_query=True)
            logits = self._dot(pixels, moved, row_of_seg, constant)
        else:
            pixels = self._refill(base, residual, picture_of_row)
            logits = self._dot(pixels if self.final_mlp is None else self.final_mlp(pixels), query, row_of_seg)
        low = None
        if with_auxiliary and self.auxiliary != "off":
            low_pixels = language
            if self.auxiliary == "through_final_mlp" and self.final_mlp is not None:
                low_pixels = self.final_mlp(language)
            low = self._dot(low_pixels, query, row_of_seg)
        return MaskHeadOutput(logits, low)

    def _maps(
        self, fine: Tensor | None, coarse_in: Tensor, coarse_out: Tensor, language: Tensor, picture_of_row: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Return what is refilled, per picture, and the residual, per row (Eq. 2, 4 and 5).

        Without fine features there is nothing to refill: the first is the language model's map, per row.
        """
        if self.fine == "none" or fine is None:
            return language, None
        if self.unshuffle in ("none", "residual_only"):
            if not self.residual:
                return fine, None
            residual = coarse_out - coarse_in.index_select(0, picture_of_row)
            return fine, residual if self.expand_language is None else self.expand_language.unfold(residual)
        expand_coarse = self.expand_vision or self.expand_language
        expand_fine = self.expand_fine or expand_coarse
        assert expand_coarse is not None
        assert expand_fine is not None  # both built in __init__ for these switches
        base = expand_fine.unfold(fine)
        if not self.residual:
            return base, None
        return base, language - expand_coarse.unfold(coarse_in).index_select(0, picture_of_row)

    def _refill(self, base: Tensor, residual: Tensor | None, picture_of_row: Tensor) -> Tensor:
        """Add the residual, brought to the same size: pixel features per row."""
        pixels = base if self.fine == "none" else base.index_select(0, picture_of_row)
        return pixels if residual is None else pixels + upsample(residual, (pixels.shape[1], pixels.shape[2]))

    def _query(self, seg: Tensor) -> Tensor:
        """Turn F_SEG into the vector that pixels are scored against, ``(K, D)`` (Eq. 6)."""
        if self.expand_language is not None and self.unshuffle != "residual_only":
            seg = self.expand_language.mean(seg)
        return seg if self.final_mlp is None else self.final_mlp(seg)

    def _dot(self, pixels: Tensor, query: Tensor, row_of_seg: Tensor | None, constant: Tensor | None = None) -> Tensor:
        """Score pixels: ``(B, h, w, D), (K, D) -> (K, h, w)``; several tokens per query unfold into sub-pixels.

        ``constant``: added to each query's products before they are scaled, ``(K,)``.
        """
        # Gathering copies every pixel vector: not when there is nothing to gather.
        chosen = pixels if row_of_seg is None else pixels.index_select(0, row_of_seg)
        logits = torch.einsum("khwd,kd->khw", chosen, query)
        if constant is not None:
            logits = logits + constant[:, None, None]
        logits = logits / query.shape[-1] ** 0.5
        if self.seg_side > 1:
            tokens = self.seg_side * self.seg_side
            logits = depth_to_space(logits.unflatten(0, (-1, tokens)).permute(0, 2, 3, 1), self.seg_side)[..., 0]
        return logits
