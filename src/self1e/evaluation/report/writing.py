"""Write ``report.html`` and ``report.md`` beside the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from self1e.errors import Self1EError, SettingError
from self1e.evaluation.report import provenance
from self1e.evaluation.report.cases import Case, cases_of, class_ious, histogram, parts_of, pick
from self1e.evaluation.report.page import Photographs, Section, card, page
from self1e.evaluation.report.truths import Truths
from self1e.evaluation.scores import score_name
from self1e.evaluation.tables import Measured, as_markdown, filled_tables, markdown_cell, read_results
from self1e.files import atomic_write_all

MOST_BYTES = 10_000_000
EACH = 24


def write_report(
    out: Path, data: Sequence[Path] = (), *, each: int = EACH, most_bytes: int = MOST_BYTES, seed: int = 0
) -> list[Path]:
    """Write the report of every run under a folder: a pure function of its rows and of the data.

    Args:
        out: Folder of rows.
        data: Folders in which the benchmarks' data are looked for; runs whose data are not there are shown as tables.
        each: How many worst, best and random samples of each run are shown.
        most_bytes: Size of the page; samples that do not fit are left out, and the page says so.
        seed: Of the random samples.

    Returns:
        ``report.html`` and ``report.md``.

    Raises:
        DatasetError: There are no rows.
        SettingError: A number is below 1.
    """
    if each < 1 or most_bytes < 1:
        raise SettingError(f"each={each}, most_bytes={most_bytes}: both must be at least 1.")
    results = read_results(out)
    tables = filled_tables(results)
    photographs = Photographs()
    sections: list[Section] = []
    spent = 200_000  # style, script and tables
    asked = Counter((one.run.dataset, one.run.answer) for one in results)
    for number, measured in enumerate(results):
        share = (most_bytes - spent) // (len(results) - number)
        section = _new_section(measured)
        section.names_model = asked[measured.run.dataset, measured.run.answer] > 1
        used = _fill(section, data, photographs, each, share, seed)
        sections.append(section)
        spent += used
    made = provenance.read(out)
    html = page(sections, tables, made, photographs)
    markdown = as_markdown(results, tables) + _more_markdown(sections, made)
    # Words may hold half of a surrogate pair.
    written = [(out / "report.html", html), (out / "report.md", markdown)]
    return atomic_write_all([(path, text.encode("utf-8", "backslashreplace")) for path, text in written])


def _new_section(measured: Measured) -> Section:
    cases = cases_of(measured)
    return Section(
        measured=measured,
        score=score_name(measured.run),
        # Class maps have a table by class instead: a category there is what else is in the picture.
        parts=[] if "confusion" in measured.rows[0] else parts_of(cases),
        bars=histogram(cases),
        classes=class_ious(measured),
    )


def _fill(
    section: Section, data: Sequence[Path], photographs: Photographs, each: int, most_bytes: int, seed: int
) -> int:
    """Choose and draw samples; return how many bytes they take."""
    measured = section.measured
    truths: Truths | None = None
    try:
        truths = Truths(measured.run, data)
    except Self1EError as error:
        section.notes.append(f"Pictures are not shown: {error}")
    chosen = pick(cases_of(measured), each, seed=seed)
    if truths is not None and not any({"mask", "map", "prediction"} & set(row) for row in measured.rows):
        section.notes.append("The rows hold no masks, so predictions are not shown: measure with --report.")
    used = 0
    for number, case in enumerate(chosen):
        before = photographs.size
        made = card(case, _found(truths, case, section), section, photographs)
        used += len(made) + photographs.size - before
        if used > most_bytes:
            section.notes.append(f"{len(chosen) - number} samples are left out, for the size of this page.")
            break
        section.cards.append(made)
        section.tags = sorted({*section.tags, *case.tags})
    return used


def _found(truths: Truths | None, case: Case, section: Section) -> Any:
    if truths is None:
        return None
    try:
        return truths.find(case.row)
    except Self1EError as error:
        section.notes.append(str(error))
        return None


def _more_markdown(sections: Sequence[Section], made: Sequence[dict[str, Any]]) -> str:
    """What ``tables.md`` has not: parts, worst samples, and how it was made."""
    lines = []
    for section in sections:
        if section.parts:
            lines += [f"## {section.name}, by part", "", f"| | n | mean {section.score} |", "|---|---|---|"]
            lines += [
                f"| {markdown_cell(f'{part.by}: {part.name}')} | {part.samples} | {part.mean} |"
                for part in section.parts
            ]
            lines += [""]
        worst = [case for case in pick(cases_of(section.measured), 10) if "worst" in case.picks]
        lines += [f"## {section.name}, worst samples", ""]
        lines += [
            f"- {case.score or 0:.2f} `{case.row['id']}` {_one_line(case.row.get('query', ''))}".rstrip()
            for case in worst
        ]
        lines += [""]
    lines += ["## How this was made", ""]
    lines += [f"- {name}: {value}" for entry in made for name, value in entry.items() if value] or ["Not recorded."]
    return "\n" + "\n".join(lines) + "\n"


def _one_line(words: str) -> str:
    return " ".join(words.replace("|", "/").split())
