"""From items to one batch: tiles once per picture, text once per row, masks at one size."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from self1e.data.mixture import Item, Row
from self1e.errors import DatasetError, PromptError
from self1e.processing import prompts
from self1e.processing.processor import IGNORED_LABEL, Self1EProcessor


class Collator:
    """Turn items into what `Self1EForConditionalGeneration.forward` takes.

    Args:
        processor: Of the model in training.
        max_tiles: Tiles per picture.
        target_side: Masks are brought to this square size (as the tile squashes the picture), so that the loss
            runs once for the whole batch; None keeps each mask's own size, as published.
        max_length: Rows are cut after so many tokens (published: 512), image tokens and [SEG] never; None cuts nothing.
    """

    def __init__(
        self,
        processor: Self1EProcessor,
        *,
        max_tiles: int = 1,
        target_side: int | None = None,
        max_length: int | None = None,
    ) -> None:
        self.processor = processor
        self.max_tiles = max_tiles
        self.target_side = target_side
        self.max_length = max_length
        # Questions repeat: a grammar has few sentences, a data set few names.
        self._tokenize = lru_cache(maxsize=50_000)(self._tokenize_row)

    def __call__(self, items: Sequence[Item]) -> dict[str, Any]:
        """Collate items.

        Raises:
            DatasetError: An item has no row, a mask does not lie on its picture, or no answer goes with it.
            PromptError: ``max_length`` would cut image tokens or a [SEG]. Both name the item's source.
        """
        for item in items:
            _check(item)
        pictures = self.processor.image_processor([item.image for item in items], max_tiles=self.max_tiles)
        tiles = pictures["num_tiles"].tolist()
        sequences, labels, targets, picture_of_row = [], [], [], []
        for picture, item in enumerate(items):
            for row in item.rows:
                try:
                    ids, supervised = self._taught(row, *self._tokenize(row.turns, tiles[picture]))
                except PromptError as error:
                    raise PromptError(f"{item.source}, question {row.question!r}: {error}") from error
                sequences.append(ids)
                labels.append(supervised)
                targets.append(torch.zeros(0, 1, 1) if row.mask is None else self._target(row.mask))
                picture_of_row.append(picture)
        batch: dict[str, Any] = dict(self.processor.pad(sequences, labels))
        batch["pixel_values"] = pictures["pixel_values"]
        batch["tile_grids"] = pictures["tile_grids"].tolist()
        batch["picture_of_row"] = picture_of_row
        batch["mask_targets"] = targets
        return batch

    def _taught(self, row: Row, ids: list[int], labels: list[int]) -> tuple[list[int], list[int]]:
        """Divide what the row teaches at its last [SEG]: writing it, or the mask and what follows."""
        seg, end = self.processor.seg_token_id, self.processor.turn_end_id
        if row.learn == "both" or seg not in ids:
            return ids, labels
        behind = len(ids) - ids[::-1].index(seg)
        if row.learn == "mask":
            return ids, [IGNORED_LABEL] * behind + labels[behind:]
        # Any token may stand where [SEG] stood: nothing that is supervised comes after it.
        ids = [end if token == seg else token for token in ids]
        return ids, labels[:behind] + [IGNORED_LABEL] * (len(labels) - behind)

    def _tokenize_row(self, turns: tuple[tuple[str, str], ...], num_tiles: int) -> tuple[list[int], list[int]]:
        tokenized = self.processor.tokenize_conversation(list(turns), num_tiles=num_tiles, max_length=self.max_length)
        return tokenized.input_ids, tokenized.labels

    def _target(self, mask: np.ndarray) -> torch.Tensor:
        if self.target_side is not None and mask.shape != (self.target_side, self.target_side):
            size = (self.target_side, self.target_side)
            resized = Image.fromarray(np.ascontiguousarray(mask)).convert("L").resize(size, Image.Resampling.BOX)
            return torch.from_numpy(np.asarray(resized, dtype=np.float32) / 255)[None]
        return torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_tokenize"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenize = lru_cache(maxsize=50_000)(self._tokenize_row)


def _check(item: Item) -> None:
    """Find what would teach nonsense: a mask that lies elsewhere, or a mask that no [SEG] asks for."""
    if not item.rows:
        raise DatasetError(f"{item.source}: nothing is asked about this picture; leave it out, or give it a query.")
    width, height = item.image.size
    for row in item.rows:
        if row.mask is None:
            continue
        if row.mask.shape != (height, width):
            found = "x".join(map(str, row.mask.shape[::-1]))
            raise DatasetError(
                f"{item.source}, question {row.question!r}: the mask is {found} but the picture {width}x{height}; a "
                "mask has its picture's own size. If one of the two was resized, use the originals."
            )
        if prompts.SEG_TOKEN not in row.answer:
            raise DatasetError(
                f"{item.source}, question {row.question!r}: there is a mask, but the answer {row.answer!r} holds no "
                f"{prompts.SEG_TOKEN}; write one where the mask belongs, or leave the mask out."
            )
