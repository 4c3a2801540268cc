"""What happens to a request once it has come in: accepted or refused, decoded, put before the model, waited for."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from self1e.errors import PictureError
from self1e.inference.base_answers import knows_base
from self1e.inference.parts import PartOptions
from self1e.inference.semantic import CLASSES_AT_ONCE, SemanticMap, check_classes, find_classes
from self1e.processing.pictures import OpenedPicture, open_picture
from self1e.processing.prompts import check_queries
from self1e.serving import schemas
from self1e.serving.fetching import Fetcher
from self1e.serving.metrics import Metrics
from self1e.serving.problems import Refusal, busy, draining, late
from self1e.serving.settings import ServiceSettings
from self1e.serving.store import Store
from self1e.serving.worker import ClosedError, Final, Job, Queries, Steps, Worker
from self1e.structures import Segmentation

T = TypeVar("T")

DECODERS = 2
_PICTURES_WAITING = 4
"""Of the largest size that may wait for the model at once, decoded."""
_PURGE_SECONDS = 30.0


class _NoRoomError(PictureError):
    """Too many pixels wait already; a `PictureError`, because ``open_picture`` lets only these through."""


class Service:
    """A model behind a door.

    Args:
        model: A ``Self1E``.
        settings: Of the service.
    """

    def __init__(self, model: Any, settings: ServiceSettings) -> None:
        self.model = model
        self.settings = settings
        self.metrics = Metrics()
        self.store = Store(settings.cache_bytes, settings.image_seconds, self.metrics)
        self.worker = Worker(
            model, self.metrics, batch_queries=settings.batch_queries, batch_seconds=settings.batch_seconds
        )
        self.fetcher = Fetcher(settings.max_body_bytes, settings.fetch_seconds)
        self.decoders = ThreadPoolExecutor(DECODERS, "self1e-decode")
        self.writers = ThreadPoolExecutor(2, "self1e-answer")
        self.fetchers = ThreadPoolExecutor(4, "self1e-fetch")
        self.is_draining = self.is_warm = False
        self.accepted = 0
        self.counting = threading.Lock()
        self.pixels = 0
        """Of pictures that are being worked on; changed under ``counting``, by several threads."""

    @property
    def name(self) -> str:
        """Of the model, without the folder it lies in."""
        return Path(self.model.name).name or "model"

    @property
    def adapters(self) -> list[schemas.Adapter]:
        """Whose words there are."""
        return ["on", "off"] if knows_base(self.model) else ["on"]

    @property
    def is_ready(self) -> bool:
        """True while requests are taken."""
        return self.is_warm and not self.is_draining and self.worker.is_alive

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Start, and at the end finish what was accepted."""
        self.worker.start()
        await asyncio.wrap_future(self.worker.submit(Steps(deadline=math.inf, steps=self._warm_up())).future)
        self.is_warm = True
        purging = asyncio.create_task(self._purge())
        try:
            yield
        finally:
            self.is_draining = True
            purging.cancel()
            end = time.monotonic() + self.settings.drain_seconds
            while self.accepted and time.monotonic() < end:
                await asyncio.sleep(0.02)
            left = max(end - time.monotonic(), 0.0)
            await asyncio.get_running_loop().run_in_executor(None, self.worker.close, left)
            self.store.clear()
            for pool in (self.decoders, self.writers, self.fetchers):
                pool.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> Iterator[Final]:
        """Fold weights and fill caches before the first request has to wait for it."""
        from PIL import Image

        self.model.segment(Image.new("RGB", (64, 64)), "anything")
        yield Final(None)

    async def _purge(self) -> None:
        while True:
            await asyncio.sleep(min(_PURGE_SECONDS, self.settings.image_seconds))
            self.store.purge()

    @asynccontextmanager
    async def accept(self, request: Request, deadline: float | None = None) -> AsyncIterator[Flight]:
        """Take a request on, or refuse it; its place is held until the block ends."""
        if self.is_draining:
            raise draining()
        if not self.is_ready:
            raise Refusal(503, "not-ready", "The model is not ready.", headers={"Retry-After": "5"})
        if self.accepted >= self.settings.max_requests:
            raise busy(f"{self.accepted} requests are being worked on.", min(self.worker.wait_seconds, 60))
        flight = Flight(self, request, deadline)
        self.accepted += 1
        self.metrics.accepted.set(self.accepted)
        try:
            yield flight
        finally:
            self.accepted -= 1
            self.metrics.accepted.set(self.accepted)
            flight.close()


class Flight:
    """An accepted request.

    Args:
        service: That accepted it.
        request: Whose body has been read, or will be by ``bodies.read`` before anything is waited for.
        seconds: Deadline that the request asks for.
    """

    def __init__(self, service: Service, request: Request, seconds: float | None) -> None:
        self._service = service
        self._request = request
        most = service.settings.deadline_seconds
        self.deadline: float = request.state.start + (most if seconds is None else min(seconds, most))
        self._leaving: asyncio.Task[None] | None = None
        self._pixels = 0
        self._is_closed = False

    def close(self) -> None:
        """Give back what it holds."""
        with self._service.counting:
            self._is_closed = True
            self._service.pixels -= self._pixels
            self._pixels = 0
        if self._leaving is not None:
            self._leaving.cancel()

    # ------------------------------------------------------------------ waiting

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Wait, but no longer than the client does and the deadline allows."""
        future = asyncio.ensure_future(awaitable)
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._watch())
        try:
            await asyncio.wait(
                {future, self._leaving},
                timeout=max(self.deadline - time.monotonic(), 0),
                return_when=asyncio.FIRST_COMPLETED,
            )
            if future.done():
                return future.result()
            raise ClientDisconnect if self._leaving.done() else late()
        finally:
            future.cancel()

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    async def run(self, job: Job) -> Any:
        """Put a job before the model and wait for its answer."""
        self.submit(job)
        try:
            return await self.wait(asyncio.wrap_future(job.future))
        finally:
            job.cancel()

    def submit(self, job: Job) -> None:
        """Put a job before the model."""
        try:
            self._service.worker.submit(job)
        except ClosedError as error:
            raise draining() from error

    async def call(self, pool: Executor, function: Callable[[], T]) -> T:
        """Do something elsewhere than in the event loop."""
        return await self.wait(asyncio.get_running_loop().run_in_executor(pool, function))

    async def write(self, function: Callable[[], T]) -> T:
        """Write an answer; masks take time."""
        return await self.call(self._service.writers, function)

    # ------------------------------------------------------------------ pictures

    async def encode(self, asked: schemas.PictureRequest, content: bytes | None) -> Any:
        """Fetch, decode and encode a picture."""
        settings = self._service.settings
        if asked.max_tiles is not None and asked.max_tiles > settings.max_tiles:
            raise _too_much("max_tiles", asked.max_tiles, settings.max_tiles)
        if content is None:
            content = await self._fetch(asked.url or "")
        opened = await self._open(content)
        return await self.run(Steps(deadline=self.deadline, steps=self._encode(opened, asked.max_tiles)))

    async def _fetch(self, url: str) -> bytes:
        if not self._service.settings.fetch_urls:
            raise Refusal(403, "url", "This service fetches nothing; send the picture itself.")
        return await self.call(self._service.fetchers, partial(self._service.fetcher.fetch, url))

    async def _open(self, content: bytes) -> OpenedPicture:
        settings = self._service.settings
        reading = partial(
            open_picture,
            content,
            max_pixels=settings.max_pixels,
            max_bytes=settings.max_body_bytes,
            max_seconds=settings.decode_seconds,
            admit=self._admit,
        )
        try:
            opened = await self.call(self._service.decoders, reading)
        except _NoRoomError as error:
            raise busy(str(error), 2) from error
        return replace(opened, source="picture")

    def _admit(self, width: int, height: int) -> None:
        """Count the pixels of a picture before it is decoded; called by the decoders' threads."""
        with self._service.counting:
            if self._is_closed:  # nobody would ever give them back
                raise _NoRoomError("Nobody waits for this picture any more.")
            if self._service.pixels + width * height > _PICTURES_WAITING * self._service.settings.max_pixels:
                raise _NoRoomError("Too many large pictures are being worked on.")
            self._pixels += width * height
            self._service.pixels += width * height

    def _encode(self, opened: OpenedPicture, max_tiles: int | None) -> Iterator[Final]:
        yield Final(self._service.model.encode(opened, max_tiles=max_tiles))

    # ------------------------------------------------------------------ questions

    def check_queries(self, asked: schemas.Asking) -> None:
        """Say what is wrong with the words, before anything is done."""
        self._check_words(asked.queries, self._service.settings.max_queries, "queries", asked.template)
        check_queries(asked.queries, asked.kind, asked.template)

    async def segment(self, encoded: Any, asked: schemas.Asking) -> Segmentation:
        """Find what the words mean."""
        self.check_queries(asked)
        parts = PartOptions(split=asked.split, fill_holes=asked.fill_holes, min_area=asked.min_area)
        options = {
            "kind": asked.kind,
            "template": asked.template,
            "threshold": asked.threshold,
            "reject": asked.reject,
            "return_logits": not parts.is_idle,
        }
        job = Queries(
            deadline=self.deadline, encoded=encoded, queries=tuple(asked.queries), options=tuple(options.items())
        )
        result = await self.run(job)
        return result if parts.is_idle else await self.write(partial(parts.apply, result))

    def check_classes(self, asked: schemas.Classes) -> tuple[str, ...]:
        """Return the names, or say what is wrong with them."""
        self._check_words(asked.classes, self._service.settings.max_classes, "classes", asked.template)
        names = check_classes(asked.classes)
        check_queries(names, "phrase", asked.template)
        return names

    async def semantic(self, encoded: Any, asked: schemas.Classes) -> SemanticMap:
        """Give every pixel a class."""
        names = self.check_classes(asked)
        job = Steps(deadline=self.deadline, steps=self._map(encoded, names, asked.template))
        logits = await self.run(job)
        known = _Known(logits)
        return await self.write(partial(find_classes, known, encoded, names, background=asked.background))

    def _map(self, encoded: Any, names: Sequence[str], template: str | None) -> Generator[Final | None]:
        """Ask for some classes at a time, the same as the library would."""
        logits: list[Any] = []
        for start in range(0, len(names), CLASSES_AT_ONCE):
            some = names[start : start + CLASSES_AT_ONCE]
            logits += self._service.model.mask_logits(encoded, some, kind="phrase", template=template)
            self._service.metrics.queries.inc(len(some))
            if start + CLASSES_AT_ONCE < len(names):
                yield None
        yield Final(logits)

    def _check_words(self, words: Sequence[str], most: int, name: str, template: str | None = None) -> None:
        """Hold words against the service's own limits."""
        self._request.state.told[name] = len(words)
        if len(words) > most:
            raise _too_much(f"number of {name}", len(words), most)
        longest = max(map(len, [*words, template or ""]))
        if longest > self._service.settings.max_letters:
            raise _too_much(f"letters in {name}", longest, self._service.settings.max_letters)

    # ------------------------------------------------------------------ conversations

    async def begin(self, encoded: Any, asked: schemas.SessionRequest) -> Any:
        """Begin a conversation."""
        self._check_adapter(asked.adapter)
        return await self.run(Steps(deadline=self.deadline, steps=self._begin(encoded, asked)))

    def _begin(self, encoded: Any, asked: schemas.SessionRequest) -> Iterator[Final]:
        from self1e.inference.session import Session

        settings, model = self._service.settings, self._service.model
        reach = getattr(model.model.config.text_config, "max_position_embeddings", None) or settings.max_chat_tokens
        session = Session(
            model,
            encoded,
            max_new_tokens=min(settings.max_new_tokens, 64),
            max_tokens=min(settings.max_chat_tokens, reach),
            **asked.model_dump(),
        )
        yield Final(session)

    def check_turn(self, asked: schemas.TurnRequest) -> None:
        """Hold a turn against the service's own limits."""
        self._check_words([asked.text], 1, "text")
        self._check_adapter(asked.adapter)
        if asked.max_new_tokens is not None and asked.max_new_tokens > self._service.settings.max_new_tokens:
            raise _too_much("max_new_tokens", asked.max_new_tokens, self._service.settings.max_new_tokens)

    def _check_adapter(self, adapter: str | None) -> None:
        if adapter == "off" and "off" not in self._service.adapters:
            raise Refusal(
                422,
                "adapter",
                "adapter: off needs the base model's tensors, which this service does not have; it answers as trained.",
            )


class _Known:
    """Stands in for the model where its logits are there already."""

    def __init__(self, logits: Sequence[Any]) -> None:
        self._left = iter(logits)

    def mask_logits(self, encoded: Any, classes: Sequence[str], **options: Any) -> list[Any]:
        return [next(self._left) for _ in classes]


def _too_much(what: str, count: int, most: int) -> Refusal:
    return Refusal(422, "limit", f"{what}: {count}; this service takes {most} at most.")
