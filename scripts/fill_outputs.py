"""Run the Python blocks of README and docs, and write what they print where the text says so.

    python scripts/fill_outputs.py          # with nano in place; tests/docs checks that nothing changed since

A Python block that is followed by ``<!-- output -->`` and a ``text`` block has its output there. A block after
``<!-- not run: REASON -->`` is only compiled.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ASTRONAUT = Path("src") / "self1e" / "assets" / "astronaut.jpg"

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n)?"
    r"^```python\n(?P<code>.*?)^```$"
    r"(?:\n<!-- output -->\n```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One Python block of a page."""

    page: Path
    line: int
    code: str
    reason: str | None
    """Why it is not run."""
    output: str | None
    """What the page says that it prints."""
    span: tuple[int, int]
    """Where that stands in the page."""

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def pages() -> list[Path]:
    """Every page that a reader may open."""
    return [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(page: Path) -> list[Block]:
    """The Python blocks of a page."""
    text = page.read_text("utf-8")
    return [
        Block(
            page,
            text[: found.start("code")].count("\n"),
            found["code"],
            found["reason"],
            found["output"],
            found.span("output"),
        )
        for found in _BLOCK.finditer(text)
    ]


@dataclass(frozen=True)
class Fence:
    """Any block of code of a page: between fences, or indented by four spaces below an empty line."""

    page: Path
    line: int
    language: str
    """What follows the opening fence; "indented" if there is none."""
    text: str
    before: str
    """The line above it, which may say what the block is."""

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"


def fences(page: Path) -> list[Fence]:
    """Every block of code of a page, however it is marked.

    Raises:
        ValueError: A fence is not closed.
    """
    lines = page.read_text("utf-8").splitlines()
    found = []
    number = 0
    while number < len(lines):
        start, line = number, lines[number]
        above = lines[start - 1] if start else ""
        opening = re.match(r"( *)(`{3,}|~{3,})(.*)$", line)
        number += 1
        if opening:
            indent, mark = len(opening[1]), opening[2]
            while number < len(lines) and lines[number].strip() != mark:
                number += 1
            if number == len(lines):
                raise ValueError(f"{page.name}:{start + 1}: the fence is not closed")
            text = "".join(f"{each[indent:]}\n" for each in lines[start + 1 : number])
            found.append(Fence(page, start + 1, opening[3].strip(), text, above))
            number += 1
        elif line.startswith("    ") and not above.strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            text = "".join(f"{each[4:]}\n" for each in lines[start:number])
            found.append(Fence(page, start + 1, "indented", text.rstrip() + "\n", above))
    return found


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Go to an empty folder that has the picture where a clone has it: examples write files."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / ASTRONAUT).parent.mkdir(parents=True)
        shutil.copy(ROOT / ASTRONAUT, folder / ASTRONAUT)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def run(block: Block) -> str:
    """Run a block by itself and return what it prints."""
    printed = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    with workplace(), contextlib.redirect_stdout(printed):
        exec(compile(block.code, block.name, "exec"), names)
    return printed.getvalue()


def main() -> None:
    """Fill in every output."""
    for page in pages():
        text = page.read_text("utf-8")
        for block in reversed(blocks(page)):  # from the end, so that the places before stay right
            if block.output is not None:
                start, end = block.span
                text = text[:start] + run(block) + text[end:]
                print(f"{block.name}: filled in")
        page.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
