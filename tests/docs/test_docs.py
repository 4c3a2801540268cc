"""README, docs and examples: what they show runs, what they link to exists, what they print is true."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from support import load_script

from self1e.inference import loading

ROOT = Path(__file__).parents[2]
FIGURES = {"teaser.png", "dual-perception.png", "rfr.png", "rfa.png"}
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
HAS_NANO = (loading.NANO / "model.safetensors").is_file()
NO_NANO = f"NANO IS MISSING: no weights in {loading.NANO}, so what it prints and draws cannot be checked."


outputs = load_script("fill_outputs")
PAGES = outputs.pages()
BLOCKS = [block for page in PAGES for block in outputs.blocks(page)]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def nano(monkeypatch, request):
    """Nano; a random model takes its place where it is not built yet, and everything else is checked all the same."""
    if not HAS_NANO:
        monkeypatch.setattr(loading, "NANO", request.getfixturevalue("tiny_model_folder"))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_blocks_run(block, nano):
    if block.reason:
        compile(block.code, block.name, "exec")
    else:
        outputs.run(block)


@pytest.mark.skipif(not HAS_NANO, reason=NO_NANO)
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.output is not None], ids=lambda block: block.name)
def test_what_blocks_print_is_what_the_page_says(block):
    printed, page = outputs.run(block), block.output
    # Other processors and numbers of threads add in another order: a mask may differ at its edge.
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", page), "run: python scripts/fill_outputs.py"
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (printed, page)]
    assert numbers[0] == pytest.approx(numbers[1], rel=2e-3, abs=0.011), "run: python scripts/fill_outputs.py"


def test_the_first_screen_shows_code_and_its_output():
    first = outputs.blocks(ROOT / "README.md")[0]
    assert len([line for line in first.code.splitlines() if line]) == 4
    assert first.output


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_are_short(example, nano, monkeypatch, capsys):
    assert len(example.read_text("utf-8").splitlines()) < 40
    monkeypatch.setattr(sys, "argv", [str(example)])
    with outputs.workplace():
        runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out


def test_the_command_of_an_example_names_its_file():
    for example in EXAMPLES:
        assert f"python examples/{example.name}" in example.read_text("utf-8")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links, as on GitHub."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target.parent == ROOT / "docs" / "assets" and target.name in FIGURES:
            continue  # the next test
        assert target.exists(), f"{page.name} links to {link}"
        assert target.is_relative_to(ROOT)
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page.name} links to {link}"


@pytest.mark.skipif(not HAS_NANO, reason=NO_NANO)
def test_every_figure_is_drawn_and_shown():
    text = "".join(page.read_text("utf-8") for page in PAGES)
    for name in FIGURES:
        assert (ROOT / "docs" / "assets" / name).is_file(), "run: make figures"
        assert f"assets/{name})" in text
