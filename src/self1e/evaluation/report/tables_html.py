"""Tables of a report as HTML: the paper's, every run's figures, mean scores by part."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from self1e.evaluation.protocols import printed
from self1e.evaluation.report.cases import Part
from self1e.evaluation.runner import SHORT
from self1e.evaluation.tables import Cell, FilledTable, Measured, Number, count_text, published_rows


def table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], caption: str) -> str:
    """Write a table.

    Args:
        head: Escaped cells.
        rows: CSS class and escaped cells of each.
        caption: Says what it shows, for those who hear it.
    """
    columns = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    # Wide tables scroll by themselves, also with the keyboard.
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def paper_table(filled: FilledTable) -> str:
    """Our numbers beside the published ones."""
    wanted = filled.table
    rows = [("", [escape(cell) for cell in row]) for row in published_rows(wanted)]
    for name, cells in filled.ours.items():
        shown = zip(cells, wanted.columns, strict=True)
        rows.append(("ours", [escape(name), *(_cell(cell, column.figure) for cell, column in shown)]))
    title = f"Table {wanted.number}: {wanted.title}"
    head = ["", *(escape(column.label) for column in wanted.columns)]
    return (
        f'<h3>{escape(title)}</h3><p class="faint">Published: {with_code(wanted.protocol)}.</p>'
        f"{table(head, rows, title)}"
    )


def with_code(text: str) -> str:
    """Escape text whose names stand in backticks, as in the markdown files."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _cell(cell: Cell | None, figure: str) -> str:
    if cell is None:
        return "-"
    mark = "†" if cell.is_partial else ""
    return f"{number(cell.number, figure, mark)}<small>n = {count_text(cell.samples, cell.failed)}</small>"


def number(value: Number, figure: str, mark: str = "") -> str:
    """A figure, perhaps with a mark, and its interval below."""
    text, _, between = value.text(figure).partition(" [")
    return f"{text}{mark}<small>[{between}</small>" if between else f"{text}{mark}"


def run_tables(one: Measured) -> str:
    """All figures of a run, one table per protocol."""
    made = []
    for name in dict.fromkeys(line.protocol for line in one.lines):
        lines = [line for line in one.lines if line.protocol == name]
        figures = list(dict.fromkeys(figure for line in lines for figure in line.figures))
        head = [f"<code>{escape(name)}</code>", "n", "failed", *(escape(figure) for figure in figures)]
        rows = [
            (
                "" if line.subset else "ours",
                [
                    escape(line.subset) or "all",
                    str(line.samples),
                    str(line.failed),
                    *(number(line.figures[f], f) if f in line.figures else "-" for f in figures),
                ],
            )
            for line in lines
        ]
        made.append(table(head, rows, f"{one.run.dataset}, {SHORT[one.run.answer]}, {name}"))
    return "".join(made)


def classes_table(ious: Mapping[str, float | None]) -> str:
    """IoU of each class, the worst first; classes that are nowhere come last."""
    order = sorted(ious, key=lambda name: (ious[name] is None, ious[name] or 0.0, name))
    rows = [("", [escape(name), printed("iou", ious[name])]) for name in order]
    return table(["class", "IoU"], rows, "IoU by class") if rows else ""


def parts_table(parts: Sequence[Part], name: str) -> str:
    """Mean scores by size, length and category."""
    rows = [
        ("", [f"{part.by}: {escape(part.name)}", str(part.samples), *str(part.mean).partition(" ")[::2]])
        for part in parts
    ]
    return table(["", "n", f"mean of {escape(name)}", "95 % interval"], rows, f"mean of {name}") if rows else ""
