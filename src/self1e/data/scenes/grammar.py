"""Expressions about a scene: what they denote, and how they are said.

Every expression can evaluate itself. `denotes` answers with the set of things the words mean, or None when
people could disagree: a near tie, a thing only just to the left. Text is kept only if its meaning is clear.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from self1e.data.scenes import words
from self1e.data.scenes.scene import Scene, Thing
from self1e.data.scenes.shapes import KINDS, Pair

Rng = np.random.Generator
Meaning = frozenset[int] | None
"""Indices of things; None when the words are unclear in this scene."""

T = TypeVar("T")


def pick(rng: Rng, items: Sequence[T]) -> T:
    """Choose one item: many times faster than ``rng.choice``."""
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True, kw_only=True)
class Noun:
    """A description without article: kind, colour, size and pattern, each of them optional."""

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    pattern: str | None = None

    def fits(self, thing: Thing) -> bool:
        return (
            self.kind in (None, thing.kind)
            and self.colour in (None, thing.colour)
            and self.size in (None, thing.size)
            and self.pattern in (None, thing.pattern)
        )

    def among(self, scene: Scene) -> frozenset[int]:
        """Return the indices of all things that fit."""
        return frozenset(thing.index for thing in scene.things if self.fits(thing))

    @property
    def is_bare(self) -> bool:
        return not (self.colour or self.size or self.pattern)

    @property
    def pairs(self) -> frozenset[Pair]:
        return frozenset({(self.colour, self.kind)}) if self.colour and self.kind else frozenset()

    def say(self, rng: Rng, *, many: bool = False, one: bool = False) -> str:
        """Say it: "large red circle", "circles with spots", "small things".

        Args:
            rng: Chooses among synonyms.
            many: In the plural.
            one: Whether "one" may stand without an adjective, as in "the largest one".
        """
        tail = ""
        adjectives = [pick(rng, words.SIZE_WORDS[self.size])] if self.size else []
        if self.pattern in words.PATTERN_TAILS and rng.random() < 0.4:
            tail = " " + words.PATTERN_TAILS[self.pattern]
        elif self.pattern:
            adjectives.append(self.pattern)
        if self.colour:
            adjectives.append(self.colour)
        if self.kind:
            head = words.PLURALS[self.kind] if many else self.kind
        else:
            heads = words.FORMS["many" if many else "one"]
            head = pick(rng, heads if adjectives or one else heads[:2])
        return " ".join([*adjectives, head]) + tail


class Expression(ABC):
    """Words for some things of a scene."""

    singular: bool = True
    """Whether the words promise exactly one thing."""
    is_sentence: bool = False

    @abstractmethod
    def denotes(self, scene: Scene) -> Meaning:
        """Return what the words mean in this scene."""

    @abstractmethod
    def words(self, rng: Rng) -> str:
        """Say it in one of several ways."""

    @property
    def pairs(self) -> frozenset[Pair]:
        """Colour and kind pairs named together."""
        return frozenset()

    @property
    def denied_pairs(self) -> frozenset[Pair]:
        """Pairs named only to say that they are not meant."""
        return frozenset()


@dataclass(frozen=True)
class The(Expression):
    """ "the red circle"; in a scene without one it denotes nothing."""

    noun: Noun

    def denotes(self, scene: Scene) -> Meaning:
        return self.noun.among(scene)

    def words(self, rng: Rng) -> str:
        if self.noun.colour and rng.random() < 0.15:
            rest = Noun(kind=self.noun.kind, size=self.noun.size, pattern=self.noun.pattern)
            if rest.pattern not in words.PATTERN_TAILS:  # "the moon with stripes that is red" is clumsy
                return pick(rng, words.FORMS["that is"]).format(rest.say(rng), self.noun.colour)
        return words.FORMS["the"][0].format(self.noun.say(rng))

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs


@dataclass(frozen=True)
class Related(Expression):
    """ "the star left of the blue square": one thing by its place next to another."""

    noun: Noun
    relation: str
    anchor: Noun

    def denotes(self, scene: Scene) -> Meaning:
        anchors = self.anchor.among(scene)
        if len(anchors) != 1:
            return None
        (anchor,) = (scene.things[i] for i in anchors)
        others = [scene.things[i] for i in self.noun.among(scene) - anchors]
        if self.relation == "closest":
            return closest(scene, others, anchor)
        holds = [related(scene, thing, self.relation, anchor) for thing in others]
        if None in holds:
            return None
        return frozenset(thing.index for thing, true in zip(others, holds, strict=True) if true)

    def words(self, rng: Rng) -> str:
        form, relation = pick(rng, words.FORMS["related"]), pick(rng, words.RELATION_WORDS[self.relation])
        return form.format(self.noun.say(rng), relation, self.anchor.say(rng))

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs | self.anchor.pairs


@dataclass(frozen=True)
class Extreme(Expression):
    """ "the largest circle"."""

    noun: Noun
    extreme: str

    def denotes(self, scene: Scene) -> Meaning:
        among = [scene.things[i] for i in self.noun.among(scene)]
        if len(among) < 2:
            return None
        if self.extreme in ("largest", "smallest"):
            return extreme_size(among, largest=self.extreme == "largest")
        side = {"leftmost": "left", "rightmost": "right", "highest": "top", "lowest": "bottom"}[self.extreme]
        order = ordered(scene, among, side, depth=1)
        return None if order is None else frozenset(order[:1])

    def words(self, rng: Rng) -> str:
        extreme = pick(rng, words.EXTREME_WORDS[self.extreme])
        return words.FORMS["extreme"][0].format(extreme, self.noun.say(rng, one=True))

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs


@dataclass(frozen=True)
class Ordinal(Expression):
    """ "the second circle from the left"."""

    noun: Noun
    rank: int
    side: str

    def denotes(self, scene: Scene) -> Meaning:
        among = [scene.things[i] for i in self.noun.among(scene)]
        if len(among) < max(2, self.rank):
            return None
        order = ordered(scene, among, self.side, depth=self.rank)
        return None if order is None else frozenset(order[self.rank - 1 : self.rank])

    def words(self, rng: Rng) -> str:
        rank = words.ORDINAL_WORDS[self.rank - 1]
        return words.FORMS["ordinal"][0].format(rank, self.noun.say(rng, one=True), self.side)

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs


@dataclass(frozen=True)
class Every(Expression):
    """ "all the red ones", "the three circles", "everything blue"."""

    noun: Noun
    count: int
    singular = False

    def denotes(self, scene: Scene) -> Meaning:
        found = self.noun.among(scene)
        return found if len(found) == self.count else None

    def words(self, rng: Rng) -> str:
        only_colour = self.noun == Noun(colour=self.noun.colour)
        chance = rng.random()
        if self.noun.colour and only_colour and chance < 0.3:
            return pick(rng, words.FORMS["everything"]).format(self.noun.colour)
        if chance < 0.4 and self.noun != Noun():  # "every thing" would read as a misspelling
            return words.FORMS["each"][0].format(self.noun.say(rng))
        if chance < 0.55:
            return words.FORMS["counted"][0].format(words.NUMBERS[self.count], self.noun.say(rng, many=True))
        said = self.noun.say(rng, many=True)
        forms = words.FORMS["all ones" if " ones" in f" {said}" else "every"]
        return pick(rng, forms).format(said)

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs


@dataclass(frozen=True)
class Without(Expression):
    """ "the circle that is not green", "the shapes that are not striped"."""

    noun: Noun
    denied: Noun
    singular: bool = True

    def denotes(self, scene: Scene) -> Meaning:
        among = self.noun.among(scene)
        left = among - self.denied.among(scene)
        # Denying what nothing is, or what leaves everything, would be a strange thing to say.
        return left if left != among else None

    def words(self, rng: Rng) -> str:
        denied = self.denied.colour or self.denied.pattern or pick(rng, words.SIZE_WORDS[self.denied.size or ""])
        form = pick(rng, words.FORMS["not one" if self.singular else "not many"])
        return form.format(self.noun.say(rng, many=not self.singular), denied)

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.noun.pairs

    @property
    def denied_pairs(self) -> frozenset[Pair]:
        return Noun(kind=self.noun.kind, colour=self.denied.colour).pairs


@dataclass(frozen=True)
class Except(Expression):
    """ "all the shapes except the star"."""

    denied: Noun
    singular = False

    def denotes(self, scene: Scene) -> Meaning:
        denied = self.denied.among(scene)
        return Noun().among(scene) - denied if len(denied) == 1 else None

    def words(self, rng: Rng) -> str:
        if rng.random() < 0.5:
            return words.FORMS["except"][1].format(self.denied.say(rng))
        return words.FORMS["except"][0].format(Noun().say(rng, many=True), self.denied.say(rng))

    @property
    def denied_pairs(self) -> frozenset[Pair]:
        return self.denied.pairs


@dataclass(frozen=True)
class Several(Expression):
    """ "the red circle and the blue star"."""

    first: Noun
    second: Noun
    singular = False

    def denotes(self, scene: Scene) -> Meaning:
        first, second = self.first.among(scene), self.second.among(scene)
        return first | second if len(first) == len(second) == 1 and first != second else None

    def words(self, rng: Rng) -> str:
        return words.FORMS["several"][0].format(self.first.say(rng), self.second.say(rng))

    @property
    def pairs(self) -> frozenset[Pair]:
        return self.first.pairs | self.second.pairs


@dataclass(frozen=True)
class Riddle(Expression):
    """ "Which one could roll?": a sentence whose answer needs knowledge or a look at the whole scene."""

    name: str
    is_sentence = True

    def denotes(self, scene: Scene) -> Meaning:
        things = scene.things
        if len(things) < 2:
            return None
        if self.name in words.COLOUR_RIDDLES:
            return Noun(colour=self.name).among(scene)
        if self.name in words.KIND_RIDDLES:
            _, kinds, unclear = words.KIND_RIDDLES[self.name]
            if any(thing.kind in unclear for thing in things):
                return None
            return frozenset(thing.index for thing in things if thing.kind in kinds)
        match self.name:
            case "corners":
                return most_corners(things)
            case "odd colour":
                return odd_one([thing.colour for thing in things])
            case "odd kind":
                return odd_one([thing.kind for thing in things])
            case "covered":
                return partly_covered(things)
        raise AssertionError(self.name)

    def words(self, rng: Rng) -> str:
        if self.name in words.COLOUR_RIDDLES:
            return pick(rng, words.COLOUR_RIDDLE_FORMS).format(pick(rng, words.COLOUR_RIDDLES[self.name]))
        if self.name in words.KIND_RIDDLES:
            return pick(rng, words.KIND_RIDDLES[self.name][0])
        return pick(rng, words.SCENE_RIDDLES[self.name])


RIDDLES = (*words.COLOUR_RIDDLES, *words.KIND_RIDDLES, *words.SCENE_RIDDLES)

# ---- Meaning, with margins. Lengths are fractions of `Scene.unit`. ----

_CLEAR_STEP = 0.12
"""A thing is to the left only if its centre is at least this far to the left..."""
_CLEAR_SLOPE = 0.75
"""...and at least this part of how far it is up or down."""
_ORDER_GAP = 0.06
_CLOSER = 1.3
_LARGER = 1.35

_CORNERS = {kind: (0, 0) for kind in KINDS} | {
    "triangle": (3, 3),
    "square": (4, 4),
    "rectangle": (4, 4),
    "diamond": (4, 4),
    "pentagon": (5, 5),
    "hexagon": (6, 6),
    "star": (5, 10),
    "heart": (0, 2),
    "cross": (4, 12),
    "moon": (0, 2),
    "arrow": (3, 7),
}
"""Fewest and most corners that people would count."""


def related(scene: Scene, thing: Thing, relation: str, anchor: Thing) -> bool | None:
    """Say whether ``thing`` is, for example, left of ``anchor``; None if that is a matter of opinion."""
    i, j = thing.index, anchor.index
    if relation == "inside":
        part = float(scene.contained[i, j])
        return True if part > 0.98 else False if part == 0 else None
    if relation in ("front", "behind"):
        top, low = (i, j) if relation == "front" else (j, i)
        if not scene.overlap[i, j] or top < low:
            return False
        clear = scene.covered[top, low] > 0.1 * min(thing.visible_area, anchor.visible_area)
        return True if clear and not scene.contained[top, low] > 0.98 else None
    dx = (thing.centre_xy[0] - anchor.centre_xy[0]) / scene.unit
    dy = (thing.centre_xy[1] - anchor.centre_xy[1]) / scene.unit
    along, across = {"left": (-dx, dy), "right": (dx, dy), "above": (-dy, dx), "below": (dy, dx)}[relation]
    if along < 0:
        return False
    clear = along > _CLEAR_STEP and along > _CLEAR_SLOPE * abs(across)
    # Something inside the anchor, or around it, is not beside it.
    return True if clear and not scene.contained[i, j] and not scene.contained[j, i] else None


def closest(scene: Scene, others: Sequence[Thing], anchor: Thing) -> Meaning:
    """Return the thing nearest to ``anchor``, both from centre to centre and from edge to edge."""
    if len(others) < 2:
        return None

    def radius(thing: Thing) -> float:
        return math.sqrt(thing.area / math.pi)

    centres = [math.dist(thing.centre_xy, anchor.centre_xy) for thing in others]
    edges = [max(centre - radius(thing) - radius(anchor), 0) for thing, centre in zip(others, centres, strict=True)]
    best = centres.index(min(centres))
    for i in range(len(others)):
        if i != best and (centres[i] < _CLOSER * centres[best] or edges[i] < edges[best] + _ORDER_GAP * scene.unit):
            return None
    return frozenset({others[best].index})


def extreme_size(among: Sequence[Thing], *, largest: bool) -> Meaning:
    """Return the largest or smallest thing, by its silhouette and also by what is visible of it."""
    order = sorted(among, key=lambda thing: thing.area, reverse=largest)
    first, rest = order[0], order[1:]

    def beats(a: float, b: float, ratio: float) -> bool:
        return a > ratio * b if largest else b > ratio * a

    clear = all(
        beats(first.area, other.area, _LARGER) and beats(first.visible_area, other.visible_area, 1) for other in rest
    )
    return frozenset({first.index}) if clear else None


def ordered(scene: Scene, among: Sequence[Thing], side: str, depth: int) -> list[int] | None:
    """Order things from one side; None unless the first ``depth`` are clearly apart from each next one."""
    axis, sign = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}[side]
    order = sorted(among, key=lambda thing: sign * thing.centre_xy[axis])
    # The outer edges must agree with the centres: people look at either.
    edges = [
        (thing.box_xyxy[axis] if sign > 0 else -thing.box_xyxy[axis + 2], sign * thing.centre_xy[axis])
        for thing in order
    ]
    for i in range(depth):
        for later in edges[i + 1 :]:
            if later[1] - edges[i][1] < _ORDER_GAP * scene.unit or later[0] <= edges[i][0]:
                return None
    return [thing.index for thing in order]


def most_corners(things: Sequence[Thing]) -> Meaning:
    """Return the thing with the most corners, however people count them."""
    best = max(things, key=lambda thing: _CORNERS[thing.kind])
    rest = [_CORNERS[thing.kind][1] for thing in things if thing is not best]
    return frozenset({best.index}) if _CORNERS[best.kind][0] > max(rest) else None


def odd_one(values: Sequence[str]) -> Meaning:
    """Return the only one that differs, where all the others (two at least) agree."""
    if len(values) < 3 or len(set(values)) != 2:
        return None
    rare = min(values, key=values.count)
    return frozenset({values.index(rare)}) if values.count(rare) == 1 else None


def partly_covered(things: Sequence[Thing]) -> Meaning:
    """Return the things of which a clear part is hidden; None if any is hidden only a little."""
    if any(0.87 < thing.visible_fraction < 1 for thing in things):
        return None
    return frozenset(thing.index for thing in things if thing.visible_fraction < 1)
