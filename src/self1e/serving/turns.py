"""A turn of a conversation as a stream of server-sent events."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import Future
from contextlib import AsyncExitStack, aclosing
from typing import Any

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from self1e.inference.session import Done, Mask, NotThere, TextDelta
from self1e.serving import schemas
from self1e.serving.answers import found
from self1e.serving.problems import Refusal, problem
from self1e.serving.service import Flight
from self1e.serving.store import KeptSession
from self1e.serving.worker import Final, Steps

KEEP_ALIVE_SECONDS = 15.0
"""After so much silence a comment is sent, so that nothing in between takes the connection for dead."""

_BEGUN = object()


@dataclasses.dataclass(frozen=True)
class _End:
    error: BaseException | None
    value: Any


class Turn:
    """A question on its way to an answer.

    Args:
        flight: Of the request.
        kept: The conversation; it takes one turn at a time.
        asked: What is asked.
    """

    def __init__(self, flight: Flight, kept: KeptSession, asked: schemas.TurnRequest) -> None:
        self._flight = flight
        self._formats = asked.formats
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._kept = kept
        self._job = Steps(deadline=flight.deadline, steps=self._steps(kept.session, asked), tell=self._tell)

    async def begin(self) -> None:
        """Ask; returns when the answer is being written.

        Raises:
            Refusal: Another turn is being written, or the conversation is deleted before this one has begun.
            PromptError: The question does not fit.
        """
        if self._kept.is_busy:
            raise Refusal(409, "session-busy", "Another turn of this conversation is being written.")
        self._kept.turn = self._job
        self._job.future.add_done_callback(self._finish)
        try:
            self._flight.submit(self._job)
        except BaseException as error:
            self._job.fail(error)
            raise
        try:
            first = await self._flight.wait(self._events.get())
        except BaseException:
            self._job.cancel()
            raise
        if isinstance(first, _End) and first.error is not None:
            raise first.error

    @staticmethod
    def _steps(session: Any, asked: schemas.TurnRequest) -> Generator[Any]:
        """Run in the model's thread, a token at a time: other requests take their turns in between."""
        options = asked.model_dump(include={"max_new_tokens", "adapter", "temperature", "top_p", "seed"})
        events = session.ask(asked.text, mode=asked.mode, kind=asked.kind, **options)
        try:
            yield _BEGUN
            for event in events:
                yield Final(event) if isinstance(event, Done) else event
        finally:
            events.close()  # what was written stays in the conversation

    def _tell(self, item: Any) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, item)

    def _finish(self, future: Future[Any]) -> None:
        error = future.exception()
        self._kept.turn = None
        self._tell(_End(error, None if error is not None else future.result()))

    async def stream(self, request_id: str) -> AsyncGenerator[bytes]:
        """Yield events as they come; the last one is ``done`` or ``problem``."""
        try:
            while True:
                item = await self._next()
                if item is None:
                    yield b": still at work\n\n"
                elif isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    yield _event("done", schemas.DoneEvent(**dataclasses.asdict(item.value)))
                    return
                else:
                    yield await self._written(item)
        except ClientDisconnect:
            raise
        except Exception as error:
            yield _event("problem", problem(error, request_id))
        finally:
            self._job.cancel()

    async def _next(self) -> Any:
        """Return the next item, or None after a while without one."""

        async def get() -> Any:
            try:
                return await asyncio.wait_for(self._events.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                return None

        return await self._flight.wait(get())

    async def _written(self, item: TextDelta | Mask | NotThere) -> bytes:
        if isinstance(item, TextDelta):
            return _event("text", schemas.TextEvent(text=item.text))
        one = (await self._flight.write(lambda: found(item.segmentation, self._formats)))[0]
        if isinstance(item, NotThere):
            return _event("not_there", one.model_copy(update={"score": round(item.score, 6)}))
        return _event("mask", one)


def _event(name: str, content: BaseModel) -> bytes:
    # On one line: a bare line break inside of data would end it.
    return f"event: {name}\ndata: {json.dumps(content.model_dump())}\n\n".encode()


class EventStream(Response):
    """A turn as a response; it holds the request's place until the last event is sent.

    Args:
        turn: Begun.
        request: That asked.
        place: Is closed at the end.
    """

    media_type = "text/event-stream"

    def __init__(self, turn: Turn, request: Request, place: AsyncExitStack) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._turn, self._request_id, self._place = turn, request.state.request_id, place

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Send events until the turn ends or the client leaves."""
        async with self._place, aclosing(self._turn.stream(self._request_id)) as events:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
