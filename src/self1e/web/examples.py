"""Pictures to begin with: the portrait inside the package, and drawn scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

PORTRAIT = Path(__file__).parent.parent / "assets" / "astronaut.jpg"
"""Eileen Collins, NASA, public domain."""
# Of the test split, so nano was not trained on them; chosen by the pictures, before results were known.
_SCENES, _SIZE_WH = (219, 4, 11), (500, 500)


@dataclass(frozen=True)
class Example:
    """A picture with words for every part of the page."""

    picture: Path
    queries: str
    classes: str
    question: str

    @property
    def first_query(self) -> str:
        """The one that is looked at."""
        return self.queries.splitlines()[0]


def write_examples(folder: Path) -> list[Example]:
    """Draw the scenes, and copy the portrait if this installation has it.

    Args:
        folder: Where the pictures go.
    """
    from self1e.data.scenes import Scenes

    found = []
    if PORTRAIT.is_file():
        place = folder / "astronaut.jpg"
        place.write_bytes(PORTRAIT.read_bytes())
        found.append(Example(place, "the person\nthe hair\nthe clothes", "person, hair, clothes", "the person"))
    scenes = Scenes("test", size_wh=_SIZE_WH)
    for number in _SCENES:
        sample = scenes[number]
        things: Any = sample.extra["things"]
        place = folder / f"scene-{number}.png"
        sample.image.save(place)
        kinds = dict.fromkeys(f"{thing.colour} {thing.kind}" for thing in things)
        queries = dict.fromkeys(target.text for target in sample.targets if target.tag not in ("absent", "several"))
        question = sample.questions[0].text if sample.questions else "How many things are there?"
        found.append(Example(place, "\n".join(list(queries)[:3]), ", ".join(kinds), question))
    return found
