"""Text about one picture under the causal mask: what was computed stays, and only new tokens are.

A mask pass does not come here: its image tokens see [SEG], so nothing of it can be shared with text, and nothing that
is kept here changes while masks are made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import DynamicCache

if TYPE_CHECKING:
    from self1e.inference.segmenter import EncodedPicture, Self1E
    from self1e.model import VisionFeatures


def bytes_per_token(text_config: Any, dtype: torch.dtype) -> int:
    """Memory of one token in the cache: its key and its value in every layer.

    Args:
        text_config: Of the language model.
        dtype: Of its weights.
    """
    head = getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
    return 2 * text_config.num_hidden_layers * text_config.num_key_value_heads * head * dtype.itemsize


class TextCache:
    """Next-token scores of a growing text about one picture.

    Args:
        model: Whose language model reads.
        encoded: The picture that its image tokens show.
    """

    def __init__(self, model: Self1E, encoded: EncodedPicture) -> None:
        self._model = model
        self._encoded = encoded
        self.clear()

    def clear(self) -> None:
        """Forget everything; the next call computes the whole text."""
        self._ids: list[int] = []
        self._cache: Any = None
        self._logits: Tensor | None = None

    def __len__(self) -> int:
        """Tokens that are kept."""
        return len(self._ids)

    def seen(self, ids: Sequence[int]) -> list[int]:
        """Return a text as it is read here."""
        return list(ids)

    def known(self, ids: Sequence[int]) -> int:
        """How many tokens of a text (as `seen`) need not be computed."""
        return len(self._ids) if list(ids[: len(self._ids)]) == self._ids else 0

    @torch.inference_mode()
    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Score every token of the vocabulary as the next one.

        Args:
            ids: The complete text, as `seen`. What it begins with may be known; if it does not begin with what is
                known, everything is computed anew.

        Returns:
            Logits ``(V,)``, of the weights' type but at least float32.
        """
        known = self.known(ids)
        if known == len(ids) and self._logits is not None:
            return self._logits
        if known == 0 or known == len(ids):
            self.clear()
        new = list(ids[len(self._ids) :])
        try:
            self._logits = self._read(new)
        except BaseException:
            self.clear()  # some layers may have kept the new tokens, and others not
            raise
        self._ids += new
        return self._logits

    def _vision(self) -> VisionFeatures:
        return self._encoded.vision

    def _read(self, new: list[int]) -> Tensor:
        network: Any = self._model.model
        about: dict[str, Any] = {}
        if self._cache is None:
            self._cache = DynamicCache(config=network.config.text_config)
            about = {"vision": self._vision(), "picture_of_row": [0]}
        output = network(
            input_ids=torch.tensor([new], device=self._model.device),
            past_key_values=self._cache,
            use_cache=True,
            dual_perception=False,
            logits_to_keep=1,
            **about,
        )
        logits = output.logits[0, -1]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
