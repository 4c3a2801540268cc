"""Fetching pictures: public addresses only, on every way there."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from self1e.serving.fetching import Fetcher, is_public
from self1e.serving.problems import Refusal


@pytest.mark.parametrize("address", ["93.184.216.34", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "240.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fc00::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
        "nonsense",
    ],
)
def test_addresses_that_are_not(address):
    assert not is_public(address)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        port = self.server.server_address[1]
        self.server.asked.append((self.path, self.headers["Host"]))  # type: ignore[attr-defined]
        if self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):  # the client leaves
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.05)
            return
        redirects = {
            "/again": "/file",
            "/inside": f"http://inside.test:{port}/file",
            "/elsewhere": "ftp://public.test/file",
            "/loop": "/loop",
            "/numbers": "http://0x7f000001/",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
            return
        content = b"x" * (2000 if self.path == "/large" else 100)
        self.send_response(404 if self.path == "/none" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server) -> Any:
    """Fetch a path of ``public.test``, which for this test counts as public; ``inside.test`` does not."""
    port = server.server_address[1]
    looked_up: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        looked_up.append(host)
        known = {"public.test": ["127.0.0.1"], "inside.test": ["10.0.0.1"], "both.test": ["127.0.0.1", "10.0.0.1"]}
        if host not in known:
            raise OSError
        return known[host]

    def fetch(path: str, host: str = "public.test", seconds: float = 60) -> bytes:
        fetcher = Fetcher(
            1000, seconds, resolve=resolve, is_allowed=lambda address: address == "127.0.0.1", ports=(80, port)
        )
        return fetcher.fetch(f"http://{host}:{port}{path}")

    fetch.looked_up = looked_up  # type: ignore[attr-defined]
    return fetch


def test_a_file_is_fetched_from_the_address_that_was_checked(fetch, server):
    assert fetch("/file?a=b") == b"x" * 100
    assert fetch.looked_up == ["public.test"]  # once: a second answer could be another
    assert server.asked == [("/file?a=b", f"public.test:{server.server_address[1]}")]


def test_redirects_are_followed_and_checked(fetch):
    assert fetch("/again") == b"x" * 100
    for path, told in [
        ("/inside", "not a public"),
        ("/elsewhere", "Expected http"),
        ("/loop", "more than 3 redirects"),
        ("/numbers", "no address"),
    ]:
        with pytest.raises(Refusal, match=told):
            fetch(path)


def test_hosts_with_one_address_inside_are_refused(fetch):
    for host in ("inside.test", "both.test"):
        with pytest.raises(Refusal, match="not a public"):
            fetch("/file", host)


def test_limits_hold(fetch):
    with pytest.raises(Refusal) as refusal:
        fetch("/large")
    assert refusal.value.status_code == 413
    with pytest.raises(Refusal) as refusal:
        fetch("/slow", seconds=0.5)
    assert refusal.value.kind == "url-failed"
    with pytest.raises(Refusal, match="status 404"):
        fetch("/none")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://public.test/",
        "file:///etc/passwd",
        "http://",
        "http://me:secret@public.test/",
        "http://public.test:22/",
        "http://public.test:99999/",
        "http://pub\u200blic.test/",
        "http://public.test/\r\nHost: inside",
        "http://public.test/a b",
        "http://[::1",
        "//public.test/",
        "",
    ],
)
def test_addresses_that_are_none(fetch, url):
    fetcher = Fetcher(1000, 1.0)
    with pytest.raises(Refusal) as refusal:
        fetcher.fetch(url)
    assert refusal.value.status_code == 422
    assert refusal.value.kind == "url"
    assert "secret" not in str(refusal.value.detail)
