"""The report in a real, headless Chromium: filters, search, enlarging, keys, narrow and dark, nothing from outside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from self1e.evaluation import runner
from self1e.evaluation.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDE, NARROW = (1280, 900), (420, 800)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, find_shared: Callable[[str, str], Path]) -> Path:
    """Drawn scenes with words, questions and classes, and photographs of clothing, by the model in the package."""
    import self1e

    data = find_shared("SELF1E_TRAIN_DATA", "data/2_train")
    model = self1e.load("nano", device="cpu")
    out = tmp_path_factory.mktemp("report")
    names = ("scenes/test", "scenes-questions/test", "scenes-classes/test", "ccp/val")
    for job in runner.plan(model, names, [data], out, limit=3, save_masks=True):
        runner.evaluate(job, model)
    return write_report(out, [data])[0]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="BROWSER MISSING: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("BROWSER MISSING: no chromium in PATH; the report is not tested in one.")
    with api.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def show(browser: Any, report: Path) -> Iterator[Callable[..., Any]]:
    """Open the report; afterwards nothing may have failed, nor been asked for."""
    contexts: list[Any] = []
    problems: list[str] = []

    def look(size: tuple[int, int] = WIDE, scheme: Any = "light") -> Any:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
        page.on("request", lambda asked: problems.append(asked.url) if asked.url.startswith("http") else None)
        page.goto(report.as_uri())
        return page

    yield look
    for context in contexts:
        context.close()
    assert problems == []


def shown(page: Any) -> int:
    return page.locator(".case:visible").count()


def test_filters_and_search_show_what_they_say(show):
    page = show()
    every = shown(page)
    assert every == page.locator(".case").count() > 20
    for name in ("run", "pick", "size", "length", "tag"):
        select = page.locator(f"select[name={name}]")
        values = [value for value in select.locator("option").evaluate_all("all => all.map(o => o.value)") if value]
        counts = []
        for value in values:
            select.select_option(value)
            counts.append(shown(page))
            assert page.locator("#count").inner_text() == f"{counts[-1]} of {every} samples shown here"
        assert 0 < max(counts) < every  # each filter takes something away
        assert sum(counts) >= every or name in ("size", "length")  # and loses nothing
        page.locator("#reset").click()
        assert shown(page) == every
    page.get_by_label("Search in the words").fill("THE dress")
    found = page.locator(".case:visible h3 span").all_inner_texts()
    assert found
    assert all("dress" in words for words in found)
    page.get_by_label("Search in the words").fill("no such words")
    assert shown(page) == 0
    assert page.locator("#none").is_visible()


def test_a_sample_is_enlarged_and_keys_go_on(show):
    page = show()
    page.locator("select[name=run]").select_option("scenes/test, tf")
    every = shown(page)
    page.locator(".case:visible button").first.click()
    dialog = page.locator("dialog")
    first = dialog.locator("h3 span").inner_text()
    assert dialog.locator(".pic").first.evaluate("one => getComputedStyle(one).backgroundImage").startswith("url(")
    assert dialog.locator("img").first.evaluate("one => one.naturalWidth") > 0
    seen = [first]
    for _ in range(every - 1):
        page.keyboard.press("ArrowRight")
        seen.append(dialog.locator("p").first.inner_text())
    page.keyboard.press("ArrowRight")  # round
    assert dialog.locator("h3 span").inner_text() == first
    assert len(set(seen)) == every
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    focused = page.evaluate("document.activeElement.closest('.case') !== null")
    assert focused  # where it was before


def test_it_can_be_used_by_keyboard_alone(show):
    page = show()
    page.locator(".case:visible button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "BUTTON"


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_runs_over_the_edge_and_words_stand_out(show, size, scheme):
    page = show(size, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for fold in page.locator("details").all():
        fold.evaluate("one => { one.open = true }")
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    for place in ("body", ".faint", ".case p", "figcaption", "td small", ".filters label", "summary", "nav a"):
        assert contrast(page, place) >= 4.5, place


def contrast(page: Any, place: str) -> float:
    """Of words to what is behind them, by WCAG's formula."""
    found = page.locator(place).first.evaluate(
        """one => {
            const ink = getComputedStyle(one).color;
            let behind = one;
            const clear = (c) => c === "transparent" || c.endsWith(", 0)");
            const paper = () => getComputedStyle(behind).backgroundColor;
            while (behind.parentElement && clear(paper())) behind = behind.parentElement;
            return [ink, paper()].map((c) => c.match(/[\\d.]+/g).slice(0, 3).map(Number));
        }"""
    )
    ink, paper = (sum(w * linear(v / 255) for w, v in zip((0.2126, 0.7152, 0.0722), one, strict=True)) for one in found)
    return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05)


def linear(value: float) -> float:
    return value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4
