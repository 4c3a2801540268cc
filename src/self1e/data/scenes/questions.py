"""Questions with short answers: how many, which colour, which shape, is there, where, and comparisons.

The answer is drawn first wherever that is possible, so that no answer can be guessed from the question alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from self1e.data.sample import Question
from self1e.data.scenes.expressions import Author
from self1e.data.scenes.grammar import Noun, pick, related
from self1e.data.scenes.scene import Scene, Thing
from self1e.data.scenes.shapes import COLOURS, HELD_OUT, KINDS
from self1e.data.scenes.words import NUMBERS, QUESTION_FORMS, RELATION_WORDS

_COMPARED = tuple(name for name in RELATION_WORDS if name != "closest")


def where(scene: Scene, thing: Thing) -> str | None:
    """Name the place of a thing on a 3 by 3 grid ("top left", "centre"); None near a line of the grid."""
    names = []
    for centre, length, low, high in zip(
        thing.centre_xy, scene.size_wh, ("left", "top"), ("right", "bottom"), strict=True
    ):
        at = centre / length
        if 0.34 < at < 0.41 or 0.59 < at < 0.66:
            return None
        names.append(low if at <= 0.34 else high if at >= 0.66 else "")
    return " ".join(name for name in reversed(names) if name) or "centre"


def _count(author: Author) -> Question | None:
    scene, rng = author.scene, author.rng
    wanted = int(rng.random() * min(5, len(scene.things) + 1))
    for _ in range(8):
        shape = pick(rng, (("colour",), ("kind",), ("colour", "kind"), ()))
        if author.held_out == "only":
            shape = ("colour", "kind")
        noun = Noun(
            colour=_present_or_any(author, "colour") if "colour" in shape else None,
            kind=_present_or_any(author, "kind") if "kind" in shape else None,
        )
        count = len(noun.among(scene))
        if (count == wanted or (not shape and wanted > 2)) and author.allows(noun.pairs):
            text = pick(rng, QUESTION_FORMS["count"]).format(noun.say(rng, many=True))
            return Question(text=text, answer=NUMBERS[count], tag="count")
    return None


def _present_or_any(author: Author, attribute: str) -> str:
    if author.rng.random() < 0.8:
        return getattr(author.thing(), attribute)
    return pick(author.rng, tuple(COLOURS) if attribute == "colour" else KINDS)


def _colour(author: Author) -> Question | None:
    return _read_off(author, "colour", (("kind",), ("kind",), ("size", "kind"), ("pattern", "kind"), ("size",)))


def _shape(author: Author) -> Question | None:
    return _read_off(author, "kind", (("colour",), ("colour",), ("size", "colour"), ("pattern", "colour"), ("size",)))


def _read_off(author: Author, attribute: str, shapes: tuple[tuple[str, ...], ...]) -> Question | None:
    """Ask for one attribute of a thing that the others single out."""
    thing = author.thing()
    noun = Noun(**{name: getattr(thing, name) for name in pick(author.rng, shapes)})
    # Question and answer together name a pair, even if the words alone do not.
    if noun.among(author.scene) != {thing.index} or not author.allows(frozenset({thing.pair})):
        return None
    tag = "colour" if attribute == "colour" else "shape"
    text = pick(author.rng, QUESTION_FORMS[tag]).format(noun.say(author.rng))
    return Question(text=text, answer=getattr(thing, attribute), tag=tag)


def _exists(author: Author) -> Question | None:
    scene, rng = author.scene, author.rng
    wanted = rng.random() < 0.5
    for _ in range(8):
        noun = Noun(kind=_present_or_any(author, "kind"), colour=_present_or_any(author, "colour"))
        if wanted:
            thing = author.thing()
            noun = Noun(kind=thing.kind, colour=thing.colour)
        elif author.held_out == "only":
            colour, kind = pick(rng, sorted(HELD_OUT))
            noun = Noun(kind=kind, colour=colour)
        if author.held_out != "only" and rng.random() < 0.2:
            noun = Noun(kind=noun.kind) if rng.random() < 0.5 else Noun(colour=noun.colour)
        if bool(noun.among(scene)) == wanted and author.allows(noun.pairs):
            said = noun.say(rng)
            article = "an" if said[0] in "aeiou" and not said.startswith("one") else "a"
            text = pick(rng, QUESTION_FORMS["exists"]).format(article, said)
            return Question(text=text, answer="yes" if wanted else "no", tag="exists")
    return None


def _where(author: Author) -> Question | None:
    found = author.unique()
    place = found and where(author.scene, found[1])
    if not found or not place or not author.allows(found[0].pairs):
        return None
    # Few things lie exactly in the middle of a side, so corners would win by number.
    if " " in place and author.rng.random() < 0.45:
        return None
    text = QUESTION_FORMS["where"][0].format(found[0].say(author.rng))
    return Question(text=text, answer=place, tag="where")


def _compare(author: Author) -> Question | None:
    wanted = author.rng.random() < 0.5
    for _ in range(8):
        first = author.unique()
        second = first and author.unique(but=first[1])
        if not first or not second or not author.allows(first[0].pairs | second[0].pairs):
            continue
        fair = [name for name in _COMPARED if _is_fair_comparison(author.scene, first[1], name, second[1], wanted)]
        if fair:
            said = pick(author.rng, RELATION_WORDS[pick(author.rng, fair)])
            text = QUESTION_FORMS["compare"][0].format(first[0].say(author.rng), said, second[0].say(author.rng))
            return Question(text=text, answer="yes" if wanted else "no", tag="compare")
    return None


def _is_fair_comparison(scene: Scene, first: Thing, relation: str, second: Thing, wanted: bool) -> bool:
    # "Is it behind that?" of two things far apart would make "no" the answer to guess.
    is_idle = relation in ("inside", "front", "behind") and not scene.overlap[first.index, second.index]
    return not is_idle and related(scene, first, relation, second) is wanted


MAKERS: dict[str, Callable[[Author], Question | None]] = {
    "count": _count,
    "colour": _colour,
    "shape": _shape,
    "exists": _exists,
    "where": _where,
    "compare": _compare,
}

QUESTION_TAGS = tuple(MAKERS)


def ask(author: Author, count: int, *, comparisons: float = 1.0) -> Iterator[Question]:
    """Yield up to ``count`` questions of different tags; a comparison comes first ``comparisons`` times as often."""
    for tag in _order(author.rng, comparisons):
        if not count:
            return
        for _ in range(8):
            question = MAKERS[tag](author)
            if question:
                yield question
                count -= 1
                break


def _order(rng: np.random.Generator, comparisons: float) -> list[str]:
    if comparisons == 1:  # weighted draws would be others: no sample that was ever drawn may change
        return [QUESTION_TAGS[i] for i in rng.permutation(len(QUESTION_TAGS))]
    weights = np.array([comparisons if tag == "compare" else 1.0 for tag in QUESTION_TAGS])
    return rng.choice(QUESTION_TAGS, size=len(QUESTION_TAGS), replace=False, p=weights / weights.sum()).tolist()
