"""Synthetic scenes: pictures of shapes in which every word is true by construction. No download, no torch."""

from self1e.data.scenes.dataset import Scenes
from self1e.data.scenes.expressions import SINGLE_TARGET_TAGS, TARGET_TAGS
from self1e.data.scenes.questions import QUESTION_TAGS
from self1e.data.scenes.scene import Scene, Thing
from self1e.data.scenes.shapes import COLOURS, HELD_OUT, KINDS
from self1e.data.scenes.sheet import contact_sheet
from self1e.data.scenes.words import all_words, split_words

__all__ = [
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "QUESTION_TAGS",
    "SINGLE_TARGET_TAGS",
    "TARGET_TAGS",
    "Scene",
    "Scenes",
    "Thing",
    "all_words",
    "contact_sheet",
    "split_words",
]
