"""Text about one picture as the base model reads it: for turns in words with the adapter off.

Keys and values of one side mean nothing to the other: every weight before them differs. So each side keeps a text of
its own, and reads what was said in the other's turns when it is asked next. The picture's features differ as well; the
base's are computed whenever its text begins, and are not kept.

The base knows no [SEG]. In its text the five letters stand there instead, as when a person types them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from self1e.inference.base_answers import base_beside
from self1e.inference.text_cache import TextCache
from self1e.inference.writing import encode_for_words
from self1e.model import VisionFeatures
from self1e.processing.prompts import TURN_END

if TYPE_CHECKING:
    from self1e.inference.segmenter import EncodedPicture, Self1E


class BaseText(TextCache):
    """Next-token scores of the base of a trained model.

    Args:
        model: The trained model, with its base's tensors at hand.
        encoded: The picture, as the trained model encoded it.

    Raises:
        CheckpointError: The base's tensors are not at hand.
    """

    def __init__(self, model: Self1E, encoded: EncodedPicture) -> None:
        base = base_beside(model)
        super().__init__(base, encoded)
        self._rows = min(_vocabulary(base), _vocabulary(model))
        self._letters: dict[int, list[int]] = {}

    def seen(self, ids: Sequence[int]) -> list[int]:
        """Spell out the tokens that the base does not know."""
        return [part for token in ids for part in ([token] if self._knows(token) else self._spelled(token))]

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Score every token that both sides know; see `TextCache.next_logits`."""
        return super().next_logits(ids)[: self._rows]

    def _vision(self) -> VisionFeatures:
        return encode_for_words(self._model, self._encoded.image, self._encoded.grid.num_tiles)

    def _knows(self, token: int) -> bool:
        return token < self._rows and token != self._model.processor.seg_token_id

    def _spelled(self, token: int) -> list[int]:
        if token not in self._letters:
            processor = self._model.processor
            word = str(processor.tokenizer.decode([token]))
            self._letters[token] = processor._encode_words(TURN_END, word)[1:]  # as in the middle of a text
        return self._letters[token]


def _vocabulary(model: Self1E) -> int:
    network: Any = model.model
    return len(network.get_output_embeddings().weight)
