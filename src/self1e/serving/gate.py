"""What every request passes: an id, who may come in, how much it may carry, a line in the log, and no error that leaks.

Pure ASGI, outside of everything else, so that it holds for the web page too.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect

from self1e.serving import schemas
from self1e.serving.logs import LOGGER
from self1e.serving.metrics import Metrics
from self1e.serving.problems import Refusal, as_refusal, busy, problem_response
from self1e.serving.settings import ServiceSettings

_log = logging.getLogger(LOGGER)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN = {schemas.HEALTH, schemas.READY}
"""What a load balancer asks without a key."""
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_LEFT = 499


class Gate:
    """ASGI middleware.

    Args:
        app: What is behind it.
        settings: Of the service.
        metrics: Where it counts.
    """

    def __init__(self, app: Any, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._keys = [_digest(key) for key in settings.api_keys]
        self.upload_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passing = _Passing(self, scope, receive, send)
        try:
            self._check(scope, passing.headers)
            await self._app(scope, passing.receive, passing.send)
        except ClientDisconnect:
            passing.status = passing.status or CLIENT_LEFT
        except Exception as error:
            await passing.refuse(error)
        finally:
            self.hold(-passing.received)
            self._tell(passing)

    def hold(self, count: int) -> None:
        """Count bytes that requests hold."""
        self.upload_bytes += count
        self._metrics.upload_bytes.set(self.upload_bytes)

    def check_body(self, count: int) -> None:
        """Refuse a body that is too large, or one too many at the same time."""
        if count > self._settings.max_body_bytes:
            raise Refusal(
                413,
                "too-large",
                f"The request is larger than max_body_bytes={self._settings.max_body_bytes:,}.",
                headers={"Connection": "close"},
            )
        if self.upload_bytes > self._settings.upload_bytes:
            refusal = busy("Too many requests are being uploaded.", 2)
            refusal.headers = {**(refusal.headers or {}), "Connection": "close"}
            raise refusal

    @property
    def upload_seconds(self) -> float:
        """Until a request has to be there."""
        return self._settings.upload_seconds

    # ------------------------------------------------------------------ who may come in

    def _check(self, scope: Scope, headers: Headers) -> None:
        self._check_host(headers.get("host", ""))
        self._check_origin(headers)
        if self._keys and scope["path"] not in _OPEN and not self._knows_key(headers):
            raise Refusal(
                401,
                "key",
                "An API key is needed: Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": 'Basic realm="self1e", charset="UTF-8", Bearer realm="self1e"'},
            )
        length = headers.get("content-length", "")
        if length.isdecimal():
            self.check_body(int(length[:20]))

    def _check_host(self, host: str) -> None:
        """Refuse names that are not ours: a web page may point a name of its own to this address."""
        served = self._settings.served_hosts
        if served and _host_of(host) not in served:
            raise Refusal(421, "host", "This service does not answer to that name; use its address.")

    def _check_origin(self, headers: Headers) -> None:
        """Refuse web pages that were not named: browsers send some requests of any page without asking."""
        origin = headers.get("origin")
        if origin is None or origin in self._settings.origins:
            return
        if origin == "null" or urlsplit(origin).netloc != headers.get("host"):
            raise Refusal(403, "origin", "Web pages of other origins may not ask here.")

    def _knows_key(self, headers: Headers) -> bool:
        """Compare what is given with every key, in a time that says nothing."""
        given = _digest(_given_key(headers))
        return sum([hmac.compare_digest(given, key) for key in self._keys]) > 0

    # ------------------------------------------------------------------ what is told

    def _tell(self, passing: _Passing) -> None:
        route = getattr(passing.scope.get("route"), "path", None) or "other"
        status, method = passing.status or 500, passing.scope["method"]
        seconds = time.monotonic() - passing.start
        known = method if method in _METHODS else "other"  # a label per invented method would never end
        self._metrics.requests.labels(known, route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        fields = {
            "request_id": passing.request_id,
            "method": known,
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "bytes_in": passing.received,
            "bytes_out": passing.sent,
            **passing.scope["state"].get("told", {}),
        }
        _log.info("request", extra={"fields": fields})


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


class _Passing:
    """One request on its way."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate, self._receive, self._send = gate, receive, send
        self.scope = scope
        self.headers = Headers(scope=scope)
        given = self.headers.get(schemas.REQUEST_ID, "")
        self.request_id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        self.start = time.monotonic()
        self.status = 0
        self.received = self.sent = 0
        self._is_complete = False
        # A copy: uvicorn hands the same one to every request.
        scope["state"] = dict(scope.get("state") or {}, request_id=self.request_id, start=self.start, told={})

    async def receive(self) -> MutableMapping[str, Any]:
        """Take the next part of the body, within limits of bytes and time."""
        if self._is_complete:
            return await self._receive()
        left = self.start + self._gate.upload_seconds - time.monotonic()
        try:
            message = await asyncio.wait_for(self._receive(), max(left, 0))
        except TimeoutError:
            raise Refusal(
                408, "upload", "The request did not arrive in time.", headers={"Connection": "close"}
            ) from None
        if message["type"] == "http.request":
            count = len(message.get("body", b""))
            self.received += count
            self._gate.hold(count)
            self._gate.check_body(self.received)
            self._is_complete = not message.get("more_body", False)
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Send a part of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            ours = [(schemas.REQUEST_ID.lower().encode(), self.request_id.encode())]
            ours.append((b"x-content-type-options", b"nosniff"))
            message = {**message, "headers": [*message.get("headers", []), *ours]}
        self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with an error, or if the answer has begun, end it there."""
        refusal = as_refusal(error)
        if refusal.status_code >= 500 and not isinstance(error, Refusal):
            _log.error("failed", exc_info=error, extra={"fields": {"request_id": self.request_id}})
        if self.status:
            raise ConnectionAbortedError("the answer cannot be completed") from None
        await problem_response(refusal, self.request_id)(self.scope, self.receive, self.send)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _given_key(headers: Headers) -> str:
    """Find a key: as a bearer token, in a header of its own, or as a password that a browser asked for."""
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            return b64decode(rest, validate=True).decode("utf-8").partition(":")[2]
        except ValueError:
            return ""
    return headers.get("x-api-key", "")


def _host_of(header: str) -> str:
    """Return the name in a ``Host`` header, without the port."""
    if header.startswith("["):
        name = header[1:].partition("]")[0]
        try:
            return str(ipaddress.ip_address(name))
        except ValueError:
            return name
    return header.partition(":")[0].lower()
