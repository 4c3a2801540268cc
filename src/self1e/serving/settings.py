"""What the service allows, and how much of everything; checked once, before it starts."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass, field, fields
from urllib.parse import urlsplit

from self1e.errors import SettingError
from self1e.serving.schemas import MOST_LETTERS, MOST_QUERIES
from self1e.settings import MAX_TILES

SHORTEST_KEY = 16
"""Letters of an API key: 16 random ones cannot be guessed over a network."""

_MEBI = 2**20


@dataclass(frozen=True, kw_only=True)
class ServiceSettings:
    """Limits and doors of the service.

    Memory follows from them, beside the model: ``cache_bytes`` for kept pictures and conversations,
    ``upload_bytes`` for requests that are being read, 36 bytes for each of ``max_pixels`` and each of two decoders, and
    16 bytes for each of ``max_pixels`` for pictures that wait for the model.
    """

    host: str = "127.0.0.1"
    """Address to listen at. Anything but this machine's own needs ``api_keys``."""
    port: int = 8000
    """0 takes a free one."""
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    """Whoever knows one may ask; without any, everybody who reaches the address."""
    origins: tuple[str, ...] = ()
    """Web pages that may ask from a browser (CORS), as ``https://example.org``; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the ``Host`` header that are served. Left out: without keys those of this machine, so that no web page
    reaches the service through a name of its own that it points here; with keys any."""

    max_body_bytes: int = 20 * _MEBI
    """Of one request; counted while it arrives."""
    upload_bytes: int = 256 * _MEBI
    """Of all requests that are being read or worked on."""
    upload_seconds: float = 30.0
    """Until a request has arrived."""
    max_pixels: int = 40_000_000
    """Of one picture."""
    decode_seconds: float = 20.0
    """Processor time of decoding one."""
    max_queries: int = 64
    """Of one request."""
    max_classes: int = 256
    """Of one semantic map."""
    max_letters: int = 1000
    """Of one query, class name, template or question."""
    max_tiles: int = MAX_TILES
    """Most tiles that a request may ask for."""
    max_new_tokens: int = 512
    """Of one answer in a conversation."""
    max_chat_tokens: int = 4096
    """Of a conversation in the model's view, picture included."""
    max_turns: int = 200
    """Of one conversation."""

    max_requests: int = 64
    """Accepted and not yet answered; one more gets 429."""
    deadline_seconds: float = 120.0
    """Until a request is answered, counted from its first byte."""
    batch_queries: int = 16
    """Most queries in one pass through the model, of however many requests."""
    batch_seconds: float = 0.003
    """How long a lone request waits for others."""
    drain_seconds: float = 60.0
    """For accepted work, once the service was told to stop."""

    cache_bytes: int = 1024 * _MEBI
    """Of encoded pictures and conversations; what was not used for longest makes room."""
    image_seconds: float = 3600.0
    """Until a picture that nobody uses is forgotten."""

    fetch_urls: bool = False
    """Fetch pictures from public addresses that a request names."""
    fetch_seconds: float = 10.0
    """For one of them."""

    def __post_init__(self) -> None:
        for name in ("api_keys", "origins", "allowed_hosts"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_numbers()
        self._check_keys()
        for origin in self.origins:
            _check_origin(origin)
        if not self.is_local and not self.api_keys:
            raise SettingError(
                f"host={self.host!r} can be reached from other machines, and there is no API key: set SELF1E_API_KEYS, "
                "or name a file with --keys-file, or stay at 127.0.0.1."
            )

    @property
    def is_local(self) -> bool:
        """True if only this machine reaches the address."""
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def served_hosts(self) -> tuple[str, ...]:
        """Names in the ``Host`` header that are served; () for any."""
        if self.allowed_hosts or self.api_keys:
            return self.allowed_hosts
        return ("localhost", "127.0.0.1", "::1", self.host.strip("[]"))

    def limits(self) -> dict[str, int | float | bool]:
        """Return what a request may hold."""
        names = "max_body_bytes max_pixels max_queries max_classes max_letters max_tiles max_new_tokens max_turns"
        return {name: getattr(self, name) for name in f"{names} deadline_seconds image_seconds fetch_urls".split()}

    def _check_numbers(self) -> None:
        most = {"port": 65535, "max_tiles": MAX_TILES, "max_letters": MOST_LETTERS}
        most |= {"max_queries": MOST_QUERIES, "max_classes": MOST_QUERIES}
        for one in fields(self):
            value, least = getattr(self, one.name), 0 if one.name in ("port", "batch_seconds") else 1
            if isinstance(one.default, bool):
                fits, expected = isinstance(value, bool), "True or False"
            elif isinstance(one.default, int):
                top = most.get(one.name)
                fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= (top or value)
                expected = f"a whole number, {least} " + (f"to {top}" if top else "or more")
            elif isinstance(one.default, float):
                is_number = isinstance(value, int | float) and not isinstance(value, bool)
                fits = is_number and math.isfinite(value) and (value > 0 or (value == 0 and least == 0))
                expected = "a positive number of seconds"
            else:
                continue
            if not fits:
                raise SettingError(f"{one.name}={value!r}; expected {expected}.")
        if self.max_body_bytes > self.upload_bytes:
            raise SettingError(
                f"max_body_bytes={self.max_body_bytes} is more than upload_bytes={self.upload_bytes} for all requests "
                "together: lower the one or raise the other."
            )

    def _check_keys(self) -> None:
        for number, key in enumerate(self.api_keys, 1):
            if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
                raise SettingError(
                    f"API key {number} has {len(key)} letters; expected at least {SHORTEST_KEY} of ASCII without "
                    "spaces, for example from: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )


def _check_origin(origin: str) -> None:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or parts.path or parts.query or parts.fragment:
        raise SettingError(
            f"origins: {origin!r} is none; expected scheme and host, as https://example.org, without a path. "
            "There is no wildcard: name the pages that may ask."
        )
