"""Ask a running service, as one asks a model: ``self1e serve`` on the other side, nothing but Python on this one.

    client = Client("http://127.0.0.1:8000")
    result = client.segment("street.jpg", ["the car", "the cyclist"])     # a ``Segmentation``
    image = client.upload("street.jpg")                                   # once, then many questions
    client.segment(image, "the car").mask()
    for event in client.chat(image).ask("What colour is the car?"):
        ...

Neither torch nor a model is imported. A client may be used by several threads.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import secrets
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote, urlsplit

import numpy as np
from PIL import Image

from self1e.errors import PictureError, Self1EError, SettingError
from self1e.inference.events import Adapter, Done, Mode
from self1e.structures import Segmentation

if TYPE_CHECKING:
    from self1e.inference.semantic import SemanticMap

Picture = str | os.PathLike[str] | bytes | Image.Image

_BUSY = {429, 503}
"""Statuses after which the same request may be sent again: it was not begun."""
_FIRST_WAIT = 0.5  # seconds, doubled each time, where the service does not say how long
_IDLE = 3.0  # seconds after which a connection is made anew: the service closes them after five
_LONGEST_DEADLINE = 86_400.0


class ServiceError(Self1EError, RuntimeError):
    """The service has refused, or cannot be reached.

    Attributes:
        status: Of HTTP; 0 if there was no answer.
        kind: What a program can tell it by, as ``"busy"``: the end of the problem's ``urn:self1e:KIND``.
        request_id: By which the service's log names the request.
        errors: Places in the request and what is wrong there, each with ``loc`` and ``msg``.
        retry_after: Seconds after which the service wants to be asked again, if it says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        kind: str = "",
        request_id: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.request_id = request_id
        self.errors = tuple(errors)
        self.retry_after = retry_after


@dataclass(frozen=True)
class RemoteImage:
    """A picture that the service keeps."""

    id: str
    width: int
    height: int
    tiles: tuple[int, int]
    """Rows and columns."""
    notes: tuple[str, ...]
    """What a person might want to know about the file."""
    bytes: int
    """What keeping it takes."""
    expires_in: float
    """Seconds until it is forgotten, unless it is used."""


@dataclass(frozen=True)
class Models:
    """What answers, and what a request may hold."""

    models: tuple[dict[str, Any], ...]
    """Each with ``id``, ``device``, ``dtype``, ``no_target_threshold``, ``knows``, ``adapters``."""
    limits: dict[str, Any]


@dataclass(frozen=True)
class Text:
    """More of an answer's words."""

    text: str


@dataclass(frozen=True)
class Mask:
    """A mask, or that there is none: ``segmentation.is_empty``."""

    segmentation: Segmentation
    """Of one query."""
    score: float
    """Of the mask; if it was turned down for its score, that one."""


Event = Text | Mask | Done


class Client:
    """A service, seen from a program.

    Args:
        url: Of the service, ``http://`` or ``https://``.
        key: One of its API keys, if it needs one.
        timeout: Seconds until a request must be answered; the service is told, and drops what it cannot make in time.
        retries: How often a request is sent again that the service was too busy for.
        longest_wait: Most seconds to wait before one of these, whatever the service asks for.

    Raises:
        SettingError: One of these cannot work.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout: float = 120.0,
        retries: int = 4,
        longest_wait: float = 30.0,
    ) -> None:
        self._idle: deque[tuple[http.client.HTTPConnection, float]] = deque()
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise SettingError(f"url={url!r}; expected one like http://127.0.0.1:8000.")
        if not 0 < timeout <= _LONGEST_DEADLINE or retries < 0 or not 0 <= longest_wait <= _LONGEST_DEADLINE:
            raise SettingError(
                f"timeout={timeout}, retries={retries}, longest_wait={longest_wait}; expected seconds of at most a day "
                "and a number from 0 on."
            )
        if key is not None and (not key.isascii() or not key.isprintable() or not key):
            raise SettingError("key: expected visible ASCII letters.")
        self.url = url.rstrip("/")
        self._parts = parts
        self._base = parts.path.rstrip("/")
        self._key = key
        self._timeout = timeout
        self._retries = retries
        self._longest_wait = longest_wait

    def __repr__(self) -> str:
        return f"Client({self.url!r})"  # never the key

    def close(self) -> None:
        """Close what is open; the client can be used again."""
        while self._idle:
            self._idle.pop()[0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    # ------------------------------------------------------------------ pictures and masks

    def upload(self, picture: Picture, *, max_tiles: int | None = None) -> RemoteImage:
        """Let the service encode a picture and keep it for a while, for many questions.

        Args:
            picture: A path, a file's content, or a picture of Pillow's.
            max_tiles: Most tiles, 1 to 12.
        """
        found = self._ask("POST", "/v1/images", **_form(picture, {"max_tiles": max_tiles}))
        known = {name: found[name] for name in ("id", "width", "height", "bytes", "expires_in")}
        return RemoteImage(**known, tiles=tuple(found["tiles"]), notes=tuple(found["notes"]))

    def forget(self, image: RemoteImage) -> None:
        """Let the service forget a picture, and the conversations about it."""
        self._ask("DELETE", _path("/v1/images", image.id))

    def segment(
        self,
        picture: Picture | RemoteImage,
        queries: str | Sequence[str],
        *,
        kind: Literal["auto", "phrase", "sentence"] = "auto",
        template: str | None = None,
        threshold: float = 0.0,
        reject: bool = True,
        split: bool = False,
        fill_holes: bool = False,
        min_area: int = 0,
        max_tiles: int | None = None,
    ) -> Segmentation:
        """Find what the words mean.

        Args:
            picture: What ``upload`` gave, or a picture that is sent along and not kept.
            queries: One or several.
            kind: Of all queries.
            template: A question of your own with ``{text}``.
            threshold: Foreground is where the logit is above it.
            reject: Empty the masks that score below the model's calibrated threshold.
            split: One result per connected piece, the largest first.
            fill_holes: Close what a mask's pieces enclose.
            min_area: Leave out pieces of fewer pixels.
            max_tiles: Most tiles; of an uploaded picture, ``upload`` says it.

        Returns:
            As ``Self1E.segment``, without the picture: ``dataclasses.replace(result, image=picture)`` adds it.

        Raises:
            ServiceError: The service has refused, or cannot be reached.
            PictureError: The picture's file cannot be read.
        """
        options: dict[str, Any] = {
            "queries": [queries] if isinstance(queries, str) else list(queries),
            "kind": kind, "template": template, "threshold": threshold, "reject": reject, "split": split,
            "fill_holes": fill_holes, "min_area": min_area, "formats": ["rle"],
        }  # fmt: skip
        found = self._ask_about(picture, "segment", options, max_tiles)
        return _segmentation(found["results"], (found["width"], found["height"]), _source(picture))

    def semantic(
        self,
        picture: Picture | RemoteImage,
        classes: Sequence[str],
        *,
        background: float | None = 0.0,
        template: str | None = None,
        max_tiles: int | None = None,
    ) -> SemanticMap:
        """Give every pixel a class.

        Args:
            picture: What ``upload`` gave, or a picture that is sent along and not kept.
            classes: One name each, all different.
            background: Logit that a pixel's best class must exceed; None gives every pixel a class.
            template: A question of your own with ``{text}``.
            max_tiles: Most tiles; of an uploaded picture, ``upload`` says it.

        Returns:
            As ``Self1E.semantic``, without the picture.
        """
        from self1e.inference.semantic import SemanticMap

        options = {"classes": list(classes), "background": background, "template": template}
        found = self._ask_about(picture, "semantic", options, max_tiles)
        with Image.open(io.BytesIO(base64.b64decode(found["png"]))) as opened:
            labels = np.array(opened)
        told = found["classes"]
        names = tuple(entry["name"] for entry in told)
        scores = np.array([entry["score"] for entry in told], dtype=np.float32)
        palette = np.array([(0, 0, 0), *(entry["color"] for entry in told)], dtype=np.uint8)
        return SemanticMap(labels, names, scores, found["background"], source=_source(picture), palette=palette)

    # ------------------------------------------------------------------ conversations and facts

    def chat(
        self,
        image: RemoteImage,
        *,
        mode: Mode = "auto",
        adapter: Adapter | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        threshold: float = 0.0,
        reject: bool = True,
    ) -> Conversation:
        """Begin a conversation about an uploaded picture.

        Args:
            image: What ``upload`` gave.
            mode: Who decides that there is a mask: the model (auto), you (segment), nobody (text).
            adapter: ``"off"``: words of mode text are the base model's, if the service has it (``models()``).
            temperature: 0 takes the likeliest words; above it they are drawn.
            top_p: With a temperature: draw from the fewest tokens that together have this probability.
            seed: With a temperature: the same answers every time.
            threshold: Foreground is where the logit is above it.
            reject: Empty the masks that score below the model's calibrated threshold.
        """
        options = {"mode": mode, "threshold": threshold, "reject": reject}
        options |= _said(adapter=adapter, temperature=temperature, top_p=top_p, seed=seed)
        found = self._ask("POST", _path("/v1/images", image.id, "sessions"), **_json(options))
        return Conversation(self, found["id"], (image.width, image.height))

    def models(self) -> Models:
        """Ask which model answers, and what a request may hold."""
        found = self._ask("GET", "/v1/models")
        return Models(tuple(found["models"]), found["limits"])

    def ready(self) -> bool:
        """Ask whether the service takes requests now; False also if nobody answers. Waits for nothing."""
        try:
            with closing(self._connect()) as connection:
                response = self._send(connection, "GET", "/ready", b"", {})
                response.read()
                return response.status == 200
        except ServiceError:
            return False

    # ------------------------------------------------------------------ the way there

    def _ask_about(
        self, picture: Picture | RemoteImage, verb: str, options: dict[str, Any], max_tiles: int | None
    ) -> Any:
        if isinstance(picture, RemoteImage):
            if max_tiles is not None:
                raise SettingError(f"max_tiles={max_tiles}: the picture is encoded; say it to upload.")
            return self._ask("POST", _path("/v1/images", picture.id, verb), **_json(options))
        return self._ask("POST", f"/v1/{verb}", **_form(picture, options | {"max_tiles": max_tiles}))

    def _ask(self, method: str, path: str, body: bytes = b"", kind: str = "") -> Any:
        """Send a request, again if the service is too busy, and read its answer."""
        headers = {"Content-Type": kind} if kind else {}
        for attempt in range(self._retries + 1):
            response, content = self._exchange(method, path, body, headers)
            if response.status < 300:
                return json.loads(content) if content else None
            if response.status not in _BUSY or attempt == self._retries:
                raise _problem(response, content)
            time.sleep(self._wait(response, attempt))
        raise AssertionError("unreachable")

    def _wait(self, response: http.client.HTTPResponse, attempt: int) -> float:
        """Say how long to wait before the next attempt, in seconds."""
        asked = _retry_after(response.getheader("Retry-After"))
        return min(_FIRST_WAIT * 2**attempt if asked is None else asked, self._longest_wait)

    def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Send and receive on a connection that is open, or on a new one if the service has closed that meanwhile."""
        connection = self._take_idle()
        if connection is not None:
            try:
                return self._receive(connection, self._send(connection, method, path, body, headers))
            except _Closed:
                pass  # it was idle for too long; _send has closed it
        connection = self._connect()
        return self._receive(connection, self._send(connection, method, path, body, headers))

    def _take_idle(self) -> http.client.HTTPConnection | None:
        """Return a connection that is likely to be open still."""
        while self._idle:
            try:
                connection, used = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if time.monotonic() - used < _IDLE:
                return connection
            connection.close()
        return None

    def _receive(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Read an answer to its end, and keep the connection for another request."""
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise ServiceError(f"{self.url}: broke off in the middle of its answer: {_told(error)}.") from error
        self._idle.append((connection, time.monotonic()))
        return response, content

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname, self._parts.port
        assert host is not None
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=self._timeout, context=ssl.create_default_context())
        return http.client.HTTPConnection(host, port, timeout=self._timeout)

    def _send(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """Send a request; the answer's head is read, its body is not.

        Raises:
            _Closed: The connection was no more.
            ServiceError: There was no answer.
        """
        headers = {**headers, "Accept": "application/json", "X-Deadline-Seconds": f"{self._timeout:.3f}"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        try:
            try:
                connection.request(method, self._base + path, body or None, headers)
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:
                    raise
                # A service refuses a large body before it is sent: the answer may be there all the same.
            return connection.getresponse()
        except TimeoutError as error:
            connection.close()
            raise ServiceError(f"{self.url}: no answer within timeout={self._timeout:g} seconds.") from error
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            connection.close()
            raise _Closed(f"{self.url}: has closed the connection without an answer; is it stopping?") from error
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(
                f"{self.url}: cannot be reached: {_told(error)}. Is self1e serve running there?"
            ) from error


class Conversation:
    """Many turns about one picture; one at a time."""

    def __init__(self, client: Client, id: str, size_wh: tuple[int, int]) -> None:
        self.id = id
        self._client = client
        self._size_wh = size_wh

    def ask(
        self,
        text: str,
        *,
        mode: Mode | None = None,
        kind: Literal["auto", "phrase", "sentence"] = "auto",
        max_new_tokens: int | None = None,
        adapter: Adapter | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """Take a turn, and yield what comes, as it comes; the last one is ``Done``.

        An iterator that is closed before its end cancels the turn; what was written stays in the conversation.

        Args:
            text: What to ask.
            mode: For this turn.
            kind: Of the words, if there is to be a mask.
            max_new_tokens: Longest answer.
            adapter: For this turn, like what follows; see ``Client.chat``.
            temperature: 0 is greedy.
            top_p: With a temperature.
            seed: With a temperature.

        Raises:
            ServiceError: The service has refused, or the answer has broken off.
        """
        options = {"text": text, "mode": mode, "kind": kind, "max_new_tokens": max_new_tokens, "formats": ["rle"]}
        options |= _said(adapter=adapter, temperature=temperature, top_p=top_p, seed=seed)
        request = _json(options)
        client = self._client
        path = _path("/v1/sessions", self.id, "turns")
        for attempt in range(client._retries + 1):
            with closing(client._connect()) as connection:
                response = client._send(connection, "POST", path, request["body"], {"Content-Type": request["kind"]})
                if response.status == 200:
                    yield from self._events(response)
                    return
                if response.status not in _BUSY or attempt == client._retries:
                    raise _problem(response, response.read())
                wait = client._wait(response, attempt)
            time.sleep(wait)

    def close(self) -> None:
        """End the conversation."""
        self._client._ask("DELETE", _path("/v1/sessions", self.id))

    def _events(self, response: http.client.HTTPResponse) -> Iterator[Event]:
        try:
            for name, content in _server_sent(response):
                event = self._event(name, content)
                if event is None:
                    continue
                yield event
                if isinstance(event, Done):
                    return
        except (OSError, http.client.HTTPException) as error:
            raise ServiceError(f"{self._client.url}: the answer has broken off: {_told(error)}.") from error
        raise ServiceError(f"{self._client.url}: the answer has broken off; what was written stays in it.")

    def _event(self, name: str, content: dict[str, Any]) -> Event | None:
        match name:
            case "text":
                return Text(content["text"])
            case "mask" | "not_there":
                return Mask(_segmentation([content], self._size_wh, ""), content["score"])
            case "done":
                known = [field.name for field in fields(Done) if field.name in content]  # an older service lacks some
                return Done(**{name: content[name] for name in known})
            case "problem":
                raise _as_error(content, content.get("status", 0))
        return None  # of a newer service


class _Closed(ServiceError):
    """The service has closed a connection that was idle, or has died."""


# ---------------------------------------------------------------------- what goes over the wire


def _path(*parts: str) -> str:
    first, *others = parts
    return "/".join([first, *(quote(part, safe="") for part in others)])


def _said(**options: Any) -> dict[str, Any]:
    """Leave out what was not said: a service that is older than this client refuses names it does not know."""
    return {name: value for name, value in options.items() if value is not None}


def _json(content: Mapping[str, Any]) -> dict[str, Any]:
    return {"body": json.dumps(content).encode(), "kind": "application/json"}


def _form(picture: Picture, options: Mapping[str, Any]) -> dict[str, Any]:
    """Write a picture and options as a multipart form: a list is its field, repeated."""
    content = _content(picture)
    boundary = secrets.token_hex(16)
    pieces: list[bytes] = []
    for name, value in options.items():
        if value is None and name != "background":
            continue
        for one in value if isinstance(value, list) else [value]:
            text = one if isinstance(one, str) else json.dumps(one)
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
            pieces += [head.encode(), text.encode("utf-8", "replace"), b"\r\n"]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="picture"; filename="picture"\r\n'
    pieces += [head.encode(), b"Content-Type: application/octet-stream\r\n\r\n", content, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return {"body": b"".join(pieces), "kind": f"multipart/form-data; boundary={boundary}"}


def _content(picture: Picture) -> bytes:
    """Return a picture as a file's content; one that is open already as ``Self1E.segment`` would see it."""
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | os.PathLike):
        try:
            return Path(picture).read_bytes()
        except (OSError, ValueError) as error:  # a name with a null byte is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise PictureError(f"{picture}: cannot be read: {reason}.") from error
    from self1e.processing.pictures import open_picture

    file = io.BytesIO()
    open_picture(picture).image.save(file, "png")
    return file.getvalue()


def _source(picture: Picture | RemoteImage) -> str:
    return str(picture) if isinstance(picture, str | os.PathLike) else ""


def _segmentation(results: Sequence[Mapping[str, Any]], size_wh: tuple[int, int], source: str) -> Segmentation:
    """Read results, masks included."""
    return Segmentation(
        queries=tuple(one["query"] for one in results),
        rles=tuple({"size": one["rle"]["size"], "counts": one["rle"]["counts"].encode("ascii")} for one in results),
        scores=np.array([0.0 if one["not_there"] else one["score"] for one in results], dtype=np.float32),
        size_wh=size_wh,
        text=tuple(one["text"] for one in results),
        source=source,
    )


def _server_sent(response: http.client.HTTPResponse) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read events until the stream ends."""
    name = ""
    while line := response.readline():
        field, _, value = line.decode("utf-8").rstrip("\r\n").partition(":")
        if field == "event":
            name = value.strip()
        elif field == "data":
            yield name, json.loads(value)


def _problem(response: http.client.HTTPResponse, content: bytes) -> ServiceError:
    """Read a refusal; something in between may have answered in words of its own."""
    try:
        problem = json.loads(content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict) or "detail" not in problem:
        problem = {"detail": f"{response.status} {response.reason}; the answer is not one of self1e's."}
    return _as_error(problem, response.status, _retry_after(response.getheader("Retry-After")))


def _as_error(problem: Mapping[str, Any], status: int, retry_after: float | None = None) -> ServiceError:
    kind = str(problem.get("type", ""))
    name = str(problem.get("request_id", ""))
    return ServiceError(
        str(problem.get("detail", "")) + (f" (status {status}, request {name})" if name else f" (status {status})"),
        status=status,
        kind=kind.removeprefix("urn:self1e:") if kind.startswith("urn:self1e:") else "",
        request_id=name,
        errors=problem.get("errors") or (),
        retry_after=retry_after,
    )


def _retry_after(header: str | None) -> float | None:
    """Read ``Retry-After``: seconds, or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header[:12])
    try:
        return max(parsedate_to_datetime(header).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__
