"""Files for the servers that score test splits: a pure function of a dump of rows.

    python -m self1e.evaluation.submissions ROWS.jsonl --out answers.json

================  ======================================================================================
split             file
================  ======================================================================================
vqav2/test-dev    JSON: ``[{"question_id": 262144000, "answer": "down"}, ...]``
vizwiz/test       JSON: ``[{"image": "VizWiz_test_00000000.jpg", "answer": "unanswerable"}, ...]``
mmbench-*/test    a workbook (xlsx): the table without its pictures, and a column ``prediction``
================  ======================================================================================

A sample that failed is handed in as an empty answer: servers want every question.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from xml.sax.saxutils import escape

import typer

from self1e.errors import DatasetError, SettingError
from self1e.evaluation.dump import read_rows
from self1e.evaluation.metrics.rows import Row
from self1e.files import atomic_write

_TYPES = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Default Extension="xml" ContentType="application/xml"/>'
    '<Override PartName="/xl/workbook.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/>'
    '<Override PartName="/xl/worksheets/sheet1.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.spreadsheetml.worksheet+xml"/></Types>'
)
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_RELATIONS = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    '<Relationship Id="rId1" Type="{kind}" Target="{target}"/></Relationships>'
)
_SHEETS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_WORKBOOK = (
    '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
    f'<workbook xmlns="{_SHEETS}" xmlns:r="{_OFFICE}">'
    '<sheets><sheet name="Sheet1" sheetId="1" r:id="rId1"/></sheets></workbook>'
)
_LONGEST_CELL = 32_767  # characters; Excel refuses the file beyond


def as_vqav2(rows: Sequence[Row]) -> bytes:
    """Question numbers and answers, as EvalAI takes them."""
    return _json([{"question_id": row["submitted"]["question_id"], "answer": _answer(row)} for row in rows])


def as_vizwiz(rows: Sequence[Row]) -> bytes:
    """Names of pictures and answers, as EvalAI takes them."""
    return _json([{"image": row["submitted"]["image"], "answer": _answer(row)} for row in rows])


def as_mmbench(rows: Sequence[Row]) -> bytes:
    """The table without pictures, with the column ``prediction``, as a workbook."""
    columns = list(dict.fromkeys(name for row in rows for name in row["submitted"]))
    table = [[str(row["submitted"].get(name, "")) for name in columns] + [_answer(row)] for row in rows]
    return workbook([*columns, "prediction"], table)


FORMATS: dict[str, tuple[str, Callable[[Sequence[Row]], bytes]]] = {
    "vqav2/test-dev": (".json", as_vqav2),
    "vizwiz/test": (".json", as_vizwiz),
    "mmbench-en/test": (".xlsx", as_mmbench),
    "mmbench-cn/test": (".xlsx", as_mmbench),
}
"""Ending and writer of each split that a server scores."""


def write_submission(dataset: str, rows: Sequence[Row], path: str | Path) -> Path:
    """Write the file that a server takes.

    Args:
        dataset: One of `FORMATS`.
        rows: Of the complete split, in any order.
        path: Where to; its ending must be the format's.

    Raises:
        SettingError: No server scores this split, or the ending is another.
        DatasetError: There is no row.
    """
    if dataset not in FORMATS:
        raise SettingError(f"{dataset!r} is scored here, not by a server; files are made for {', '.join(FORMATS)}.")
    ending, write = FORMATS[dataset]
    path = Path(path)
    if path.suffix != ending:
        raise SettingError(f"{path}: the server of {dataset} takes {ending[1:]} files; name it {path.stem}{ending}.")
    if not rows:
        raise DatasetError(f"There is no row of {dataset}; evaluate it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: (int(row["id"]), "") if row["id"].isdecimal() else (-1, row["id"]))
    return atomic_write(path, write(ordered))


def workbook(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bytes:
    """Write a table as an Excel workbook (OOXML) of one sheet; whole numbers become numbers, all else text."""
    lines = []
    for number, cells in enumerate([columns, *rows], 1):
        written = "".join(_cell(f"{_letters(k)}{number}", cell) for k, cell in enumerate(cells))
        lines.append(f'<row r="{number}">{written}</row>')
    sheet = (
        '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>'
        f'<worksheet xmlns="{_SHEETS}"><sheetData>{"".join(lines)}</sheetData></worksheet>'
    )
    parts = {
        "[Content_Types].xml": _TYPES,
        "_rels/.rels": _RELATIONS.format(kind=f"{_OFFICE}/officeDocument", target="xl/workbook.xml"),
        "xl/workbook.xml": _WORKBOOK,
        "xl/_rels/workbook.xml.rels": _RELATIONS.format(kind=f"{_OFFICE}/worksheet", target="worksheets/sheet1.xml"),
        "xl/worksheets/sheet1.xml": sheet,
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            # A fixed time, so that the same rows give the same bytes.
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content.encode("utf-8", "replace"))
    return buffer.getvalue()


def _cell(place: str, value: str) -> str:
    if not value:
        return ""
    if value.isascii() and value.isdecimal() and len(value) < 16 and (value == "0" or value[0] != "0"):
        return f'<c r="{place}"><v>{value}</v></c>'
    kept = "".join(letter for letter in value[:_LONGEST_CELL] if letter >= " " or letter in "\t\n")
    return f'<c r="{place}" t="inlineStr"><is><t xml:space="preserve">{escape(kept)}</t></is></c>'


def _letters(column: int) -> str:
    """Name a column as spreadsheets do: 0 is A, 26 is AA."""
    found = ""
    column += 1
    while column:
        column, rest = divmod(column - 1, 26)
        found = chr(ord("A") + rest) + found
    return found


def _answer(row: Row) -> str:
    return "" if row["failed"] else row["prediction"]


def _json(entries: list[dict[str, Any]]) -> bytes:
    return json.dumps(entries, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def main(
    rows: Annotated[list[Path], typer.Argument(help="Dumps of one run, from all of its processes.")],
    out: Annotated[Path, typer.Option(help="The file for the server: .json, or .xlsx for MMBench.")],
) -> None:
    """Write the answers of a test split for its server."""
    run, found = read_rows(rows[0])
    for path in rows[1:]:
        found += read_rows(path, run)[1]
    typer.echo(f"{len(found)} answers to {run.dataset} -> {write_submission(run.dataset, found, out)}")


if __name__ == "__main__":
    typer.run(main)
