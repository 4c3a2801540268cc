"""YOLO segmentation: a text file per picture with a line per object, ``class x1 y1 x2 y2 ...``, in parts of the sides.

The format has no holes and no objects in several pieces. Both become one line with bridges (`exports.rings`), as
Ultralytics' own converter joins pieces. A picture without objects gets an empty file, which YOLO takes as background.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from self1e.inference.exports.records import numbered
from self1e.inference.exports.rings import one_line
from self1e.structures import Segmentation

_DIGITS = 7  # exact to a thousandth of a pixel in pictures of 10,000 pixels


def yolo_lines(result: Segmentation) -> str:
    """Return the lines of one picture; the class is the number of the query, of equal ones the first."""
    numbers = numbered(result.queries)
    lines = []
    for query, polygons in zip(result.queries, result.to_polygons(), strict=True):
        if polygons:
            places = one_line(polygons) / np.array(result.size_wh)
            values = " ".join(f"{value:.{_DIGITS}g}" for value in places.ravel().tolist())
            lines.append(f"{numbers[query]} {values}\n")
    return "".join(lines)


def yolo_names(names: Iterable[str], folder: str = "images") -> str:
    """Return ``data.yaml``: where pictures are, and the names of the classes.

    Names are written in quotes and in ASCII: programs read this file in whatever encoding their system has.
    """
    lines = [f"path: .\ntrain: {folder}\nval: {folder}\nnames:\n"]
    lines += [f"  {number}: {_quoted(name)}\n" for number, name in enumerate(names)]
    return "".join(lines)


def _quoted(name: str) -> str:
    """Write a string of YAML; not as JSON does, whose pairs of surrogates YAML takes for two letters."""

    def spelled(letter: str) -> str:
        if letter in ('"', "\\"):
            return f"\\{letter}"
        return letter if letter.isascii() and letter.isprintable() else f"\\U{ord(letter):08x}"

    return f'"{"".join(map(spelled, name))}"'


def renumber(lines: str, numbers: Sequence[int]) -> str:
    """Give the lines of one picture the class numbers of a collection."""
    split = (line.split(" ", 1) for line in lines.splitlines())
    return "".join(f"{numbers[int(number)]} {rest}\n" for number, rest in split)
