"""Who takes part in `speed.py`: pictures and words in, masks on the host out, from JPEG bytes to the last pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from literal import LiteralSegmenter

from self1e.inference.segmenter import Self1E


class Contender:
    """One way to segment.

    Attributes:
        name: Of the model.
        form: How it is run: ``ours``, ``literal``, ``published``, ``fair`` ...
        is_linear: Whether every query costs the same and takes long, so that many are extrapolated from few.
    """

    name = ""
    form = ""
    is_linear = False

    def prepare(self) -> None:
        """Whatever must happen before a run and is not timed."""

    def run(self, pictures: Sequence[bytes], queries: Sequence[str]) -> list[list[Any]]:
        """Answer all queries about each picture: a mask each, on the host."""
        raise NotImplementedError

    def note(self) -> str:
        """What a reader must know about this form; may be empty."""
        return ""


class Ours(Contender):
    """The public ``segment_batch``, as everybody calls it.

    Args:
        segmenter: The model.
        name: For the table.
        form: For the table.
        tiles: Most tiles per picture.
        owner: Whose modules the segmenter's model shares, if they are another's.
        settings: Further arguments of ``segment_batch``.
    """

    def __init__(
        self, segmenter: Self1E, name: str, form: str, tiles: int, owner: Self1E | None = None, **settings: Any
    ) -> None:
        self.segmenter, self.name, self.form, self.tiles = segmenter, name, form, tiles
        self.owner, self.settings = owner or segmenter, settings

    def prepare(self) -> None:
        """Undo what another form of the same modules may have set."""
        use_attention(self.owner.model, "sdpa")

    def run(self, pictures: Sequence[bytes], queries: Sequence[str]) -> list[list[Any]]:
        """Masks as run-length codes: the size of the picture, decoded on demand."""
        requests = [(picture, list(queries)) for picture in pictures]
        found = self.segmenter.segment_batch(requests, max_tiles=self.tiles, **self.settings)
        return [list(result.rles) for result in found]


class Literal(Contender):
    """The published way, taken literally."""

    form = "literal"

    def __init__(self, segmenter: Self1E, name: str, tiles: int, *, is_linear: bool = True) -> None:
        self.segmenter, self.name, self.tiles, self.is_linear = segmenter, name, tiles, is_linear
        self._literal = LiteralSegmenter(segmenter)

    def prepare(self) -> None:
        """Attention as published."""
        use_attention(self.segmenter.model, "eager")

    def run(self, pictures: Sequence[bytes], queries: Sequence[str]) -> list[list[np.ndarray]]:
        """Masks as bool arrays."""
        return [self._literal.segment(picture, queries, max_tiles=self.tiles) for picture in pictures]


def use_attention(model: Any, kind: str) -> None:
    """Set the attention implementation, of the parts as well: the whole may say another one than they have."""
    model.set_attn_implementation(kind)


def free(device: torch.device) -> None:
    """Give memory back after a contender has gone."""
    import gc

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
