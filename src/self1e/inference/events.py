"""What a turn of a conversation gives, one after the other: words, masks, and its end. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from self1e.structures import Segmentation

Adapter = Literal["on", "off"]
"""Whose words they are: the trained model's, or with its adapter off the base model's."""
Mode = Literal["auto", "segment", "text"]
Stopped = Literal["end", "length", "cancelled"]


@dataclass(frozen=True)
class TextDelta:
    """More of the answer's words; all of them together are `Done.text`. [SEG] is among them."""

    text: str


@dataclass(frozen=True)
class Mask:
    """A mask that is not empty, read where [SEG] was just written."""

    segmentation: Segmentation
    """Of one query: the question."""

    @property
    def score(self) -> float:
        """Mean sigmoid over the mask's pixels."""
        return float(self.segmentation.scores[0])


@dataclass(frozen=True)
class NotThere:
    """[SEG] was written, but no pixel is above the threshold, or the mask scores below the model's calibrated one."""

    segmentation: Segmentation
    """Of one query: the question; its mask is empty."""
    score: float
    """Of the mask that was turned down; 0 if there was none."""


@dataclass(frozen=True)
class Done:
    """The turn is complete, and part of the conversation."""

    text: str
    """The whole answer."""
    mode: Mode
    """Asked for."""
    decision: Literal["segment", "text"]
    """What became of it: whether [SEG] was written."""
    probability: float
    """Of [SEG], in the model's own view, where it was decided: at the first [SEG], or if none was written, where it
    came closest. Neither forcing nor forbidding changes it, nor does a temperature. The base, which knows no [SEG],
    says 0."""
    stopped: Stopped
    """The model had ended, the answer was as long as allowed, or somebody cancelled it."""
    new_tokens: int
    """Of the answer."""
    prompt_tokens: int
    """Computed before it: the question, and whatever of the conversation was not known."""
    known_tokens: int
    """Of earlier turns, which were not computed again."""
    dropped_turns: int
    """Oldest turns that left the model's view to make room for this one."""
    adapter: Adapter = "on"
    """Whose words they are."""


Event = TextDelta | Mask | NotThere | Done
