"""Take the screenshots of docs/web.md in a real browser: wide and narrow, light and dark.

    python scripts/draw_screenshots.py                       # into docs/assets
    python scripts/draw_screenshots.py --out FOLDER --all    # every tab, for looking at

Needs the extra demo, playwright and a Chromium (--chromium PATH). Reports every address outside this machine that the
page asked for, and fails if there was one.
"""

from __future__ import annotations

import argparse
import io
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[1]
WIDE, NARROW = (1280, 900), (390, 844)
LOOKS = (
    ("wide", WIDE, "light"),
    ("wide-dark", WIDE, "dark"),
    ("narrow", NARROW, "light"),
    ("narrow-dark", NARROW, "dark"),
)
PATIENCE = 600_000  # milliseconds; slow machines are slow


@contextmanager
def serving(model: Any) -> Iterator[str]:
    """Serve the page on a free port, in a thread."""
    import uvicorn

    from self1e.web.page import application

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(application(model), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.1)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@contextmanager
def browsing(chromium: str) -> Iterator[Any]:
    """Open a browser that knows nothing."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=PATIENCE,
        )
        yield browser
        browser.close()


class Shots:
    """Takes pictures of one page, and writes down who is asked for what."""

    def __init__(self, browser: Any, address: str, folder: Path) -> None:
        self._browser, self._address, self._folder = browser, address, folder
        self.outside: set[str] = set()
        self.problems: list[str] = []

    def open(self, size: tuple[int, int], *, is_dark: bool) -> Any:
        """Open the page in a fresh profile."""
        context = self._browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if is_dark else "light"
        )
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self._note(request.url))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(self._address)
        page.locator("#find-go").wait_for()
        return page

    def _note(self, url: str) -> None:
        if not url.startswith((self._address, self._address.replace("http", "ws"), "data:", "blob:")):
            self.outside.add(url)

    def save(self, page: Any, name: str, *, whole: bool = False) -> None:
        """Write a picture of what is seen, or of the whole page, with few colours so that it stays small."""
        page.mouse.move(0, 0)
        page.wait_for_timeout(700)
        image = Image.open(io.BytesIO(page.screenshot(full_page=whole))).convert("RGB")
        place = self._folder / name
        image.quantize(256, dither=Image.Dither.NONE).save(place, optimize=True)
        print(f"{place}: {image.width} x {image.height}, {place.stat().st_size:,} bytes")


def choose_example(page: Any, number: int = 0) -> None:
    """Click an example, and wait until the page shows its picture."""
    page.locator("#examples button").nth(number).click()
    page.locator("#about", has_text="pixels").wait_for()


def find(page: Any) -> None:
    """Press Find, and wait for masks."""
    page.locator("#find-go").click()
    page.locator("#scores table").wait_for()
    page.locator("#result img").wait_for()


def look_inside(page: Any) -> None:
    """Show the fourth tab with something in it."""
    page.get_by_role("tab", name="How it sees").click()
    page.locator("#see-go").click()
    page.locator("#attention img").wait_for()


def chat(page: Any) -> None:
    """Show the third tab with a mask in it."""
    page.get_by_role("tab", name="Chat").click()
    page.get_by_label("a mask").check()
    page.locator("#send").click()
    page.locator("#chat-status", has_text="You asked for a mask").wait_for()
    page.locator("#talk img").first.wait_for()


def make_map(page: Any) -> None:
    """Show the second tab with a map in it."""
    page.get_by_role("tab", name="Every pixel").click()
    page.locator("#map-go").click()
    page.locator("#map-scores table").wait_for()
    page.locator("#map img").wait_for()


def take(shots: Shots, *, is_everything: bool) -> Shots:
    """Take the three of the docs, or of every tab both sizes in light and dark."""
    page = shots.open(WIDE, is_dark=False)
    choose_example(page)
    for tab, act in (("find", find), ("map", make_map), ("chat", chat), ("see", look_inside)):
        if is_everything:
            act(page)
            for name, size, scheme in LOOKS:
                page.set_viewport_size({"width": size[0], "height": size[1]})
                page.emulate_media(color_scheme=scheme)
                shots.save(page, f"web-{tab}-{name}.png", whole=True)
        elif tab == "find":
            act(page)
            shots.save(page, "web-wide.png", whole=True)
            page.set_viewport_size({"width": NARROW[0], "height": NARROW[1]})
            shots.save(page, "web-narrow.png", whole=True)
            page.set_viewport_size({"width": WIDE[0], "height": WIDE[1]})
        elif tab == "see":
            page.emulate_media(color_scheme="dark")
            act(page)
            shots.save(page, "web-dark.png", whole=True)
    page.context.close()
    return shots


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="nano")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "assets")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--all", action="store_true", help="Every tab, whole pages, wide and narrow, light and dark.")
    given = parser.parse_args()
    import self1e

    given.out.mkdir(parents=True, exist_ok=True)
    with serving(self1e.load(given.model, device="cpu")) as address, browsing(given.chromium) as browser:
        shots = take(Shots(browser, address, given.out), is_everything=given.all)
    if shots.outside or shots.problems:
        sys.exit(f"Asked outside: {sorted(shots.outside)}; failed in the page: {shots.problems}")
    print("Nothing outside was asked for.")


if __name__ == "__main__":
    main()
