"""The page in a real, headless Chromium: upload, two queries, threshold, layers, chat, download, a bad picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from self1e.web.examples import PORTRAIT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def shots(load_script: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'self1e[demo]'")
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("BROWSER MISSING: no chromium in PATH; the page is not tested in one.")
    import self1e

    script = load_script("draw_screenshots")
    with script.serving(self1e.load("nano", device="cpu")) as address, script.browsing(CHROMIUM) as browser:
        yield script.Shots(browser, address, tmp_path_factory.mktemp("shots"))


@pytest.fixture
def page(shots: Any) -> Iterator[Any]:
    page = shots.open((1280, 900), is_dark=False)
    yield page
    page.context.close()
    assert shots.outside == set()  # nobody outside this machine was asked for anything
    assert shots.problems == []


def upload(page: Any, path: Path) -> None:
    page.locator("#picture input[type=file]").first.set_input_files(path)


def source_of(page: Any, place: str) -> str:
    return page.locator(f"{place} img").first.get_attribute("src")


def test_upload_two_queries_threshold_layers_and_download(page, tmp_path):
    upload(page, PORTRAIT)
    page.locator("#about", has_text="512 x 512 pixels").wait_for()
    page.get_by_label("What to find").fill("the person\nthe hair")
    page.get_by_label("What to find").press("Shift+Enter")
    page.locator("#scores table").wait_for()
    assert page.locator("#scores tbody tr").count() == 2
    assert "%" in page.locator("#scores").inner_text()
    page.locator("#layers input").nth(1).wait_for(state="attached")  # drawn after the table, now and then
    assert page.locator("#layers input").count() == 2
    assert "the person" in page.locator("#result img").first.get_attribute("alt")

    before = source_of(page, "#result")
    page.locator("#threshold input[type=number]").fill("6")
    page.locator("#threshold input[type=number]").press("Tab")
    page.locator("#scores", has_text="not there").wait_for()
    assert source_of(page, "#result") != before
    page.locator("#threshold input[type=number]").fill("0")
    page.locator("#threshold input[type=number]").press("Tab")
    page.wait_for_function("!document.querySelector('#scores').innerText.includes('not there')")

    before = source_of(page, "#result")
    page.locator("#layers input").first.focus()
    page.keyboard.press("Space")  # by keyboard
    page.wait_for_function("before => document.querySelector('#result img').src !== before", arg=before)

    page.locator("button.label-wrap", has_text="Download").click()
    page.locator("#make").click()
    page.locator("#find-status", has_text="astronaut.zip is ready").wait_for()
    with page.expect_download() as told:
        page.locator("#file a[download]").first.click()
    told.value.save_as(tmp_path / "astronaut.zip")
    assert (tmp_path / "astronaut.zip").read_bytes()[:2] == b"PK"


def test_a_bad_picture_is_a_message_and_the_page_goes_on(page, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"this is no picture")
    upload(page, bad)
    page.locator("#about [role=alert]", has_text="bad.png").wait_for()
    page.get_by_label("What to find").fill("the person")
    page.locator("#find-go").click()
    page.locator("#find-status [role=alert]", has_text="bad.png").wait_for()
    assert "Traceback" not in page.content()


def test_chat_streams_words_and_shows_masks(page, load_script):
    script = load_script("draw_screenshots")
    script.choose_example(page)
    script.chat(page)
    assert page.locator("#talk img").count() >= 1
    page.get_by_label("words only").check()
    page.get_by_role("textbox", name="Message").fill("What is in the picture?")
    page.get_by_role("textbox", name="Message").press("Enter")
    page.locator("#chat-status", has_text="You asked for words only").wait_for()


def test_the_bin_ends_the_conversation_too(page, load_script):
    script = load_script("draw_screenshots")
    script.choose_example(page)
    script.chat(page)
    page.locator("#talk button[aria-label*='lear']").click()
    page.wait_for_function("!document.querySelector('#talk .bot')")
    page.locator("#talk-make").click()
    page.locator("#chat-status", has_text="There is no conversation yet").wait_for()


def test_options_of_the_chat_are_folded_away_and_switched_on_when_they_count(page, load_script):
    script = load_script("draw_screenshots")
    script.choose_example(page)
    page.get_by_role("tab", name="Chat").click()
    seed, adapter = page.locator("#seed input"), page.locator("#adapter input").first
    assert not seed.is_visible()
    page.locator("#chat-options button.label-wrap").click()
    seed.wait_for()
    assert seed.is_disabled()
    page.locator("#adapter", has_text="--base FOLDER").wait_for()
    page.get_by_label("words only").check()
    page.locator("#temperature input[type=number]").fill("1.5")
    page.locator("#temperature input[type=number]").press("Tab")
    page.wait_for_function("!document.querySelector('#seed input').disabled")
    assert adapter.is_disabled()  # nano has no base
    seed.fill("7")
    seed.press("Tab")
    said = []
    for _ in range(2):
        page.get_by_role("textbox", name="Message").fill("What is in the picture?")
        page.locator("#send").click()
        page.locator("#chat-status", has_text="You asked for words only").wait_for()
        said.append(page.locator("#talk .bot").all_inner_texts())
        page.locator("#new").click()
        page.wait_for_function("!document.querySelector('#talk .bot')")
    assert said[0] == said[1] != []


def test_a_map_and_a_look_inside(page, load_script):
    script = load_script("draw_screenshots")
    script.choose_example(page, 1)
    script.make_map(page)
    script.look_inside(page)
    assert page.locator("#stages img").count() >= 3


@pytest.mark.parametrize("is_dark", [False, True])
def test_on_a_phone_nothing_is_wider_than_the_screen(shots, load_script, is_dark):
    script = load_script("draw_screenshots")
    page = shots.open((390, 844), is_dark=is_dark)
    script.choose_example(page)
    script.find(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.body.classList.contains('dark')") is is_dark
    page.context.close()
