"""Every command line of README and docs: it parses, its files and settings exist, and what can run does run."""

from __future__ import annotations

import ast
import importlib.util
import io
import itertools
import json
import re
import shlex
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from support import load_script

from self1e.cli.main import app, main
from self1e.inference import loading

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("one_thread")


outputs = load_script("fill_outputs")
PAGES = outputs.pages()
FENCES = [fence for page in PAGES for fence in outputs.fences(page)]

SHELL = ("sh", "bash", "console")
PLAIN = {
    ("README.md", "bibtex"): "how to cite the paper",
    ("docs/folders.md", "text"): "two files of queries, read in test_files_of_queries_are_read",
    ("docs/how-to/your-own-data.md", "json"): "annotations, read in test_json_lines_are_read",
    ("docs/service.md", "json"): "answers, shortened; parsed in test_answers_of_the_service_are_json",
}
"""Blocks that are neither code nor commands nor an output: page, language, and what looks after them."""

NOT_RUN = {
    r"make |pip install ": "installs, or is what runs this test",
    r"torchrun |accelerate launch ": "several processes; tests/training/test_distributed.py starts them",
    r"python benchmarks/|python -m self1e\.evaluation\.nano": "minutes, and a quiet machine",
    r"self1e train .*--data (ROOT|DATA|/data)": "needs published data; tests/training/test_train_command.py",
    r"self1e eval .*--data ROOT|self1e calibrate ": "needs published data; tests/evaluation/test_suites.py",
    r"self1e eval (--compare|--tables)": "needs results of before; tests/evaluation/test_compare.py, test_runner.py",
    r"self1e eval scenes/test": "a minute; tests/evaluation/test_runner.py",
    r"self1e figure ": "needs a full model's switches or data; tests/surface/test_figures_command.py, tests/figures",
    r"self1e convert .*(--tokenizer OpenGVLab|--merge)": "needs a download or adapters; tests/cli/test_convert.py",
    r"self1e convert nano .*--to onnx": "half a minute; tests/inference/test_onnx.py",
    r"self1e finetune |self1e merge |self1e (segment|info) .*(my-pictures|runs/mine)": "tests/docs/test_how_to.py",
    r"self1e data (check|show|stats) my-(data|pictures)": "tests/docs/test_how_to.py, tests/data/own",
    r"self1e data prepare .*--root": "needs archives that were downloaded; tests/data/test_prepare.py",
    r"self1e demo --web|self1e serve": "serves until it is stopped; tests/web, tests/serving",
    r"self1e segment .*--engine ray": "needs ray; tests/inference/test_engines.py",
    r"curl |python3 -c |\w+=\$\(": "talks to a running service; tests/serving asks the same paths",
}
"""Command lines in blocks that are checked and not run: what they begin with, and why, or which test runs them."""


@dataclass(frozen=True)
class Line:
    """One command line of a page."""

    place: str
    text: str
    is_block: bool
    """It stands in a block, to be copied; otherwise within a sentence."""


PROGRAMS = ("self1e", "torchrun", "accelerate", "python", "python3", "pytest", "make", "pip", "docker", "curl")


def _commands_of(text: str) -> list[str]:
    """The command lines of a block, continued ones joined; comments are left out."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [re.sub(r"^\$ ", "", line) for line in joined.splitlines()]
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _program(line: str) -> str:
    """What a line starts, after the variables that it sets."""
    words = shlex.split(line, comments=True)
    return next((word for word in words if not re.match(r"^\w+=", word)), "")


def _is_shell(fence: Any) -> bool:
    commands = _commands_of(fence.text)
    known = bool(commands) and _program_or_nothing(commands[0]) in PROGRAMS
    return fence.language in SHELL or (fence.language in ("", "indented") and known)


def _program_or_nothing(line: str) -> str:
    try:
        return _program(line)
    except ValueError:  # quotes of prose
        return ""


def _blocks() -> list[Line]:
    return [
        Line(fence.name, line, is_block=True)
        for fence in FENCES
        if _is_shell(fence)
        for line in (_shown_commands(fence.text) if fence.language == "console" else _commands_of(fence.text))
    ]


def _shown_commands(text: str) -> list[str]:
    """Of a ``console`` block, the lines after a prompt; the others are what was printed."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def _sentences() -> list[Line]:
    found = []
    for page in PAGES:
        prose = re.sub(r"^( *)(```+).*?^\1\2$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose):
            line = " ".join(code.split())
            if re.match(rf"({'|'.join(PROGRAMS)}) [a-z./'-]", line) and "..." not in line:
                found.append(Line(page.relative_to(ROOT).as_posix(), line, is_block=False))
    return found


LINES = sorted({line.text: line for line in [*_sentences(), *_blocks()]}.values(), key=lambda line: line.text)
COPIED = sorted({line.text: line for line in _blocks()}.values(), key=lambda line: line.text)


# --------------------------------------------------------------------------- what a line says is there


def _check_self1e(words: list[str]) -> None:
    """Parse a command line as typer would, without running it; then its recipes, settings, suites and benchmarks."""
    group: Any = typer.main.get_command(app)
    if words in (["--version"], ["--help"]):
        return
    words = words[1:] if words[0] == "--debug" else words
    if words == ["COMMAND"]:
        return
    while True:
        name, *words = words
        assert name in group.commands, f"no command {name}"
        group = group.commands[name]
        if not hasattr(group, "commands"):
            break
    if words in ([], ["--help"], ["-h"]):  # no more than the name of a command
        return
    context = group.make_context(name, list(words))
    given = context.params
    if name == "train" and given["recipe"] not in (None, "RECIPE", "NAME"):
        from self1e.training.recipes import change, find_recipe

        change(find_recipe(given["recipe"]), given["settings"] or [])
    if name == "eval":
        from self1e.evaluation.benchmarks import find_benchmark
        from self1e.evaluation.suites import find_suite

        for suite in given["suite"] or []:
            find_suite(suite)
        for benchmark in given["benchmarks"] or []:
            if benchmark != "x":  # an unknown one lists all
                find_benchmark(benchmark)
    if name == "segment":
        from self1e.inference.export import FORMATS

        assert {each.strip() for each in given["formats"].split(",")} <= set(FORMATS)


def _check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import get_args_parser

    given = get_args_parser().parse_args(words)
    assert given.module
    assert given.training_script == "self1e"
    _check_self1e(given.training_script_args)


def _check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert words[0] == "launch"
    if words == ["launch"]:
        return  # named in a sentence
    given = launch_command_parser().parse_args(words[1:])
    assert given.config_file is None or (ROOT / given.config_file).is_file()
    assert given.module
    assert given.training_script == "self1e"
    _check_self1e(given.training_script_args)


def _check_python(words: list[str]) -> None:
    """A script exists and knows the options; a module is ours, and does too."""
    if words[0] == "-c":
        compile(words[1], "-c", "exec")
        return
    if words[0] == "-m" and words[1] == "lmms_eval":
        return  # not ours; what is after it is checked by tests/evaluation/test_lmms.py
    if words[0] == "-m":
        spec = importlib.util.find_spec(words[1])
        assert spec is not None, f"no module {words[1]}"
        assert spec.origin is not None
        path, options = Path(spec.origin), words[2:]
    else:
        path, options = ROOT / words[0], words[1:]
    assert path.is_file(), f"no script {words[0]}"
    known = _options_of(path)
    for option in options:
        if option.startswith("-"):
            name = option.partition("=")[0]
            assert name in known, f"{path.name} has no option {name}"


def _options_of(path: Path) -> set[str]:
    """Options in the text of a script: what it gives argparse, or the parameters of its functions, for typer."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    names = {each.arg for node in nodes if isinstance(node, ast.arguments) for each in [*node.args, *node.kwonlyargs]}
    written = {text for text in texts if text.startswith("-")} | {f"--{name.replace('_', '-')}" for name in names}
    return written | {f"--no-{option.removeprefix('--')}" for option in written}


def _check_pytest(words: list[str]) -> None:
    paths = [word for word in words if word.startswith("tests")]
    assert paths
    for path in paths:
        assert (ROOT / path.partition("::")[0]).exists(), f"no {path}"
    for option, value in itertools.pairwise(words):
        if option == "-k":
            texts = [(ROOT / path).read_text("utf-8") for path in paths if (ROOT / path).is_file()]
            assert any(re.search(rf"def test_\w*{value}", text) for text in texts), f"no test -k {value}"
        if option == "-m":
            marks = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]["ini_options"]
            assert any(mark.startswith(f"{value}:") for mark in marks["markers"])


def _check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in words:
        if "=" not in target:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"


def _check_pip(words: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert words[0] == "install"
    for word in words[1:]:
        for extra in re.findall(r"\[(.+)\]", word):
            assert set(extra.split(",")) <= set(extras), f"no extra {extra}"


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "self1e": _check_self1e,
    "torchrun": _check_torchrun,
    "accelerate": _check_accelerate,
    "python": _check_python,
    "python3": _check_python,
    "pytest": _check_pytest,
    "make": _check_make,
    "pip": _check_pip,
}
NOT_CHECKED: dict[str, str] = {
    "docker": "not on every machine; the files are checked in tests/serving",
    "curl": "asks a running service; tests/serving asks the same paths",
}
"""Programs whose lines are left alone, and why."""


def check(line: str) -> None:
    """Check a command line without running it; ``AssertionError`` or typer's error if something is not there."""
    if inner := re.match(r"^\w+=\$\((.*)\)$", line):
        line = inner[1]
    words = shlex.split(line, comments=True)
    words = words[next(place for place, word in enumerate(words) if not re.match(r"^\w+=", word)) :]
    words = words[: next((place for place, word in enumerate(words) if word in ("|", "&", "&&", ">")), len(words))]
    if words[0] not in NOT_CHECKED:
        assert words[0] in CHECKS, f"{words[0]}: no check for it; write one, or say in NOT_CHECKED why there is none"
        CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.text)
def test_command_lines_say_what_exists(line):
    check(line.text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('self1e segment photo.jpg -q "it" --tiles 4', "No such option"),
        ("self1e segmnt photo.jpg", "no command"),
        ("self1e segment photo.jpg -q it --format cocoa", ""),
        ("self1e train nano_smok", "nano_smoke"),
        ("self1e train nano --set optim.learning_rat=1", "Unknown setting"),
        ("self1e eval refcoco/vall", "refcoco/val"),
        ("torchrun --nproc-per-node 2 -m self1e train nano --dat X", "No such option"),
        ("python scripts/draw_figure.py", "no script"),
        ("python scripts/draw_figures.py --onyl rfr", "no option --onyl"),
        ("python -m self1e.evaluation.nanno", "no module"),
        ("pytest tests/docs/test_nothing.py", "no tests"),
        ("pytest tests/docs/test_docs.py -k no_such_thing", "no test -k"),
        ("make tset", "no target"),
        ("pip install 'self1e[deom]'", "no extra"),
        ("cargo build", "no check for it"),
    ],
)
def test_a_wrong_command_line_would_be_noticed(line, message):
    with pytest.raises(Exception, match=message or None):
        check(line)


def test_every_block_is_known():
    """A block is Python, commands, an output below its code, a formula, or one of the few that are named above."""
    for fence in FENCES:
        name = fence.page.relative_to(ROOT).as_posix()
        if fence.language == "text" and fence.before == "<!-- output -->":
            continue
        if fence.language == "indented" or _is_shell(fence) or (name, fence.language) in PLAIN:
            continue
        assert fence.language == "python", f"{fence.name}: nothing checks a block of {fence.language!r}"


def test_every_python_block_is_found_by_the_test_that_runs_it():
    """A block that is indented, or marked in another way, would be passed over in silence."""
    for page in PAGES:
        run = [block.code for block in outputs.blocks(page)]
        seen = [fence.text for fence in outputs.fences(page) if fence.language.lower().startswith("py")]
        assert run == seen, page.name
        claimed = page.read_text("utf-8").count("<!-- output -->")
        assert claimed == len([block for block in outputs.blocks(page) if block.output is not None]), page.name


def test_indented_blocks_hold_no_commands_that_are_passed_over():
    for fence in FENCES:
        if fence.language in ("indented", "text", "") and not _is_shell(fence):
            assert not re.search(rf"^(\$ )?({'|'.join(PROGRAMS)}) [a-z-]", fence.text, re.MULTILINE), fence.name


def test_exemptions_are_used():
    """A reason that fits nothing any more is taken out."""
    copied = [_bare(line.text) for line in COPIED]
    for start in NOT_RUN:
        assert any(re.match(start, line) for line in copied), f"NOT_RUN: nothing begins with {start!r}"
    names = {(fence.page.relative_to(ROOT).as_posix(), fence.language) for fence in FENCES}
    assert set(PLAIN) <= names


def _bare(line: str) -> str:
    """A line without the variables that it sets."""
    return re.sub(r"^(\w+=[^\s$]+ )+", "", line)


# --------------------------------------------------------------------------- what runs


@pytest.fixture
def place(tmp_path, monkeypatch, pictures, tiny_model_folder, trained_folder, base_folder):
    """A folder with everything that the pages name; a tiny model is nano, and every other model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "NANO", tiny_model_folder)
    for folder in ("photos/trip", "shots", "path/to"):
        Path(folder).mkdir(parents=True)
    for name in ("photo.jpg", "street.jpg", "photos/one.jpg", "photos/trip/astronaut.jpg", "photos/kitchen.jpg"):
        pictures[0].save(name)
    pictures[1].save("shots/a.png")
    Path("words.txt").write_text("the red one\n# not this\nthe blue one\n")
    Path("classes.txt").write_text("road\ncar\n")
    page = ROOT / "docs" / "folders.md"
    tables = [fence.text for fence in outputs.fences(page) if fence.language == "text" and "image" in fence.text[:12]]
    Path("photos/queries.csv").write_text(tables[0])
    Path("photos/queries.jsonl").write_text(tables[1])
    for name in ("path/to/model", "SRC", "FOLDER"):
        shutil.copytree(tiny_model_folder, name)
    shutil.copytree(trained_folder, "runs/my/checkpoint-2000")
    shutil.copytree(base_folder, "InternVL3-2B")
    return tmp_path


TO_RUN = [line for line in COPIED if not any(re.match(start, _bare(line.text)) for start in NOT_RUN)]


@pytest.mark.parametrize("line", TO_RUN, ids=lambda line: line.text)
def test_commands_run(line, place, monkeypatch, capsys):
    """As they stand in the page, in a folder that has their pictures."""
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    words = shlex.split(line.text, comments=True)
    assert words[0] == "self1e", "run it, or say in NOT_RUN why not"
    with pytest.raises(SystemExit) as end:
        main(words[1:])
    told = capsys.readouterr()
    assert not end.value.code, f"{line.place}: {told.out}{told.err}"
    assert told.out or told.err


def test_files_of_queries_are_read(place):
    from self1e.inference.tables import read_table

    for name in ("photos/queries.csv", "photos/queries.jsonl"):
        assert read_table(name).queries


def test_answers_of_the_service_are_json():
    blocks = [fence for fence in outputs.fences(ROOT / "docs" / "service.md") if fence.language == "json"]
    assert all(isinstance(json.loads(fence.text), dict) for fence in blocks)


def test_json_lines_are_read(place, pictures):
    from self1e.data.own import open_data

    page = ROOT / "docs" / "how-to" / "your-own-data.md"
    (block,) = [fence for fence in outputs.fences(page) if fence.language == "json"]
    records = [json.loads(line) for line in block.text.splitlines()]
    folder = place / "lines"
    for record in records:
        path = folder / record["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures[3].save(path)
    (folder / "train.jsonl").write_text(block.text)
    assert len(open_data(folder)) == len(records)
