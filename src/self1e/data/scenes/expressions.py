"""Propose expressions for a scene, one maker per tag; keep only those whose meaning is clear."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from self1e.data.scenes.grammar import (
    RIDDLES,
    Every,
    Except,
    Expression,
    Extreme,
    Noun,
    Ordinal,
    Related,
    Riddle,
    Rng,
    Several,
    The,
    Without,
    pick,
)
from self1e.data.scenes.scene import HeldOut, Scene, Thing
from self1e.data.scenes.shapes import COLOURS, HELD_OUT, KINDS, Pair
from self1e.data.scenes.words import EXTREME_WORDS, RELATION_WORDS, SIDES

SINGLE_TARGET_TAGS = ("attribute", "relation", "superlative", "ordinal", "reasoning")
"""Tags whose answer is always exactly one thing: what the headline metric averages over."""

_SHAPES_OF_NOUNS = (
    ("kind",),
    ("colour",),
    ("colour", "kind"),
    ("colour", "kind"),
    ("size", "kind"),
    ("size", "colour"),
    ("pattern", "kind"),
    ("pattern", "colour"),
    ("size", "colour", "kind"),
    ("pattern", "colour", "kind"),
    ("size",),
    ("pattern",),
)
_LOOSE_NOUNS = ((), ("kind",), ("kind",), ("colour",), ("colour", "kind"), ("size",), ("pattern",))
_RELATIONS = (*RELATION_WORDS, "inside", "front", "behind")  # rarely true, so proposed more often


@dataclass(frozen=True)
class Author:
    """Who speaks about a scene: the scene, the dice, and which pairs may be named."""

    scene: Scene
    rng: Rng
    held_out: HeldOut

    def allows(self, pairs: frozenset[Pair], denied: frozenset[Pair] = frozenset()) -> bool:
        """Say whether text naming these pairs keeps the rule about held-out ones."""
        if self.held_out == "never":
            return not (pairs | denied) & HELD_OUT
        return self.held_out == "any" or bool(pairs & HELD_OUT)

    def thing(self) -> Thing:
        """Choose a thing; one with a held-out pair where only those are asked for."""
        things = self.scene.things
        if self.held_out == "only":
            things = [thing for thing in things if thing.pair in HELD_OUT] or things
        return pick(self.rng, things)

    def describe(self, thing: Thing) -> Noun:
        """Describe a thing by a few of its attributes."""
        if self.held_out == "only":
            return _noun(thing, ("colour", "kind"))
        return self.attributes(thing, _SHAPES_OF_NOUNS)

    def attributes(self, thing: Thing, shapes: tuple[tuple[str, ...], ...]) -> Noun:
        """Describe a thing by one of several choices of attributes."""
        shape = pick(self.rng, shapes)
        # Most things are plain, and people seldom say so.
        while "pattern" in shape and thing.pattern == "plain" and self.rng.random() < 0.7:
            shape = pick(self.rng, shapes)
        return _noun(thing, shape)

    def unique(self, *, but: Thing | None = None) -> tuple[Noun, Thing] | None:
        """Find a description that fits exactly one thing."""
        for _ in range(6):
            thing = self.thing() if but is None else pick(self.rng, self.scene.things)
            noun = self.describe(thing) if but is None else self.attributes(thing, _SHAPES_OF_NOUNS)
            if thing is not but and noun.among(self.scene) == {thing.index}:
                return noun, thing
        return None

    def group(self) -> Noun:
        """Find a loose description, of several things if the scene has such."""
        noun = Noun()
        for _ in range(4):
            noun = self.attributes(self.thing(), _LOOSE_NOUNS)
            if len(noun.among(self.scene)) > 1:
                break
        return noun


def _noun(thing: Thing, shape: tuple[str, ...]) -> Noun:
    return Noun(**{name: getattr(thing, name) for name in shape})


def _attribute(author: Author) -> Expression | None:
    found = author.unique()
    return found and The(found[0])


def _relation(author: Author) -> Expression | None:
    found = author.unique()
    if not found:
        return None
    anchor, anchor_thing = found
    head = pick(author.rng, author.scene.things)
    if head is anchor_thing:
        return None
    noun = author.attributes(head, _LOOSE_NOUNS)
    if noun.kind is None and noun.colour is None and author.rng.random() < 0.5:
        noun = _noun(head, ("kind",))
    wanted_absent = author.rng.random() < 0.1
    return _true_relation(author, noun, anchor, 0 if wanted_absent else 1)


def _true_relation(author: Author, noun: Noun, anchor: Noun, count: int) -> Related | None:
    """Find a relation to the anchor that holds for so many of the things that a noun fits."""
    for i in author.rng.permutation(len(_RELATIONS)):
        related = Related(noun, _RELATIONS[i], anchor)
        meaning = related.denotes(author.scene)
        if meaning is not None and len(meaning) == count:
            return related
    return None


def _superlative(author: Author) -> Expression | None:
    return Extreme(author.group(), pick(author.rng, tuple(EXTREME_WORDS)))


def _ordinal(author: Author, ranks: Sequence[int] = (1, 2, 2, 3)) -> Expression | None:
    noun = author.group()
    return Ordinal(noun, pick(author.rng, ranks), pick(author.rng, SIDES))


def _plural(author: Author) -> Expression | None:
    noun = author.group()
    count = len(noun.among(author.scene))
    return Every(noun, count) if count > 1 else None


def _negation(author: Author) -> Expression | None:
    rng = author.rng
    if rng.random() < 0.2:
        found = author.unique()
        return found and Except(found[0]) if len(author.scene.things) > 2 else None
    noun = author.group()
    denied = _noun(pick(rng, author.scene.things), pick(rng, (("colour",), ("colour",), ("pattern",), ("size",))))
    if (noun.colour and denied.colour) or (noun.size and denied.size) or (noun.pattern and denied.pattern):
        return None
    if denied.pattern == "plain":
        return None  # "not plain" is a riddle
    left = noun.among(author.scene) - denied.among(author.scene)
    return Without(noun, denied, len(left) == 1)


def _several(author: Author) -> Expression | None:
    first = author.unique()
    second = first and author.unique(but=first[1])
    if not first or not second:
        return None
    pair = (first[0], second[0])
    return Several(*(pair if author.rng.random() < 0.5 else pair[::-1]))


def _absent(author: Author) -> Expression | None:
    """Words that fit nothing: most often a colour and a kind that are both there, but not together."""
    scene, rng = author.scene, author.rng
    colours = [thing.colour for thing in scene.things]
    kinds = [thing.kind for thing in scene.things]
    chance = rng.random()
    if chance < 0.2:
        related = _relation(author)
        return related if related and related.denotes(scene) == frozenset() else None
    if chance < 0.35:
        colours = list(COLOURS)
    elif chance < 0.5:
        kinds = list(KINDS)
    elif chance < 0.6 and author.held_out != "only":
        return _wrong_attribute(author)
    there = {thing.pair for thing in scene.things}
    pairs = [(c, k) for c in colours for k in kinds if (c, k) not in there and author.allows(frozenset({(c, k)}))]
    if not pairs:
        return None
    colour, kind = pick(rng, pairs)
    return The(Noun(colour=colour, kind=kind))


def _wrong_attribute(author: Author) -> Expression:
    """Name a thing that is there, in a size or pattern that it may not have."""
    thing, wrong = pick(author.rng, author.scene.things), pick(author.rng, author.scene.things)
    name = pick(author.rng, ("size", "pattern"))
    return The(Noun(kind=thing.kind, **{name: getattr(wrong, name)}))


def _reasoning(author: Author) -> Expression | None:
    thing = author.thing()
    # Half of the time about the colour that is there: most riddles fit no thing of a given scene.
    return Riddle(thing.colour if author.rng.random() < 0.25 else pick(author.rng, RIDDLES[len(COLOURS) :]))


Maker = tuple[str, float, Callable[[Author], Expression | None]]
"""Tag, how often it is proposed, who proposes."""

MAKERS: dict[str, tuple[float, Callable[[Author], Expression | None]]] = {
    "attribute": (4, _attribute),
    "relation": (3.5, _relation),
    "superlative": (2, _superlative),
    "ordinal": (1.5, _ordinal),
    "plural": (1.5, _plural),
    "negation": (1.5, _negation),
    "several": (1.5, _several),
    "absent": (2, _absent),
    "reasoning": (2, _reasoning),
}
"""Per tag: how often it is proposed, and who proposes."""

TARGET_TAGS = tuple(MAKERS)


def _closest(author: Author) -> Expression | None:
    found = author.unique()
    return found and Related(author.group(), "closest", found[0])


def _pair(author: Author) -> Expression | None:
    return The(_noun(author.thing(), ("colour", "kind")))


def _absent_relation(author: Author) -> Expression | None:
    found = author.unique()
    return found and _true_relation(author, author.group(), found[0], 0)


HARD_MAKERS: tuple[Maker, ...] = (
    ("ordinal", 3, partial(_ordinal, ranks=(2, 2, 3))),
    ("relation", 3, _closest),
    ("attribute", 2, _pair),
    ("absent", 1, _absent_relation),
    ("absent", 1.5, _wrong_attribute),
)
"""Expressions that `nano` learned last (docs/log.md)."""


def propose(
    author: Author, tags: tuple[str, ...], count: int, *, hard: float = 0.0
) -> Iterator[tuple[str, Expression, frozenset[int]]]:
    """Yield up to ``count`` clear and different expressions, with their tags and what they denote.

    ``hard`` is the share of them that one of `HARD_MAKERS` proposes.
    """
    makers = [(tag, *MAKERS[tag]) for tag in tags]
    hard_makers = [maker for maker in HARD_MAKERS if maker[0] in tags]
    seen: set[Expression] = set()
    for _ in range(3 * count):  # some tags are impossible in some scenes
        if len(seen) == count:
            return
        # No dice without `hard`: no sample that was ever drawn may change.
        tag, make = _throw(author.rng, hard_makers if hard and author.rng.random() < hard else makers)
        for _ in range(8):
            expression = make(author)
            if expression is None or expression in seen:
                continue
            if not author.allows(expression.pairs, expression.denied_pairs):
                continue
            meaning = expression.denotes(author.scene)
            if is_fair(tag, expression, meaning):
                assert meaning is not None
                seen.add(expression)
                yield tag, expression, meaning
                break


def _throw(rng: Rng, makers: Sequence[Maker]) -> tuple[str, Callable[[Author], Expression | None]]:
    steps = list(itertools.accumulate(weight for _, weight, _ in makers))
    dice = rng.random() * steps[-1]
    tag, _, make = makers[bisect.bisect_right(steps, dice)]
    return tag, make


def is_fair(tag: str, expression: Expression, meaning: frozenset[int] | None) -> bool:
    """Say whether the words promise as many things as they denote."""
    if meaning is None:
        return False
    if tag == "absent":
        return not meaning
    return len(meaning) == 1 if expression.singular else len(meaning) > 1
