"""Queries to masks; another threshold, other layers and another opacity come from kept logits, not from the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from self1e.drawing import distinct_colors
from self1e.errors import PromptError
from self1e.structures import Segmentation

if TYPE_CHECKING:
    from torch import Tensor

    from self1e.inference.segmenter import EncodedPicture

MAX_QUERIES = 16
"""Most things at once."""
MAX_LETTERS = 4000
"""Of a text field."""
SHOWN_SIDE = 1280
"""Longest side of what the page shows, in pixels. Files are made at the picture's own size."""


@dataclass(frozen=True, eq=False)
class Found:
    """What became of some queries, with all that a new threshold needs."""

    encoded: EncodedPicture
    logits: Tensor = field(repr=False)
    """Float32 ``(K, h, w)``, on the CPU."""
    threshold: float
    least_score: float | None
    """The model's calibrated one: masks that score less are not there."""
    result: Segmentation
    """At the picture's own size."""
    shown: Segmentation
    """The same at the size of the page."""


@dataclass(frozen=True)
class Row:
    """What the page says about a query."""

    query: str
    color: tuple[int, int, int]
    is_there: bool
    score: float
    area: int
    """Pixels of the picture."""
    share: float
    """Of the picture, 0 to 1."""
    peak: float
    """Highest probability of any pixel of the logits: how close a thing that is not there came."""


def read_queries(text: str | None) -> list[str]:
    """Read one query per line; empty lines are left out, and of equal ones all but the first.

    Raises:
        PromptError: There is none, or there are too many, or too many words.
    """
    check_length(text)
    queries = list(dict.fromkeys(" ".join(line.split()) for line in (text or "").splitlines() if line.strip()))
    if not queries:
        raise PromptError("Say what to find: one thing per line, for example: the person")
    if len(queries) > MAX_QUERIES:
        raise PromptError(f"{len(queries)} lines; the page takes {MAX_QUERIES} at once. Ask for the rest afterwards.")
    return queries


def check_length(text: str | None) -> None:
    """Refuse what a field of the page does not take; whoever calls its endpoints by hand may send anything.

    Raises:
        PromptError: It is too long.
    """
    if len(text or "") > MAX_LETTERS:
        raise PromptError(f"{len(text or ''):,} letters; the page takes {MAX_LETTERS:,} at once.")


def find(
    model: Any, encoded: EncodedPicture, queries: Sequence[str], *, kind: str = "auto", threshold: float = 0.0
) -> Found:
    """Ask the model; see ``Self1E.segment`` for the arguments."""
    logits = model.mask_logits(encoded, list(queries), kind=kind).cpu()
    return _make(encoded, tuple(queries), logits, threshold, model.no_target_threshold)


def with_threshold(found: Found, threshold: float) -> Found:
    """Make masks anew from the kept logits."""
    if threshold == found.threshold:
        return found
    return _make(found.encoded, found.result.queries, found.logits, threshold, found.least_score)


def _make(
    encoded: EncodedPicture, queries: tuple[str, ...], logits: Tensor, threshold: float, least_score: float | None
) -> Found:
    from self1e.inference.segmenter import finish

    result = finish(encoded, queries, list(logits), threshold=threshold, least_score=least_score, return_logits=True)
    small = shrunk(encoded.image)
    shown = result
    if small is not encoded.image:
        there = [None if is_empty else one for one, is_empty in zip(logits, result.is_empty, strict=True)]
        shown = finish(replace(encoded, image=small), queries, there, threshold=threshold)
    return Found(encoded, logits, threshold, least_score, result, shown)


def shrunk(image: Image.Image, side: int = SHOWN_SIDE) -> Image.Image:
    """Bring a large picture to the size of the page; a small one is returned as it is."""
    if max(image.size) <= side:
        return image
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def draw(found: Found, layers: Sequence[int], opacity: float) -> Image.Image:
    """Draw some of the masks on the picture, each in the colour of its number.

    Args:
        found: From ``find``.
        layers: Numbers of the queries that are switched on; those that do not exist are passed over.
        opacity: 0 (contours only) to 1.
    """
    colors = distinct_colors(len(found.shown))
    on = [k for k in range(len(found.shown)) if k in set(layers)]
    chosen = replace(
        found.shown,
        queries=tuple(found.shown.queries[k] for k in on),
        rles=tuple(found.shown.rles[k] for k in on),
        scores=found.shown.scores[on],
        text=tuple(found.shown.text[k] for k in on),
        mask_logits=None,
    )
    return chosen.overlay(alpha=opacity, colors=[colors[k] for k in on], legend=False)


def rows(found: Found) -> list[Row]:
    """Tell score and area of each query."""
    result = found.result
    pixels = result.size_wh[0] * result.size_wh[1]
    peaks = found.logits.flatten(1).amax(1).sigmoid().tolist()
    areas, colors = result.areas.tolist(), distinct_colors(len(result))
    return [
        Row(query, colors[k], areas[k] > 0, float(result.scores[k]), areas[k], areas[k] / pixels, peaks[k])
        for k, query in enumerate(result.queries)
    ]


def described(found: Found) -> str:
    """Say in words what the drawn picture shows, for those who do not see it."""
    told = [
        f"{row.query}, {row.share:.1%} of the picture" if row.is_there else f"{row.query}: not there"
        for row in rows(found)
    ]
    return "The picture with masks: " + "; ".join(told)
