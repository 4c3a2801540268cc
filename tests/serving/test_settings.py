"""Settings of the service: what cannot work is said at once."""

from __future__ import annotations

import dataclasses

import pytest

from self1e.errors import SettingError
from self1e.serving.server import read_keys
from self1e.serving.settings import ServiceSettings

KEY = "0123456789abcdef"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "127.9.9.9"])
def test_this_machine_needs_no_key(host):
    assert ServiceSettings(host=host).is_local


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org", "127.0.0.1.example.org", ""])
def test_anything_else_does(host):
    with pytest.raises(SettingError, match="SELF1E_API_KEYS"):
        ServiceSettings(host=host)
    assert ServiceSettings(host=host, api_keys=(KEY,)).host == host


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("port", -1),
        ("max_queries", 0),
        ("max_queries", 1001),
        ("max_tiles", 13),
        ("max_pixels", 1.5),
        ("max_requests", True),
        ("deadline_seconds", 0.0),
        ("deadline_seconds", float("inf")),
        ("batch_seconds", -1.0),
        ("fetch_urls", 1),
        ("max_body_bytes", 2**40),
        ("api_keys", ("short",)),
        ("api_keys", (KEY + " with space",)),
        ("origins", ("*",)),
        ("origins", ("https://example.org/",)),
        ("origins", ("example.org",)),
    ],
)
def test_what_cannot_work_is_refused_by_name(name, value):
    with pytest.raises(SettingError, match="API key" if name == "api_keys" else name):
        ServiceSettings(**{name: value})


def test_settings_do_not_show_keys():
    assert KEY not in repr(ServiceSettings(api_keys=(KEY,)))
    assert KEY not in str(ServiceSettings(api_keys=(KEY,)).limits())


def test_every_setting_says_what_it_is():
    source = __import__("inspect").getsource(ServiceSettings)
    for one in dataclasses.fields(ServiceSettings):
        after = source.partition(f"    {one.name}: ")[2].partition("\n")[2]
        assert after.lstrip().startswith('"""'), one.name


def test_keys_come_from_the_environment_and_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n{KEY}\n\n{KEY}2  # theirs\n")
    assert read_keys(file, {"SELF1E_API_KEYS": f" {KEY}3, {KEY},"}) == (f"{KEY}3", KEY, f"{KEY}2")
    assert read_keys(None, {}) == ()
    file.write_text("# none\n")
    with pytest.raises(SettingError, match="holds no key"):
        read_keys(file, {})
    with pytest.raises(SettingError, match="cannot be read"):
        read_keys(tmp_path / "nothing", {})
