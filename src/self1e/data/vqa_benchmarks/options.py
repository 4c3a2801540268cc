"""MMBench: questions with lettered options, in one table of tabs with pictures inside.

``data/mmbench/mmbench_{dev_20230712, dev_cn_20231003, test_en_20231003, test_cn_20231003}.tsv``::

    index  question  hint  A  B  C  D  answer  category  image (base64)  source  l2-category  comment  split

Quirks: a row of index ``1_000_000 k + i`` is question ``i`` with its options rotated; the ``image`` of a row may be
the index of the row that holds it; empty cells (and ``nan``) are no options; test tables have no ``answer``.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

from self1e.data.vqa_benchmarks.asked import Asked, find_home
from self1e.errors import DatasetError

ENGLISH_PROMPT = "Answer with the option's letter from the given choices directly."
CHINESE_PROMPT = "请直接回答选项字母。"
LETTERS = "ABCDE"
_ROTATION = 1_000_000
_LARGEST_CELL = 2**30
_LONGEST_INDEX = 16


def read_mmbench(root: str | Path, table: str, *, chinese: bool = False) -> list[Asked]:
    """Read every row of a table.

    Args:
        root: The data sets' folder.
        table: Its name without ending.
        chinese: Ask for the letter in Chinese.

    Raises:
        DatasetError: The table is missing or malformed.
    """
    path = find_home(root, "mmbench", f"{table}.tsv") / f"{table}.tsv"
    rows = list(read_table(path))
    pictures = {row["index"]: row["image"] for row in rows if len(row["image"]) > _LONGEST_INDEX}
    return [_asked(path, row, pictures, chinese) for row in rows]


def read_table(path: Path) -> Iterator[dict[str, str]]:
    """Read the rows of a table, every cell as text, empty ones as ``""``.

    Raises:
        DatasetError: Columns are missing, or there is no row.
    """
    before = csv.field_size_limit(_LARGEST_CELL)  # pictures are longer than Python's usual limit
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            missing = {"index", "question", "A", "B", "image"} - set(reader.fieldnames or ())
            if missing:
                raise DatasetError(
                    f"{path} has no column {', '.join(sorted(missing))}; expected MMBench's table with pictures "
                    "(index, question, hint, A to D, answer, category, image, l2-category)."
                )
            rows = [{key: _cell(value) for key, value in row.items() if key} for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read as a table ({error}); download it anew.") from error
    finally:
        csv.field_size_limit(before)
    if not rows:
        raise DatasetError(f"{path} holds no question; expected MMBench's table.")
    yield from rows


def _cell(value: str | None) -> str:
    return "" if value is None or value == "nan" else value


def ask(question: str, hint: str, options: dict[str, str], *, chinese: bool = False) -> str:
    """Write the whole question as InternVL does: hint, question, one line per option, the request for a letter."""
    lines = [hint] if hint else []
    lines += [question, *(f"{letter}. {text}" for letter, text in options.items())]
    return "\n".join([*lines, CHINESE_PROMPT if chinese else ENGLISH_PROMPT])


def _asked(path: Path, row: dict[str, str], pictures: dict[str, str], chinese: bool) -> Asked:
    index = row["index"]
    if not index.isdecimal():
        raise DatasetError(f"{path}: a row has the index {index!r}, expected a whole number.")
    options = {letter: row[letter] for letter in LETTERS if row.get(letter)}
    holder = row["image"] if row["image"] in pictures else index
    if holder not in pictures:
        holder = str(int(index) % _ROTATION)
    if holder not in pictures:
        raise DatasetError(f"{path}: row {index} has no picture, and neither has the row that it is a rotation of.")
    try:
        picture = base64.b64decode(pictures[holder], validate=True)
    except (binascii.Error, ValueError) as error:
        raise DatasetError(f"{path}: the picture of row {index} is no base64 ({error}); download it anew.") from error
    truth = None
    if row.get("answer"):
        categories = {"category": row.get("category", ""), "l2_category": row.get("l2-category", "")}
        # Questions about one picture each hold a copy of it.
        group = hashlib.sha256(picture).hexdigest()[:12]
        truth = {"answer": row["answer"], "options": options, "group": group, **categories}
    return Asked(
        id=index,
        prompt=ask(row["question"], row.get("hint", ""), options, chinese=chinese),
        picture=picture,
        picture_id=holder,
        truth=truth,
        submitted={key: value for key, value in row.items() if key not in ("image", "answer")},
    )
