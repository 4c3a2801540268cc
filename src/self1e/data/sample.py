"""What every dataset reader yields: one picture, its queries with masks, its questions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from self1e.processing.prompts import Kind


@dataclass(frozen=True, kw_only=True)
class Target:
    """Words and the pixels they mean."""

    text: str
    """The expression, as a person would type it, without template."""
    mask: np.ndarray
    """Bool ``(H, W)`` at the picture's own size; all False means "not there"."""
    kind: Kind = "phrase"
    """A noun phrase ("the red cup") or a whole sentence ("What could I drink from?")."""
    tag: str = ""
    """What the expression exercises ("attribute", "relation", "absent", ...): evaluation groups by it."""
    aliases: tuple[str, ...] = ()
    """Other words for the same, of which training draws one ("dog ear", "the ear of the dog")."""
    ignore: np.ndarray | None = None
    """Bool ``(H, W)``: pixels that evaluation leaves out; training takes them as background."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about the picture whose answer is text."""

    text: str
    answer: str
    tag: str = ""
    before: tuple[tuple[str, str], ...] = ()
    """Earlier turns of the same conversation, questions with answers: part of the sequence, and of what is learnt."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a data set's ``peek(index, with_size=...)`` says of a sample without decoding its picture."""

    letters: int
    """About how many letters the longest row about it has, template left out."""
    has_mask: bool
    size_wh: tuple[int, int] | None = None
    """Of the picture, if it was asked for or costs nothing."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One picture with everything that is asked about it."""

    image: Image.Image
    """RGB."""
    targets: tuple[Target, ...] = ()
    questions: tuple[Question, ...] = ()
    source: str = ""
    """Where it comes from, e.g. ``scenes/train/17``: error messages name it."""
    extra: dict[str, object] = field(default_factory=dict)
