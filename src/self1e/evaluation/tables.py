"""Tables: a pure function of the rows under a folder, so that they can be printed again anywhere, by anybody.

Every number comes with protocol, way of asking, interval (95 %, bootstrap over pictures) and number of samples. What is
not the whole benchmark is called partial, and failed samples, which count as wrong, are listed.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from self1e.errors import DatasetError, Self1EError
from self1e.evaluation.benchmarks import find_benchmark
from self1e.evaluation.dump import read_rows
from self1e.evaluation.intervals import intervals_of
from self1e.evaluation.metrics.rows import Metric, Row
from self1e.evaluation.protocols import PROTOCOLS, Run, printed, protocol
from self1e.evaluation.runner import SHORT, row_files
from self1e.evaluation.suites import Column, PaperTable, tables_of
from self1e.files import atomic_write_all

_log = logging.getLogger(__name__)
_EXTRA = (
    *("ciou_rela", "rejection_auroc", "n_acc@t_acc=0.99", "n_acc@t_acc=0.97", "n_acc@t_acc=0.95"),
    *("pr@0.5", "pr@0.6", "pr@0.7", "pr@0.8", "pr@0.9", "acc@0.5", "fwiou", "macc", "pacc"),
)
"""Shown beside a protocol's headline, where rows give them."""
_POINTS = "score/"
_NOT_FIGURES = frozenset({"samples", "failed", "no_target"})


@dataclass(frozen=True)
class Number:
    """A figure with what it needs to be quoted."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def text(self, figure: str) -> str:
        """Percent, or points, with the interval."""
        if self.value is None or self.low is None or self.high is None:
            return _printed(figure, self.value)
        return f"{_printed(figure, self.value)} [{_printed(figure, self.low)}, {_printed(figure, self.high)}]"


def _printed(figure: str, value: float | None) -> str:
    return printed("total" if figure.startswith(_POINTS) else figure, value)  # like MME's sum, its tasks are points


@dataclass(frozen=True, kw_only=True)
class Line:
    """All figures of one benchmark, or of one of its sub-splits, by one protocol."""

    run: Run
    protocol: str
    subset: str
    samples: int
    failed: int
    figures: dict[str, Number]

    @property
    def name(self) -> str:
        """Benchmark and sub-split."""
        return f"{self.run.dataset} ({self.subset})" if self.subset else self.run.dataset


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The rows of one run, of its whole pictures."""

    run: Run
    rows: list[Row]
    partial: str = ""
    """Why it is not the whole benchmark; empty if it is."""
    lines: list[Line] = field(default_factory=list)


def read_results(out: Path) -> list[Measured]:
    """Read every run under a folder.

    Raises:
        DatasetError: There is none; or files of one run are of different models or data, or share a sample.
    """
    found: list[Measured] = []
    for folder in sorted({path.parent for path in out.rglob("rows-*.jsonl")}):
        run: Run | None = None
        rows: list[Row] = []
        for path in row_files(folder):
            if path.read_bytes().count(b"\n"):
                run, some = read_rows(path, run)
                rows += some
        if run is None or not rows:
            _log.warning("%s holds no complete row yet; it is left out of the tables.", folder)
            continue
        rows.sort(key=lambda row: row["id"])
        partial, rows = missing_part(run, rows), whole_pictures(rows)
        if not rows:
            _log.warning("%s holds no complete picture yet; it is left out of the tables.", folder)
            continue
        found.append(Measured(run=run, rows=rows, partial=partial, lines=lines_of(run, rows)))
    if not found:
        raise DatasetError(f"No rows under {out}; expected what `self1e eval --out {out}` writes.")
    return found


def whole_pictures(rows: Sequence[Row]) -> list[Row]:
    """Leave out pictures of which a killed run wrote some rows only: half a picture of MME has no score."""
    lacking: dict[Any, int] = {}
    for row in rows:
        if "unit" in row:
            lacking[row["unit"]] = lacking.get(row["unit"], int(row["unit_rows"])) - 1
    return [row for row in rows if lacking.get(row.get("unit"), 0) <= 0]


def missing_part(run: Run, rows: Sequence[Row]) -> str:
    """Say what a run lacks of its benchmark; empty if nothing is known to be missing."""
    benchmark = _benchmark_of(run)
    units = {row["unit"] for row in rows if "unit" in row}
    there = max((row["units"] for row in rows if "units" in row), default=len(units))
    reasons = []
    if len(rows) < sum({row["unit"]: row["unit_rows"] for row in rows if "unit" in row}.values()):
        reasons.append("a picture lacks rows")
    if len(units) < there:
        reasons.append(f"{len(units)} of {there} pictures measured")
    reasons += missing_kinds(run, whole_pictures(rows))
    unknown = sum(row["failed"] and not row.get("confusion", True) for row in rows)
    if unknown:
        reasons.append(f"{unknown} class maps cannot be read and count nowhere")
    if benchmark is not None:
        expected = (benchmark.expected,) if isinstance(benchmark.expected, int) else benchmark.expected or ()
        if expected and len(rows) not in expected:
            reasons.append(f"{len(rows)} of {' or '.join(map(str, expected))} samples")
        if benchmark.expected_units is not None and there != benchmark.expected_units:
            reasons.append(f"the data hold {there} of {benchmark.expected_units} pictures")
    return ", ".join(reasons)


def missing_kinds(run: Run, rows: Sequence[Row]) -> list[str]:
    """Say what a set of several parts lacks: files of POPE, tasks of MME, rotations of MMBench."""
    if not rows or run.protocol.split(".")[0] not in ("pope", "mme", "mmb"):
        return []
    found = protocol(run.protocol).metric().add_rows(rows).result()
    absent, turned = found.get("missing", []), found.get("incomplete", 0)
    told = [f"without {', '.join(absent)}"] if absent else []
    return told + ([f"{turned} questions lack rotations"] if turned else [])


def protocols_of(run: Run) -> tuple[str, ...]:
    """All protocols that the rows of a run can be read by; its own first."""
    benchmark = _benchmark_of(run)
    if benchmark is None:
        return (run.protocol,)
    explicit = benchmark.explicit_protocols if run.rejection != "none" else ()
    return tuple(dict.fromkeys((run.protocol, *explicit, *benchmark.protocols)))


def _benchmark_of(run: Run) -> Any:
    try:
        return find_benchmark(run.dataset)
    except Self1EError:
        return None


def lines_of(run: Run, rows: Sequence[Row]) -> list[Line]:
    """Compute all figures of a run, of the whole and of its sub-splits."""
    subsets = sorted({name for row in rows for name in row.get("subsets", ())})
    lines = []
    for name in protocols_of(run):
        for subset in ("", *subsets):
            some = [row for row in rows if not subset or subset in row["subsets"]]
            metric = protocol(name).metric().add_rows(some)
            result = flat(metric.result())
            figures = numbers(metric, {figure: result[figure] for figure in shown_figures(name, result)})
            if figures:
                lines.append(
                    Line(
                        run=run,
                        protocol=name,
                        subset=subset,
                        samples=result["samples"],
                        failed=result["failed"],
                        figures=figures,
                    )
                )
    return lines


def flat(result: dict[str, Any]) -> dict[str, Any]:
    """Bring MME's points per task to the level of the other figures: ``score/OCR``."""
    score = result.get("score")
    return result | ({f"{_POINTS}{task}": value for task, value in score.items()} if isinstance(score, dict) else {})


def shown_figures(name: str, result: dict[str, Any]) -> list[str]:
    """Figures to show: a protocol's headline and what else is of interest."""
    headline = [figure for figure in PROTOCOLS[name].headline if figure in result]
    more = [figure for figure in _EXTRA if result.get(figure) is not None]
    tasks = [figure for figure, value in result.items() if "/" in figure and isinstance(value, float | int)]
    return [figure for figure in dict.fromkeys([*headline, *more, *tasks]) if figure not in _NOT_FIGURES]


def numbers(metric: Metric, values: dict[str, float | None]) -> dict[str, Number]:
    """Bootstrap figures, drawing pictures."""
    drawn = [figure for figure, value in values.items() if value is not None and not figure.startswith(_POINTS)]
    found = intervals_of(metric, drawn)
    return {
        figure: Number(value, found[figure].low, found[figure].high) if figure in found else Number(value)
        for figure, value in values.items()
    }


# ---------------------------------------------------------------------- the paper's tables


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number in a table of the paper."""

    number: Number
    samples: int
    failed: int
    """Of the samples; they count as wrong."""
    is_partial: bool


def cell_of(column: Column, chosen: dict[str, tuple[Measured, str]]) -> Cell | None:
    """Fill one column from the runs of one model.

    Args:
        column: What it shows.
        chosen: Per benchmark its run and the protocol to read it by.

    Returns:
        None if a part of it was not measured. The interval of a mean of splits takes them as independent.
    """
    numbers: list[Number] = []
    samples, failed, is_partial = 0, 0, False
    for part in column.parts:
        if part not in chosen:
            return None
        measured, name = chosen[part]
        line = next((x for x in measured.lines if x.protocol == name and x.subset == column.subset), None)
        if line is None or column.figure not in line.figures:
            return None
        numbers.append(line.figures[column.figure])
        samples += line.samples
        failed += line.failed
        is_partial |= bool(measured.partial)
    return Cell(number=mean_number(numbers), samples=samples, failed=failed, is_partial=is_partial)


def mean_number(numbers: Sequence[Number]) -> Number:
    """Average numbers of independent data; half widths of their intervals add in squares."""
    if len(numbers) == 1:
        return numbers[0]
    values = [one.value for one in numbers if one.value is not None]
    if len(values) < len(numbers):
        return Number(None)
    value = math.fsum(values) / len(values)
    if any(one.low is None or one.high is None for one in numbers):
        return Number(value)

    def width(side: str) -> float:
        return math.hypot(*(getattr(one, side) - (one.value or 0.0) for one in numbers)) / len(numbers)

    return Number(value, value - width("low"), value + width("high"))


@dataclass(frozen=True, kw_only=True)
class FilledTable:
    """A table of the paper with rows of ours."""

    table: PaperTable
    ours: dict[str, list[Cell | None]]


def filled_tables(results: Sequence[Measured]) -> list[FilledTable]:
    """Fill every table to which the runs give a column."""
    found = []
    for table in tables_of([one.run.dataset for one in results]):
        ours: dict[str, list[Cell | None]] = {}
        wanted = [one for one in results if one.run.dataset in table.benchmarks]
        for model in dict.fromkeys(one.run.model for one in wanted):
            for answer in SHORT:
                runs = [one for one in wanted if one.run.model == model and one.run.answer == answer]
                for families in dict.fromkeys(name for one in runs for name in _families(one.run)):
                    chosen: dict[str, tuple[Measured, str]] = {}
                    for one in runs:
                        for name in protocols_of(one.run):
                            if _family(name) == families:
                                chosen.setdefault(one.run.dataset, (one, name))  # its headline protocol comes first
                    cells = [cell_of(column, chosen) for column in table.columns]
                    if any(cell is not None for cell in cells):
                        ours[f"{model}, {SHORT[answer]}, {families}"] = cells
        if ours:
            found.append(FilledTable(table=table, ours=ours))
    return found


def _family(name: str) -> str:
    """``ovs.d2/pc-59`` and ``ovs.d2/pas-20`` stand in one row; questions of all kinds do."""
    start = name.split("/")[0]
    return "own protocol of each" if start.split(".")[0] in ("vqa", "gqa", "pope", "mme", "mmb") else start


def _families(run: Run) -> list[str]:
    return [_family(name) for name in protocols_of(run)]


# ---------------------------------------------------------------------- writing


def write_tables(out: Path) -> list[Measured]:
    """Write ``tables.md`` and ``tables.json`` beside the rows.

    Returns:
        What they were made of.
    """
    results = read_results(out)
    tables = filled_tables(results)
    text = as_markdown(results, tables)
    content = json.dumps(as_json(results, tables), indent=1, ensure_ascii=False) + "\n"
    # Errors name files, and names may be no UTF-8; escaped they are text, and valid JSON.
    written = [(out / "tables.md", text), (out / "tables.json", content)]
    atomic_write_all([(path, words.encode("utf-8", "backslashreplace")) for path, words in written])
    return results


def as_markdown(results: Sequence[Measured], tables: Sequence[FilledTable]) -> str:
    """Write everything for people."""
    lines = ["# Evaluation", ""]
    lines += ["Percent, with 95 % intervals (bootstrap over pictures). `tf`: [SEG] was given, as in published tables;"]
    lines += ["`gen`: the model wrote its answer. † marks what is not the whole benchmark.", ""]
    for filled in tables:
        lines += _paper_lines(filled)
    lines += ["## Every run", ""]
    for one in results:
        lines += _run_lines(one)
    failed = [(one.run, row) for one in results for row in one.rows if row["failed"]]
    if failed:
        lines += ["## Failed samples", "", "Each counts as wrong.", ""]
        lines += [
            f"- {run.dataset}, {SHORT[run.answer]}, `{row['id']}`: {' '.join(str(row.get('error', '')).split())}"
            for run, row in failed
        ]
        lines += [""]
    return "\n".join(lines)


def _paper_lines(filled: FilledTable) -> list[str]:
    table = filled.table
    lines = [f"## Table {table.number}: {table.title}", "", f"Published: {table.protocol}.", ""]
    return [*lines, *_markdown(paper_rows(filled)), ""]


def paper_rows(filled: FilledTable) -> list[list[str]]:
    """A table of the paper as text: a header, published rows, ours, each with the numbers of samples."""
    table = filled.table
    rows = [["", *(column.label for column in table.columns)], *published_rows(table)]
    for name, cells in filled.ours.items():
        shown = zip(cells, table.columns, strict=True)
        rows.append([f"**{name}**", *(_cell_text(cell, column.figure) for cell, column in shown)])
        rows.append(["samples", *("-" if cell is None else count_text(cell.samples, cell.failed) for cell in cells)])
    return rows


def count_text(samples: int, failed: int) -> str:
    """Number of samples, and how many of them failed."""
    return f"{samples}, {failed} failed" if failed else str(samples)


def published_rows(table: PaperTable) -> list[list[str]]:
    """Published values as they are printed there, a row per method."""
    decimals = 2 if any(column.figure.startswith(_POINTS) for column in table.columns) else 1
    rows = []
    for method, values in table.published.items():
        padded = [*values, *[None] * (len(table.columns) - len(values))]
        rows.append([f"{method} (published)", *("-" if value is None else f"{value:.{decimals}f}" for value in padded)])
    return rows


def paper_lines(filled: FilledTable) -> list[list[str]]:
    """The same for a terminal, a line per number: column, the method's published values, protocol, ours, samples."""
    published, ours, samples = [], [], []
    _, *rows = paper_rows(filled)
    for row in rows:
        (published if row[0].endswith("(published)") else samples if row[0] == "samples" else ours).append(row)
    own = [row for row in published if row[0].startswith("SELF1E")] or published
    lines = []
    for row, counts in zip(ours, samples, strict=True):
        for k, column in enumerate(filled.table.columns, 1):
            if row[k] == "-":
                continue
            known = "\n".join(f"{one[0].removesuffix(' (published)')} {one[k]}" for one in own if one[k] != "-")
            way = "\n".join(row[0].strip("*").split(", ")[-2:])
            lines.append([column.label, known or "-", way, row[k].replace(" [", "\n["), counts[k]])
    return lines


def _cell_text(cell: Cell | None, figure: str) -> str:
    return "-" if cell is None else cell.number.text(figure) + ("†" if cell.is_partial else "")


def _run_lines(one: Measured) -> list[str]:
    run = one.run
    note = f" **partial†: {one.partial}.**" if one.partial else ""
    lines = [f"### {run.dataset}, {SHORT[run.answer]}", ""]
    lines += [
        f"{run.model}; prompt `{run.prompt}`; annotations `{run.annotations}`; rejection: {run.rejection}; "
        f"threshold {run.threshold:g}; IoU at {run.resolution} resolution.{note}",
        "",
    ]
    for name in dict.fromkeys(line.protocol for line in one.lines):
        some = [line for line in one.lines if line.protocol == name]
        figures = list(dict.fromkeys(figure for line in some for figure in line.figures))
        rows = [[f"`{name}`", "samples", "failed", *figures]]
        for line in some:
            numbers = [line.figures[f].text(f) if f in line.figures else "-" for f in figures]
            rows.append([line.subset or "all", str(line.samples), str(line.failed), *numbers])
        lines += [*_markdown(rows), ""]
    return lines


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = [f"| {' | '.join(map(markdown_cell, row))} |" for row in rows]
    return [header, "|" + "---|" * len(rows[0]), *body]


def markdown_cell(text: str) -> str:
    """Write text so that it stays one cell of a table: names of categories and models may hold anything."""
    return " ".join(text.split()).replace("|", "\\|")


def as_json(results: Sequence[Measured], tables: Sequence[FilledTable]) -> dict[str, Any]:
    """The same for programs: fractions and points, not rounded."""
    return {
        "runs": [
            {
                **asdict(one.run),
                "partial": one.partial,
                "samples": len(one.rows),
                "failed": [{"id": row["id"], "error": row.get("error")} for row in one.rows if row["failed"]],
                "lines": [
                    {
                        "protocol": line.protocol,
                        "subset": line.subset,
                        "samples": line.samples,
                        "failed": line.failed,
                        "figures": {name: asdict(found) for name, found in line.figures.items()},
                    }
                    for line in one.lines
                ],
            }
            for one in results
        ],
        "tables": [
            {
                "table": filled.table.number,
                "title": filled.table.title,
                "columns": [column.label for column in filled.table.columns],
                "published_protocol": filled.table.protocol,
                "published": {method: list(values) for method, values in filled.table.published.items()},
                "measured": {
                    name: [None if cell is None else asdict(cell) for cell in cells]
                    for name, cells in filled.ours.items()
                },
            }
            for filled in tables
        ],
    }


def for_terminal(results: Iterable[Measured]) -> list[list[str]]:
    """Rows of the short table: benchmark, way, own protocol, samples, and its headline figures, one per line."""
    rows = []
    for one in results:
        if not one.lines:  # answers for a test server have no score here
            told = count_text(len(one.rows), sum(row["failed"] for row in one.rows))
            rows.append([one.run.dataset, SHORT[one.run.answer], one.run.protocol, told, "-"])
            continue
        line = one.lines[0]
        names = [f for f in PROTOCOLS[line.protocol].headline if f in line.figures]
        shown = "\n".join(f"{f} {line.figures[f].text(f)}" for f in names)
        name = line.name + (" †" if one.partial else "")
        rows.append([name, SHORT[line.run.answer], line.protocol, count_text(line.samples, line.failed), shown])
    return rows


def remarks(results: Sequence[Measured], tables: Sequence[FilledTable]) -> list[str]:
    """What a terminal should say below the tables: what they lack, and what went wrong."""
    lines = []
    ablations = [str(filled.table.number) for filled in tables if filled.table.is_ablation]
    if ablations:
        lines.append(f"The same numbers beside the paper's ablations (Table {', '.join(ablations)}): in tables.md.")
    partial = [f"{one.run.dataset}, {SHORT[one.run.answer]}: {one.partial}." for one in results if one.partial]
    if partial:
        rest = f" The same holds for {len(partial) - 1} more, see tables.md." if len(partial) > 1 else ""
        lines.append(f"† is not the whole benchmark. {partial[0]}{rest}")
    failed = [row for one in results for row in one.rows if row["failed"]]
    if failed:
        first = " ".join(f"{failed[0]['id']}: {failed[0].get('error', 'no error was kept')}".split())
        what = "1 sample" if len(failed) == 1 else f"{len(failed)} samples"
        lines.append(f"{what} failed and count as wrong (listed at the end of tables.md), e.g. {first}")
    return lines
