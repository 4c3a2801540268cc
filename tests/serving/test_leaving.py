"""Clients that leave, uploads that do not arrive, and a service that stops: below HTTP, where these can be staged."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from self1e.errors import PictureError
from self1e.serving import schemas
from self1e.serving.app import create_app
from self1e.serving.problems import Refusal
from self1e.serving.settings import ServiceSettings
from self1e.serving.worker import Job

pytestmark = pytest.mark.usefixtures("one_thread")


class Call:
    """One request to an application, whose parts come and whose client leaves when a test says so."""

    def __init__(
        self, app: Any, path: str, content: Any = None, *, complete: bool = True, method: str = "POST"
    ) -> None:
        self._app = app
        self.parts: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.status = 0
        self.body = b""
        self.sent = asyncio.Event()
        body = json.dumps(content).encode()
        self.parts.put_nowait({"type": "http.request", "body": body, "more_body": not complete})
        self._scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip

    def leave(self) -> None:
        self.parts.put_nowait({"type": "http.disconnect"})

    async def run(self) -> Call:
        await self._app(self._scope, self.parts.get, self._send)
        return self

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.body += message.get("body", b"")
        self.sent.set()

    def json(self) -> Any:
        return json.loads(self.body)


def staged(test: Callable[..., Coroutine[Any, Any, None]], model: Any, scene: Any, **settings: Any) -> None:
    """Run a test inside a running service, with a kept picture."""

    async def run() -> None:
        app = create_app(model, ServiceSettings(**settings))
        async with app.router.lifespan_context(app):
            service = app.state.service
            await test(app, service, service.store.add(model.encode(scene)))

    asyncio.run(asyncio.wait_for(run(), 280))


def test_work_of_a_client_that_left_is_dropped(held, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        held.go.clear()
        held.passes.clear()
        held.is_in.clear()
        path = schemas.IMAGE_SEGMENT.format(image_id=image.id)
        first, second = Call(app, path, {"queries": ["first"]}), Call(app, path, {"queries": ["second"]})
        tasks = [asyncio.create_task(first.run())]
        await asyncio.to_thread(held.is_in.wait, 200)
        tasks.append(asyncio.create_task(second.run()))
        while service.accepted < 2:
            await asyncio.sleep(0.005)
        second.leave()
        await tasks[1]
        assert service.accepted == 1  # its place is free at once
        assert second.body == b""
        held.go.set()
        await tasks[0]
        assert first.status == 200
        await Call(app, path, {"queries": ["third"]}).run()
        assert {word for one in held.passes for words in one for word in words} == {"first", "third"}
        value = service.metrics.registry.get_sample_value
        labels = {"method": "POST", "route": schemas.IMAGE_SEGMENT, "status": "499"}
        assert value("self1e_requests_total", labels) == 1

    staged(test, held, scene)


def test_a_conversation_goes_on_after_its_client_left(nano, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        begun = await Call(app, schemas.IMAGE_SESSIONS.format(image_id=image.id), {"mode": "text"}).run()
        path = schemas.SESSION_TURNS.format(session_id=begun.json()["id"])
        kept = service.store.get_session(begun.json()["id"])[1]
        step = asyncio.Event()
        loop = asyncio.get_running_loop()
        original = kept.session.ask

        def endless(*arguments: Any, **options: Any) -> Any:
            event = next(original(*arguments, **options))
            while True:
                loop.call_soon_threadsafe(step.set)
                time.sleep(0.01)
                yield event

        kept.session.ask = endless
        call = Call(app, path, {"text": "How many circles are there?", "max_new_tokens": 8})
        task = asyncio.create_task(call.run())
        await step.wait()
        busy = await Call(app, path, {"text": "And?"}).run()
        assert (busy.status, busy.json()["type"]) == (409, "urn:self1e:session-busy")
        call.leave()
        await task
        while kept.is_busy:
            await asyncio.sleep(0.005)
        kept.session.ask = original
        again = await Call(app, path, {"text": "the star", "mode": "segment"}).run()
        assert again.status == 200
        assert b"event: done" in again.body
        assert service.accepted == 0

    staged(test, nano, scene)


def problem_at_the_end(call: Call) -> Any:
    """The last event of a turn that broke off."""
    name, data = call.body.decode().split("\n\n")[-2].split("\n")
    assert name == "event: problem"
    return json.loads(data.removeprefix("data: "))


async def begun(app: Any, service: Any, image: Any) -> tuple[str, str, Any]:
    """Begin a conversation: its path, that of its turns, and what is kept of it."""
    answer = await Call(app, schemas.IMAGE_SESSIONS.format(image_id=image.id), {"mode": "text"}).run()
    session_id = answer.json()["id"]
    places = [path.format(session_id=session_id) for path in (schemas.SESSION, schemas.SESSION_TURNS)]
    return places[0], places[1], service.store.get_session(session_id)[1]


@pytest.mark.parametrize("with_its_picture", [False, True])
def test_deleting_a_conversation_ends_the_turn_that_is_being_written(nano, scene, with_its_picture):
    async def test(app: Any, service: Any, image: Any) -> None:
        place, turns, kept = await begun(app, service, image)
        bytes_before, session = service.store.bytes, weakref.ref(kept.session)
        step, closed = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()
        event = next(kept.session.ask("How many?", max_new_tokens=2))

        def endless(*arguments: Any, **options: Any) -> Any:
            try:
                while True:
                    loop.call_soon_threadsafe(step.set)
                    time.sleep(0.01)
                    yield event
            finally:
                closed.set()

        kept.session.ask = endless
        call = Call(app, turns, {"text": "How many circles are there?"})
        task = asyncio.create_task(call.run())
        await step.wait()
        gone = Call(app, schemas.IMAGE.format(image_id=image.id) if with_its_picture else place, method="DELETE")
        assert (await gone.run()).status == 204
        await task
        assert call.status == 200
        told = problem_at_the_end(call)
        assert (told["status"], told["type"]) == (410, "urn:self1e:session")
        assert await asyncio.to_thread(closed.wait, 100)
        assert service.store.bytes == (0 if with_its_picture else bytes_before - kept.bytes)
        del kept, call, task, endless
        while service.worker._jobs or service.accepted:
            await asyncio.sleep(0.005)
        for _ in range(20):
            gc.collect()
            if session() is None:
                break
            await asyncio.sleep(0.1)
        assert session() is None  # nobody holds its memory

    staged(test, nano, scene)


def test_deleting_a_conversation_ends_the_turn_that_waits(held, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        place, turns, kept = await begun(app, service, image)
        held.is_in.clear()
        held.go.clear()
        first = asyncio.create_task(
            Call(app, schemas.IMAGE_SEGMENT.format(image_id=image.id), {"queries": ["x"]}).run()
        )
        await asyncio.to_thread(held.is_in.wait, 200)
        waiting = Call(app, turns, {"text": "How many?"})
        task = asyncio.create_task(waiting.run())
        while not kept.is_busy:
            await asyncio.sleep(0.005)
        assert (await Call(app, place, method="DELETE").run()).status == 204
        await task  # at once: the model is still at work on the other request
        assert not first.done()
        assert (waiting.status, waiting.json()["type"]) == (410, "urn:self1e:session")
        held.go.set()
        assert (await first).status == 200
        assert (await Call(app, turns, {"text": "How many?"}).run()).status == 404
        assert not kept.session.turns

    staged(test, held, scene)


def test_room_is_made_of_idle_pictures_before_one_whose_conversation_is_at_work(nano, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        store = service.store
        _, _, kept = await begun(app, service, image)
        kept.turn = Job(deadline=math.inf)
        idle = store.add(nano.encode(scene))
        store._budget = store.bytes
        newest = store.add(nano.encode(scene))
        assert set(store._images) == {image.id, newest.id}
        store._seconds = -1.0
        store.purge()
        assert set(store._images) == {image.id}  # a turn is a use
        store._budget, store._seconds = image.picture_bytes, 3600.0
        store.add(nano.encode(scene))
        assert image.id not in store._images  # there was no other room
        assert idle.id not in store._images
        refusal = kept.turn.future.exception()
        assert isinstance(refusal, Refusal)
        assert (refusal.status_code, kept.turn.is_cancelled) == (410, True)

    staged(test, nano, scene)


def test_a_late_turn_ends_with_a_problem(nano, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        begun = await Call(app, schemas.IMAGE_SESSIONS.format(image_id=image.id), {"mode": "text"}).run()
        kept = service.store.get_session(begun.json()["id"])[1]
        original = kept.session.ask

        def endless(*arguments: Any, **options: Any) -> Any:
            event = next(original(*arguments, **options))
            while True:
                yield event

        kept.session.ask = endless
        call = Call(app, schemas.SESSION_TURNS.format(session_id=begun.json()["id"]), {"text": "How many?"})
        call._scope["headers"].append((schemas.DEADLINE.lower().encode(), b"2"))
        await call.run()
        assert call.status == 200
        assert problem_at_the_end(call)["status"] == 504

    staged(test, nano, scene)


def test_pixels_of_a_request_that_has_ended_are_not_counted(nano):
    from types import SimpleNamespace

    from self1e.serving.service import Flight, Service

    service = Service(nano, ServiceSettings(max_pixels=100))
    request: Any = SimpleNamespace(state=SimpleNamespace(start=0.0))
    flight = Flight(service, request, None)
    flight._admit(10, 10)
    assert service.pixels == 100
    flight.close()
    with pytest.raises(PictureError):
        flight._admit(10, 10)  # its decoder's thread was slower than its client's patience
    assert service.pixels == 0


def test_an_upload_that_does_not_arrive(nano, scene):
    async def test(app: Any, service: Any, image: Any) -> None:
        slow = await Call(app, schemas.SEGMENT, {"queries": ["x"]}, complete=False).run()
        assert (slow.status, slow.json()["type"]) == (408, "urn:self1e:upload")
        cut = Call(app, schemas.SEGMENT, {"queries": ["x"]}, complete=False)
        cut.leave()
        assert (await cut.run()).body == b""
        assert service.metrics.registry.get_sample_value("self1e_upload_bytes") == 0

    staged(test, nano, scene, upload_seconds=1.0)


def test_stopping_finishes_accepted_work_and_refuses_more(held, scene):
    finished: list[Call] = []

    async def run() -> None:
        app = create_app(held, ServiceSettings())
        tasks = []
        async with app.router.lifespan_context(app):
            service = app.state.service
            image = service.store.add(held.encode(scene))
            path = schemas.IMAGE_SEGMENT.format(image_id=image.id)
            held.is_in.clear()
            held.go.clear()
            calls = [Call(app, path, {"queries": [f"number {k}"]}) for k in range(5)]
            tasks = [asyncio.create_task(call.run()) for call in calls]
            while service.accepted < 5:
                await asyncio.sleep(0.005)
            await asyncio.to_thread(held.is_in.wait, 200)
            service.is_draining = True  # what the signal does
            refused = await Call(app, path, {"queries": ["more"]}).run()
            assert (refused.status, refused.json()["type"]) == (503, "urn:self1e:stopping")
            asyncio.get_running_loop().call_later(0.1, held.go.set)
        await asyncio.gather(*tasks)
        finished.extend(calls)

    asyncio.run(asyncio.wait_for(run(), 280))
    assert [call.status for call in finished] == [200] * 5
