"""Fetch a picture from a public address, and from nowhere else.

A name is resolved once, every address it has must be public, and the connection goes to the address that was checked:
there is no second look-up that could answer otherwise. Redirects begin anew, with all checks. No proxy, no cookies, no
password in the address, ports 80 and 443 only, and a limit of bytes and of time over everything.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from self1e.serving.problems import Refusal

MOST_REDIRECTS = 3
_PORTS = {"http": 80, "https": 443}
_PART = 2**16
_REDIRECTS = (301, 302, 303, 307, 308)

Resolve = Callable[[str, int], list[str]]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


def is_public(address: str) -> bool:
    """True for an address that belongs to the internet, whatever way it is written."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # Ways to write an IPv4 address; what is inside decides as well.
        inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in ipaddress.ip_network("64:ff9b::/96") or found in ipaddress.ip_network("64:ff9b:1::/48"):
            inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        if any(one is not None and not is_public(str(one)) for one in inside):
            return False
        if found.ipv4_mapped is not None:
            return True
    return found.is_global and not found.is_multicast and not found.is_reserved and not found.is_unspecified


class Fetcher:
    """Fetches files.

    Args:
        max_bytes: Of one.
        seconds: For one, redirects included.
        resolve: Says the addresses of a name.
        is_allowed: Says whether an address may be connected to.
        ports: Which are allowed, by scheme.
    """

    def __init__(
        self,
        max_bytes: int,
        seconds: float,
        *,
        resolve: Resolve = resolve,
        is_allowed: Callable[[str], bool] = is_public,
        ports: tuple[int, ...] = tuple(_PORTS.values()),
    ) -> None:
        self._max_bytes, self._seconds = max_bytes, seconds
        self._resolve, self._is_allowed, self._ports = resolve, is_allowed, ports

    def fetch(self, url: str) -> bytes:
        """Return a file's bytes; blocks.

        Raises:
            Refusal: The address is not allowed, or nothing usable is there.
        """
        end = time.monotonic() + self._seconds
        for _ in range(MOST_REDIRECTS + 1):
            content, url = self._ask(url, end)
            if content is not None:
                return content
        raise _failed(f"There are more than {MOST_REDIRECTS} redirects.")

    def _ask(self, url: str, end: float) -> tuple[bytes | None, str]:
        """Return the file, or where else to look."""
        parts, host, port = self._checked(url)
        connection = self._connect(parts.scheme, host, port, self._address(host, port), end)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", target, headers={"User-Agent": "self1e", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in _REDIRECTS:
                return None, urljoin(url, response.headers.get("Location") or url)
            if response.status != 200:
                raise _failed(f"The server answered with status {response.status}.")
            return self._read(response, connection, end), url
        except Refusal:
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failed("The server broke off, or speaks no HTTP.") from error
        finally:
            connection.close()

    def _checked(self, url: str) -> tuple[SplitResult, str, int]:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise _refused("It is not an address.") from error
        if parts.scheme not in _PORTS or not host or not url.isascii() or not url.isprintable() or " " in url:
            raise _refused("Expected http:// or https://, a host, and ASCII only.")
        if parts.username is not None or parts.password is not None:
            raise _refused("It holds a name or a password.")
        port = port or _PORTS[parts.scheme]
        if port not in self._ports:
            raise _refused(f"Port {port} is not allowed.")
        return parts, host, port

    def _address(self, host: str, port: int) -> str:
        """Resolve a name; all of its addresses must be allowed."""
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise _failed("The host has no address.") from error
        if not found or not all(map(self._is_allowed, found)):
            raise _refused("The host is not a public one.")
        return found[0]

    def _connect(self, scheme: str, host: str, port: int, address: str, end: float) -> Any:
        """Connect to the address that was checked; the name is for the certificate and the ``Host`` header only."""
        kind = http.client.HTTPSConnection if scheme == "https" else http.client.HTTPConnection
        connection: Any = kind(host, port, timeout=self._left(end))
        try:
            connection.sock = socket.create_connection((address, port), timeout=self._left(end))
            if scheme == "https":
                connection.sock = ssl.create_default_context().wrap_socket(connection.sock, server_hostname=host)
        except OSError as error:
            connection.close()
            raise _failed("The host cannot be connected to.") from error
        return connection

    def _read(self, response: http.client.HTTPResponse, connection: Any, end: float) -> bytes:
        found = bytearray()
        while True:
            if connection.sock is not None:
                connection.sock.settimeout(self._left(end))
            else:
                self._left(end)
            part = response.read1(_PART)
            if not part:
                return bytes(found)
            found += part
            if len(found) > self._max_bytes:
                raise Refusal(413, "too-large", f"The file is larger than max_body_bytes={self._max_bytes:,}.")

    def _left(self, end: float) -> float:
        left = end - time.monotonic()
        if left <= 0:
            raise _failed(f"It takes longer than fetch_seconds={self._seconds:g}.")
        return left


def _refused(why: str) -> Refusal:
    return Refusal(422, "url", f"url: {why} Send the picture itself.")


def _failed(why: str) -> Refusal:
    return Refusal(422, "url-failed", f"url: {why}")
