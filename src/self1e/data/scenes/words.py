"""Every word that a scene's expressions, questions and answers are made of.

Text is only ever built from these tables, so that `all_words` is complete and a tokenizer can be made from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from self1e.data.scenes.shapes import COLOURS, KINDS

SIZE_WORDS = {"small": ("small", "little"), "medium": ("medium",), "large": ("large", "big")}
PATTERN_TAILS = {"striped": "with stripes", "spotted": "with spots"}
PATTERN_WORDS = ("plain", "striped", "spotted")
PLURALS = {kind: "crosses" if kind == "cross" else kind + "s" for kind in KINDS}
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")

RELATION_WORDS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below", "under"),
    "inside": ("inside",),
    "front": ("in front of",),
    "behind": ("behind",),
    "closest": ("closest to", "nearest to"),
}
EXTREME_WORDS = {
    "largest": ("largest", "biggest"),
    "smallest": ("smallest",),
    "leftmost": ("leftmost",),
    "rightmost": ("rightmost",),
    "highest": ("highest", "topmost"),
    "lowest": ("lowest",),
}
ORDINAL_WORDS = ("first", "second", "third")
SIDES = ("left", "right", "top", "bottom")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

COLOUR_RIDDLES = {
    "red": ("blood", "a tomato"),
    "orange": ("a carrot", "a pumpkin"),
    "yellow": ("a banana", "a lemon"),
    "green": ("grass", "a frog"),
    "blue": ("the sky on a sunny day", "the sea"),
    "purple": ("a plum",),
    "pink": ("a pig", "a flamingo"),
    "brown": ("chocolate", "mud"),
    "black": ("coal", "the sky at night"),
    "white": ("snow", "milk"),
}
COLOUR_RIDDLE_FORMS = ("Which one has the colour of {}?", "Which shape has the same colour as {}?")

KIND_RIDDLES: dict[str, tuple[tuple[str, ...], frozenset[str], frozenset[str]]] = {
    "rolls": (
        ("Which one could roll?", "Which shape could be a wheel?"),
        frozenset({"circle", "ring"}),
        frozenset({"oval"}),
    ),
    "love": (("Which one means love?", "Which shape says I love you?"), frozenset({"heart"}), frozenset()),
    "way": (("Which one shows the way?", "Which shape tells you where to go?"), frozenset({"arrow"}), frozenset()),
    "night": (
        ("Which one shines in the sky at night?", "What could you see in the sky at night?"),
        frozenset({"star", "moon"}),
        frozenset(),
    ),
    "hole": (("Which one has a hole?", "Which shape could you look through?"), frozenset({"ring"}), frozenset()),
    "egg": (("Which one looks like an egg?",), frozenset({"oval"}), frozenset()),
    "plus": (("Which one looks like a plus sign?",), frozenset({"cross"}), frozenset()),
    "doughnut": (("Which one looks like a doughnut?",), frozenset({"ring"}), frozenset()),
    "three": (
        ("Which one has three corners?", "Which shape has three sides?"),
        frozenset({"triangle"}),
        frozenset(),
    ),
    "five": (("Which one has five sides?",), frozenset({"pentagon"}), frozenset({"star"})),
    "six": (("Which one has six corners?", "Which shape has six sides?"), frozenset({"hexagon"}), frozenset()),
    "round": (
        ("Which one has no corners?",),
        frozenset({"circle", "oval", "ring"}),
        frozenset({"heart", "moon"}),
    ),
}
"""Per riddle: phrasings, the kinds that answer it, and the kinds about which people would disagree."""

SCENE_RIDDLES = {
    "corners": ("Which shape has the most corners?", "Which one has more corners than the others?"),
    "odd colour": ("Which one has a different colour from all the others?",),
    "odd kind": ("Which one has a different shape from all the others?",),
    "covered": ("Which one is partly covered by another shape?", "Which shape has another one on top of it?"),
}

FORMS = {
    "one": ("shape", "thing", "one"),
    "many": ("shapes", "things", "ones"),
    "the": ("the {}",),
    "that is": ("the {} that is {}",),
    "related": ("the {} {} the {}", "the {} that is {} the {}"),
    "extreme": ("the {} {}",),
    "ordinal": ("the {} {} from the {}",),
    "every": ("all the {}", "all {}", "the {}"),
    "all ones": ("all the {}",),
    "each": ("every {}",),
    "everything": ("everything {}", "everything that is {}"),
    "counted": ("the {} {}",),
    "not one": ("the {} that is not {}",),
    "not many": ("the {} that are not {}", "all the {} that are not {}"),
    "except": ("all the {} except the {}", "everything except the {}"),
    "several": ("the {} and the {}",),
}
QUESTION_FORMS = {
    "count": ("How many {} are there?", "How many {} do you see?"),
    "colour": ("What colour is the {}?", "Which colour does the {} have?"),
    "shape": ("What shape is the {}?",),
    "exists": ("Is there {} {}?", "Do you see {} {}?"),
    "where": ("Where is the {}?",),
    "compare": ("Is the {} {} the {}?",),
}
ANSWERS = ("yes", "no", "a", "an")
_TOKEN = re.compile(r"[A-Za-z]+|[^\sA-Za-z]")


def split_words(text: str) -> list[str]:
    """Split text into words and punctuation marks, as `all_words` lists them."""
    return _TOKEN.findall(text)


def all_words() -> tuple[str, ...]:
    """Return every word and punctuation mark that scenes can emit, sorted; capitals as they occur."""
    return tuple(sorted({word for text in _texts() for word in split_words(text.replace("{}", " "))}))


def _texts() -> Iterator[str]:
    yield from (*COLOURS, *KINDS, *PLURALS.values(), *NUMBERS, *ORDINAL_WORDS, *SIDES, *PLACES, *ANSWERS)
    yield from (*PATTERN_WORDS, *PATTERN_TAILS.values(), *COLOUR_RIDDLE_FORMS)
    for table in (SIZE_WORDS, RELATION_WORDS, EXTREME_WORDS, COLOUR_RIDDLES, SCENE_RIDDLES, FORMS, QUESTION_FORMS):
        for texts in table.values():
            yield from texts
    for texts, _, _ in KIND_RIDDLES.values():
        yield from texts
