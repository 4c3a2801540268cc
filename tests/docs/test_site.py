"""The docs site: every page has its place, the reference is complete, links lead somewhere, all of it is offline."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import self1e

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference" / "python.md"


@pytest.fixture(scope="module")
def builder(load_script):
    return load_script("build_docs")


@pytest.fixture(scope="module")
def filled(builder, tmp_path_factory):
    """The pages as MkDocs reads them."""
    folder = tmp_path_factory.mktemp("docs")
    builder.fill(folder)
    return folder


# --------------------------------------------------------------------------- before the site is built


def test_every_page_has_its_place_in_the_navigation():
    shown = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(shown) == sorted(written), "mkdocs.yml: nav names every page of docs/, once"


def test_the_python_reference_is_everything_that_is_public():
    named = re.findall(r"^::: (\S+)$", REFERENCE.read_text("utf-8"), re.MULTILINE)
    assert len(named) == len(set(named))
    public = {name.removeprefix("self1e.") for name in named if name.count(".") == 1}
    assert public == set(self1e.__all__) - {"__version__"}
    for name in named:
        module, _, last = name.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(module), last)), f"{name} has no docstring"


def test_the_command_line_reference_has_every_option(builder, filled):
    page = (filled / "reference" / "command-line.md").read_text("utf-8")
    commands = dict(builder.commands())
    assert {"segment", "data check", "figure stages"} <= set(commands)
    for path, command in commands.items():
        chapter = page.split(f"\n## self1e {path}\n")[1].split("\n## ")[0]
        assert (command.help or "").split(".")[0].split("\n")[0] in chapter, path
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else []:
                assert f">{option}</code>" in chapter, f"{path} {option}"


def test_every_command_is_told_of_outside_of_the_reference(builder):
    """A command that stands in the generated page alone is not documented."""
    pages = [ROOT / "README.md", *(path for path in DOCS.rglob("*.md") if path.name != "log.md")]
    text = "\n".join(path.read_text("utf-8") for path in pages)
    untold = [path for path, _ in builder.commands() if not re.search(rf"self1e {path}\b", text)]
    assert [path for path in untold if path != "version"] == []  # `self1e --version` says the same
    assert "`self1e --version`" in text


def test_the_recipes_page_has_every_recipe_and_setting(filled):
    from self1e.training.recipes import RECIPES, find_recipe, flatten

    page = (filled / "reference" / "recipes.md").read_text("utf-8")
    for name in RECIPES:
        assert re.search(rf"^{re.escape(name)} ", page, re.MULTILINE), name
    for recipe in ("self1e-internvl3-2b", "nano"):
        for setting in flatten(find_recipe(recipe)):
            assert f">{setting}</code> |" in page, setting


def test_an_option_in_the_pages_exists(builder):
    """``--xyz`` in a sentence is an option of a command, of a script, or of a program that the page starts."""
    known = {option for _, command in builder.commands() for each in command.params for option in each.opts}
    known |= {"--help", "--debug", "--version", "--set"}
    known |= {"--nproc-per-node", "--nnodes", "--config_file", "--num_processes"}  # torchrun, accelerate
    for script in [*ROOT.glob("scripts/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("src/self1e/**/*.py")]:
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text("utf-8")))
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        if page.name == "log.md":
            continue  # history: it names options as they were
        for code in re.findall(r"(?<!`)`(--[^`]+)`(?!`)", page.read_text("utf-8")):
            option = re.split(r"[ =]", code)[0]
            assert option in known, f"{page.relative_to(ROOT)}: {code}"


def test_a_file_in_the_pages_exists():
    """Paths of the repository in code spelling; those in links are checked where links are."""
    folders = ("src/", "tests/", "scripts/", "benchmarks/", "examples/", "docs/", "self1e/")
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]:
        if page.name == "log.md":
            continue
        for code in re.findall(r"(?<!`)`([^`\s]+)`(?!`)", page.read_text("utf-8")):
            if code.startswith(folders) and not set(code) & set("*<>{}"):
                path = code.partition("::")[0]
                assert (ROOT / path).exists() or (ROOT / "src" / path).exists(), f"{page.relative_to(ROOT)}: {code}"


def test_a_name_of_the_package_in_the_pages_exists():
    """``self1e.data.own`` and the like in code spelling, each resolved part by part."""
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for code in re.findall(r"(?<!`)`(self1e(?:\.\w+)+)", page.read_text("utf-8")):
            assert _resolves(code), f"{page.relative_to(ROOT)}: {code}"


def _resolves(name: str) -> bool:
    found = self1e
    for index, part in enumerate(name.split(".")[1:], start=2):
        if not hasattr(found, part):
            if importlib.util.find_spec(".".join(name.split(".")[:index])) is None:
                return False
            importlib.import_module(".".join(name.split(".")[:index]))
        found = getattr(found, part)
    return True


def test_links_of_the_filled_pages_stay_inside(filled):
    """Files of the repository that pages link to are in the site; nothing leads out of it."""
    links = 0
    for page in filled.rglob("*.md"):
        if "source" in page.relative_to(filled).parts:
            continue
        text = re.sub(r"^( *)(```+).*?^\1\2$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if not link.startswith(("https://", "http://", "#")):
                target = (page.parent / link.partition("#")[0]).resolve()
                assert target.is_relative_to(filled), f"{page.name}: {link}"
                assert target.is_file(), f"{page.name}: {link}"
                links += 1
    assert links > 50


def test_only_one_spelling_of_links_and_pictures():
    """The tests of links read this one; another would be passed over."""
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        prose = re.sub(r"^( *)(```+).*?^\1\2$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"`[^`]*`", "", prose)
        assert not re.search(r"<(img|a|script|iframe|link)\b", prose), page.name
        assert not re.search(r"^\[[^\]]+\]: ", prose, re.MULTILINE), page.name


# --------------------------------------------------------------------------- the site


class _Page(HTMLParser):
    """What a built page loads, where it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.anchors.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        else:
            self.loads += [given[name] for name in ("src", "href", "srcset", "poster", "data") if name in given]


@pytest.fixture(scope="module")
def site():
    for name in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(name) is None:
            pytest.skip("DOCS TOOLS MISSING: pip install 'self1e[docs]'")
    done = subprocess.run([sys.executable, "scripts/build_docs.py"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {path: _Page(path) for path in sorted((ROOT / "site").rglob("*.html"))}


@pytest.mark.slow
def test_the_site_loads_nothing_from_outside(site):
    outside = re.compile(r"^\s*(?:[a-z]+:)?//", re.IGNORECASE)
    for path, page in site.items():
        assert [each for each in page.loads if outside.match(each)] == [], path.name
        assert "@import" not in path.read_text("utf-8") or "source" in path.parts
    for path in (ROOT / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", path.read_text("utf-8")), path.name


@pytest.mark.slow
def test_links_and_anchors_of_the_site_exist(site):
    for path, page in site.items():
        for link in page.links:
            name, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", name) or path.name == "404.html":
                continue
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.relative_to(ROOT)}: {link}"
            if anchor and target in site:
                assert anchor in site[target].anchors, f"{path.relative_to(ROOT)}: {link}"


@pytest.mark.slow
def test_markdown_became_html(site):
    """A list or table without an empty line above stays text; a reference that is not found stays a colon."""
    for path in site:
        if "source" not in path.relative_to(ROOT / "site").parts:
            text = re.sub(r"<(pre|script|code)\b.*?</\1>", "", path.read_text("utf-8"), flags=re.DOTALL)
            assert not re.search(r"<p>(?:[^<]|<(?!/p>))*?\n(\* |- |\d\. |\|)", text), path.name
            assert ":::" not in text, path.name
            assert "<!-- generated" not in text, path.name


@pytest.mark.slow
def test_the_python_reference_shows_signatures(site):
    page = ROOT / "site" / "reference" / "python.html"
    anchors = site[page].anchors
    assert {"self1e.load", "self1e.Self1E.segment", "self1e.Segmentation.overlay", "self1e.PictureError"} <= anchors
    assert "queries" in page.read_text("utf-8")


@pytest.fixture(scope="module")
def browser() -> str:
    """A Chromium that is installed."""
    for path in ("/usr/bin/chromium", "/usr/bin/google-chrome"):
        if Path(path).exists():
            return path
    pytest.skip("CHROMIUM MISSING: no /usr/bin/chromium")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index", "reference/python"])
def test_the_site_is_searched_from_the_disk(site, browser, tmp_path, name):
    address = f"{(ROOT / 'site' / f'{name}.html').as_uri()}?q=polygons"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command = [browser, *flags, "--virtual-time-budget=60000", "--dump-dom", address]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=500).stdout
    assert re.search(r"md-search-result__meta\">\s*\d+ matching document", shown)
    found = {unquote(one) for one in re.findall(r'href="file://([^"#?]+)[^"]*" class="md-search-result__link', shown)}
    assert found
    assert all("polygon" in Path(one).read_text("utf-8").lower() for one in found)


@pytest.mark.slow
def test_a_browser_asks_for_nothing_outside(site, browser):
    """Chromium opens the pages from the disk; every request is a file."""
    playwright = pytest.importorskip("playwright.sync_api", reason="CHROMIUM MISSING: pip install playwright")
    asked: list[str] = []
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.set_default_timeout(600_000)  # milliseconds; slow machines are slow
        page.on("request", lambda request: asked.append(request.url))
        for name in ("index", "quickstart", "reference/python", "reference/command-line", "results/nano"):
            page.goto((ROOT / "site" / f"{name}.html").as_uri())
            assert page.locator("h1").count() == 1
        chromium.close()
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
