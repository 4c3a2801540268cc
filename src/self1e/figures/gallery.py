"""Fig. 6 and 7: many pictures and queries in a grid, with the truth beside the prediction where it is known."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from self1e.data.files import read_json_lines
from self1e.drawing import distinct_colors
from self1e.errors import DatasetError, SettingError
from self1e.figures.sheet import FAINT, INK, ZOOM, Sheet, pixels_of
from self1e.structures import Segmentation

_SIDE, _GAP, _MARGIN, _TOP, _CAPTION = 200, 14, 22, 64, 56
_LEAST_SIDE = 60.0  # a caption must fit below a picture that is one line


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One cell of the grid."""

    picture: Any
    """What ``Self1E.encode`` takes."""
    queries: tuple[str, ...]
    """One query; or all classes of a class map, of which the highest logit wins at every pixel."""
    truth: tuple[np.ndarray, ...] = ()
    """Bool ``(H, W)`` per query; empty if unknown."""
    kind: Any = "auto"

    @property
    def is_class_map(self) -> bool:
        """Classes compete for pixels."""
        return len(self.queries) > 1


def read_entries(file: str | Path) -> list[Entry]:
    """Read a list of pictures and queries.

    A CSV has the columns ``picture`` and ``query`` in its first line; JSON lines hold objects with these keys. Paths
    are relative to the list.

    Raises:
        DatasetError: No such file, or a line without picture or query, or a picture that is not there.
    """
    file = Path(file)
    is_csv = file.suffix.lower() == ".csv"
    found = []
    for number, row in _csv(file) if is_csv else read_json_lines(file, "picture, query"):
        picture, query = row.get("picture"), row.get("query")
        if not (isinstance(picture, str) and picture and isinstance(query, str) and query.strip()):
            wanted = "the columns picture and query" if is_csv else '{"picture": "a.jpg", "query": "the cup"}'
            raise DatasetError(f"{file}, line {number} has no picture or no query; expected {wanted}.")
        path = file.parent / picture
        if not path.is_file():
            raise DatasetError(f"{file}, line {number}: no picture {path}; paths are relative to the list.")
        found.append(Entry(picture=path, queries=(query,)))
    if not found:
        raise DatasetError(f"{file} lists no picture.")
    return found


def _csv(file: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{file} cannot be read as text ({error}); expected columns picture and query.") from error
    return enumerate(csv.DictReader(io.StringIO(text)), 2)


def benchmark_entries(name: str, data: Sequence[Path], count: int) -> list[Entry]:
    """Take the first pictures of a benchmark, with the truth: one target each, or the whole class map.

    Raises:
        SettingError: The benchmark is unknown, or has no masks.
        DatasetError: Its data are missing.
    """
    from self1e.evaluation.benchmarks import find_benchmark
    from self1e.evaluation.runner import open_benchmark

    opened = open_benchmark(find_benchmark(name), data)
    found: list[Entry] = []
    for index in range(len(opened.units)):
        if len(found) == count:
            break
        unit = opened.units[index]
        if hasattr(unit, "labels"):
            classes = opened.units.label_set.classes  # type: ignore[attr-defined]
            truth = tuple(unit.labels == k for k in range(len(classes)))
            found.append(Entry(picture=unit.image, queries=tuple(classes), truth=truth, kind="phrase"))
        elif getattr(unit, "targets", ()):
            # Not always the first: it tends to be of one kind in each data set.
            target = unit.targets[index % len(unit.targets)]
            found.append(Entry(picture=unit.image, queries=(target.text,), truth=(target.mask == 1,), kind=target.kind))
        elif not hasattr(unit, "targets"):
            raise SettingError(f"{name} has questions, no masks; a gallery shows benchmarks of masks or classes.")
    return found


def draw_gallery(
    segmenter: Any, entries: Sequence[Entry], *, columns: int = 4, max_tiles: int | None = None, title: str = ""
) -> Sheet:
    """Segment every entry and draw all in a grid.

    Args:
        segmenter: From ``self1e.load``.
        entries: See `read_entries` and `benchmark_entries`.
        columns: Cells in a row; with truths a cell is twice as wide.
        max_tiles: See ``Self1E.encode``.
        title: Stands above.

    Raises:
        SettingError: There is nothing to draw, or less than one column.
    """
    if not entries or columns < 1:
        raise SettingError(f"A gallery of {len(entries)} pictures in {columns} columns: both must be at least 1.")
    columns = min(columns, len(entries))
    shown = [_segment(segmenter, entry, max_tiles) for entry in entries]
    panels = 2 if any(entry.truth for entry in entries) else 1
    # Portraits side by side need less room than landscapes.
    side = max(_LEAST_SIDE, *(_SIDE * min(1.0, result.size_wh[0] / result.size_wh[1]) for result in shown))
    cell = panels * side + (panels - 1) * 4
    heights = [_SIDE * min(1.0, result.size_wh[1] / result.size_wh[0]) for result in shown]
    rows = [range(start, min(start + columns, len(shown))) for start in range(0, len(shown), columns)]
    tops = [float(_TOP)]
    for row in rows:
        tops.append(tops[-1] + max(heights[k] for k in row) + _CAPTION)
    title = title or "Predictions"
    width = max(columns * cell + (columns - 1) * _GAP, Sheet.measure(title, 17))
    sheet = Sheet(2 * _MARGIN + width, tops[-1] + 4)
    sheet.text(_MARGIN, 26, title, 17, bold=True)
    if panels > 1:
        sheet.text(_MARGIN, 46, "left the prediction, right the truth", 11, FAINT)
    for row, top in zip(rows, tops, strict=False):
        for place, k in enumerate(row):
            _draw_cell(sheet, _MARGIN + place * (cell + _GAP), top, side, entries[k], shown[k], heights[k])
    return sheet


def _segment(segmenter: Any, entry: Entry, max_tiles: int | None) -> Segmentation:
    if not entry.is_class_map:
        return segmenter.segment(entry.picture, list(entry.queries), kind=entry.kind, max_tiles=max_tiles)
    from self1e.evaluation.metrics.semantic import label_map

    encoded = segmenter.encode(entry.picture, max_tiles=max_tiles)
    logits = segmenter.mask_logits(encoded, list(entry.queries), kind="phrase")
    labels = label_map(iter(logits), encoded.size_wh, len(entry.queries))
    masks = [labels == k for k in range(len(entry.queries))]
    return Segmentation.from_masks(masks, np.ones(len(masks)), entry.queries, image=encoded.image)


def _draw_cell(
    sheet: Sheet, x: float, y: float, side: float, entry: Entry, result: Segmentation, height: float
) -> None:
    cell = 2 * side + 4 if entry.truth else side
    image = result.image
    assert image is not None  # segment() and from_masks() above give it
    scale = min(side / image.width, height / image.height)
    size = pixels_of(image.width * scale, image.height * scale)
    colours = distinct_colors(len(result))
    left = (side - image.width * scale) / 2
    drawn = _overlay(result, [result.mask(k) for k in range(len(result))], size, colours)
    sheet.panel(x + left, y, size[0] / ZOOM, size[1] / ZOOM, drawn)
    if entry.truth:
        drawn = _overlay(result, entry.truth, size, colours)
        sheet.panel(x + side + 4 + left, y, size[0] / ZOOM, size[1] / ZOOM, drawn)
    if not entry.is_class_map:
        note = "  (not there)" if result.is_empty[0] else ""
        sheet.lines(x + 2, y + height + 6, f'"{_shorten(entry.queries[0], cell)}"{note}', cell - 4, 12, INK)
        return
    at = x + 2
    areas = result.areas + np.array([int(mask.sum()) for mask in entry.truth] or [0])
    for k in np.argsort(-areas).tolist():
        width = Sheet.measure(entry.queries[k], 10) + 22
        if not areas[k] or at + width > x + cell:
            continue
        sheet.box(at, y + height + 8, 9, 9, colours[k])
        sheet.text(at + 13, y + height + 13, entry.queries[k], 10, INK)
        at += width


def _shorten(words: str, width: float) -> str:
    """What three lines hold."""
    most = int(3 * width / 7)
    return words if len(words) <= most else words[: most - 3].rstrip() + "..."


def _overlay(
    result: Segmentation, masks: Sequence[np.ndarray], size_wh: tuple[int, int], colours: Sequence[Any]
) -> Image.Image:
    assert result.image is not None
    shown = [np.asarray(Image.fromarray(mask).resize(size_wh, Image.Resampling.NEAREST)) for mask in masks]
    small = result.image.resize(size_wh, Image.Resampling.LANCZOS)
    drawn = Segmentation.from_masks(shown, np.ones(len(shown)), result.queries, image=small)
    return drawn.overlay(alpha=0.5, colors=list(colours), legend=False)
