"""Build the docs site, offline: pages of ``docs/``, the reference made from the code, and the files that pages link to.

    python scripts/build_docs.py            # build/docs, then site/ with MkDocs
    python scripts/build_docs.py --only-pages

A page of ``docs/`` may hold ``<!-- generated: NAME -->``; what stands there in the site is made here, from the command
line and the recipes. The Python reference is made by mkdocstrings. A link that leaves ``docs/`` leads to a copy of the
file in the site, so that nothing depends on an address.
"""

from __future__ import annotations

import argparse
import ast
import html
import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ROOT / "build" / "docs"
CONFIG = ROOT / "mkdocs.yml"

_FENCE = re.compile(r"^( *)(`{3,})[^\n]*\n.*?^\1\2`*$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?!https?://|mailto:|#)(?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
_GENERATED = re.compile(r"^<!-- generated: (?P<name>[\w-]+) -->$", re.MULTILINE)
_NOTE = re.compile(r"^<!-- (?:not run: .*?|output) -->$", re.MULTILINE)
_LANGUAGES = {".py": "python", ".md": "markdown", ".json": "json", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}


# --------------------------------------------------------------------------- pages


def fill(target: Path = PAGES, docs: Path = DOCS) -> list[Path]:
    """Write the pages that MkDocs reads, and return the files of the repository that they link to.

    Args:
        target: Folder, made anew.
        docs: Folder of the pages as they are written.
    """
    shutil.rmtree(target, ignore_errors=True)
    linked: set[Path] = set()
    for path in sorted(docs.rglob("*")):
        place = target / path.relative_to(docs)
        if path.is_dir():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            text = _GENERATED.sub(lambda found: GENERATED[found["name"]](), path.read_text("utf-8"))
            place.write_text(_rewrite(_NOTE.sub("", text), path, docs, linked), "utf-8")
        else:
            shutil.copy(path, place)
    for path in sorted(linked):
        _show_file(path, target)
    _draw_icon(target / "assets" / "favicon.png")
    return sorted(linked)


def _rewrite(text: str, page: Path, docs: Path, linked: set[Path]) -> str:
    """Point links that leave the docs to the copies in the site; blocks of code stay as they are."""
    up = "../" * len(page.relative_to(docs).parent.parts)

    def lead(found: re.Match[str]) -> str:
        target = (page.parent / found["path"]).resolve()
        if target.is_relative_to(docs):
            return found[0]
        linked.add(target)
        return up + _place_of(target).as_posix()

    pieces, end = [], 0
    for fence in _FENCE.finditer(text):
        pieces += [_LINK.sub(lead, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*pieces, _LINK.sub(lead, text[end:])])


def _place_of(path: Path) -> Path:
    """Where a file of the repository is in the site, as a path below the pages."""
    inside = Path("source") / path.relative_to(ROOT)
    if path.is_dir():
        return inside / "index.md"
    return inside if path.suffix in (".jpg", ".png") else inside.with_name(f"{inside.name}.md")


def _show_file(path: Path, target: Path) -> None:
    """Write a page with the text of a file, or the names in a folder; copy a picture."""
    place = target / _place_of(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".jpg", ".png"):
        shutil.copy(path, place)
        return
    if path.is_dir():
        names = (f"{each.name}/" if each.is_dir() else each.name for each in sorted(path.iterdir()))
        text, language = "\n".join(name for name in names if not name.startswith(("_", "."))), "text"
    else:
        text, language = path.read_text("utf-8"), _LANGUAGES.get(path.suffix, "text")
    fence = "`" * (max((len(run) for run in re.findall(r"`{3,}", text)), default=2) + 1)
    title = path.relative_to(ROOT).as_posix()
    head = f"---\ntitle: {path.name}\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n\n# `{title}`\n\n"
    place.write_text(f"{head}{fence}{language}\n{text.rstrip()}\n{fence}\n", "utf-8")


def _draw_icon(place: Path) -> None:
    """Draw the site's icon: a mask in its box."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (128, 128))
    drawing = ImageDraw.Draw(image)
    drawing.rounded_rectangle((4, 4, 123, 123), 24, outline=(96, 110, 130, 255), width=10)
    drawing.ellipse((32, 32, 95, 95), fill=(230, 0, 140, 255))
    place.parent.mkdir(parents=True, exist_ok=True)
    image.save(place)


# --------------------------------------------------------------------------- command line


def command_line() -> str:
    """Every command with its arguments and options, from the application itself."""
    return "\n".join(_command(path, command) for path, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and its path, ``data check``; groups are gone through."""
    import typer

    from self1e.cli.main import app

    def walk(group: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{path}{name} ")
            else:
                yield path + name, command

    yield from walk(typer.main.get_command(app), "")


def _command(path: str, command: Any) -> str:
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    options = [each for each in shown if each.param_type_name == "option"]
    words = [f"self1e {path}", *(_argument(each) for each in arguments), *(["[OPTIONS]"] if options else [])]
    parts = [f"## self1e {path}", f"```text\n{' '.join(words)}\n```", inspect.cleandoc(command.help or "")]
    if arguments:
        rows = [f"| {_code(_argument(each))} | {_cell(each.help or '')} |" for each in arguments]
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    if options:
        rows = [f"| {_names(each)} | {_default(each)} | {_cell(each.help or '')} |" for each in options]
        parts.append("\n".join(["| option | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    name = name if parameter.nargs == 1 else f"{name} ..."
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    names = ", ".join(_code(name) for name in sorted(parameter.opts, key=len, reverse=True))
    return f"{names} (needed)" if parameter.required else names


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required or value is None or value is False or value == [] or callable(value):
        return ""
    return _code(str(value))


def _code(text: str) -> str:
    """Make code of a cell that is not broken into lines; between backticks an escaped bar would show its backslash."""
    return f'<code class="whole">{html.escape(text).replace("|", "&#124;")}</code>'


def _cell(text: str) -> str:
    """Make one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


# --------------------------------------------------------------------------- recipes


def recipes() -> str:
    """Every recipe, as ``self1e train --list`` shows them."""
    from self1e.cli.train import list_recipes

    return f"```text\n{list_recipes()}\n```"


def settings() -> str:
    """Every setting of a recipe, group by group, with its default."""
    from self1e.training.recipes import Recipe

    hints = get_type_hints(Recipe)
    groups = [each for each in fields(Recipe) if is_dataclass(hints[each.name])]
    own = [each for each in fields(Recipe) if each not in groups]
    parts = [f"### Of the run\n\n{_table(Recipe, own, '')}"]
    for group in groups:
        kind = hints[group.name]
        words = inspect.cleandoc(kind.__doc__ or "")
        parts.append(f"### {group.name}\n\n{_plain(words)}\n\n{_table(kind, list(fields(kind)), f'{group.name}.')}")
    return "\n\n".join(parts)


def nano_settings() -> str:
    """Every setting of the recipes of nano, which have their own."""
    from self1e.training.recipes import TrainRecipe

    return _table(TrainRecipe, list(fields(TrainRecipe)), "")


def _table(kind: type, chosen: list[Field[Any]], prefix: str) -> str:
    notes, hints = _notes(kind), get_type_hints(kind)
    rows = [
        f"| {_code(prefix + each.name)} | {_cell(_kind(hints[each.name]))} | {_field_default(each)} | "
        f"{_cell(_plain(notes.get(each.name, '')))} |"
        for each in chosen
    ]
    return "\n".join(["| setting | takes | default | |", "|---|---|---|---|", *rows])


def _plain(words: str) -> str:
    """Turn docstring spelling into that of pages."""
    return words.replace("``", "`")


def _notes(kind: type) -> dict[str, str]:
    """The docstring below each field, by the field's name."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for one, following in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(words))):
                    found[one.target.id] = words
    return found


def _kind(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(str(value) for value in get_args(hint))
    if hint is type(None):
        return "none"
    if get_origin(hint) is tuple:
        return "names"
    if get_args(hint):
        return ", ".join(_kind(one) for one in get_args(hint))
    return {bool: "true, false", int: "whole number", float: "number", str: "words"}.get(hint, hint.__name__)


def _field_default(each: Field[Any]) -> str:
    if each.default is not MISSING:
        value = each.default
    elif each.default_factory is not MISSING:
        value = each.default_factory()
    else:
        return "the recipe's"
    if value is None or isinstance(value, bool):
        return _code(str(value).lower())
    if isinstance(value, tuple | list):
        return _code(",".join(map(str, value))) if value else ""
    return _code(str(value)) if value != "" else ""


GENERATED: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "recipes": recipes,
    "settings": settings,
    "nano-settings": nano_settings,
}


# --------------------------------------------------------------------------- the site


def build() -> None:
    """Make the site from the filled pages; leaves with its status if that fails."""
    command = [sys.executable, "-m", "mkdocs", "build", "--clean", "--strict", "--quiet", "-f", str(CONFIG)]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)
    _write_index(ROOT / "site" / "search")


def _write_index(folder: Path) -> None:
    """Write the search's index as a script too: a page on a disk may read no other file (docs/assets/offline.js)."""
    index = (folder / "search_index.json").read_text("utf-8")
    (folder / "search_index.js").write_text(f"var __index = {index}", "utf-8")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Build the docs site into site/, offline.")
    parser.add_argument("--only-pages", action="store_true", help="fill build/docs and stop")
    given = parser.parse_args(arguments)
    fill()
    if not given.only_pages:
        build()
        print(f"Open {ROOT / 'site' / 'index.html'}")


if __name__ == "__main__":
    main()
