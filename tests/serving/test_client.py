"""The client: what it gives, what it says when things go wrong, how long it waits. Against a service that plays a
script, where the real one could not be made to do it, and against the real one on a port of its own."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.client import Client, Done, Mask, RemoteImage, ServiceError, Text
from self1e.errors import PictureError, SettingError
from self1e.processing.pictures import open_picture

IMAGE = RemoteImage("abc", 4, 2, (1, 1), (), 1, 1.0)
FOUND = {
    "query": "x", "score": 0.5, "not_there": False, "area": 8, "box_xyxy": [0, 0, 4, 2], "text": "[SEG].",
    "rle": {"size": [2, 4], "counts": "08"}, "polygons": None, "png": None,
}  # fmt: skip
ANSWER = {"model": "nano", "width": 4, "height": 2, "results": [FOUND]}
DONE = {
    "text": "It is [SEG].", "mode": "auto", "decision": "segment", "probability": 0.9, "stopped": "end",
    "new_tokens": 3, "prompt_tokens": 5, "known_tokens": 0, "dropped_turns": 0,
}  # fmt: skip


# ---------------------------------------------------------------------- a service that plays a script


class Script:
    """Answers one request after the other as it was told, and keeps what was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.asked.append((self.command, self.path, dict(self.headers), body))
                status, headers, content = script.answers.pop(0)
                if not status:  # dies
                    self.close_connection = True
                    return
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                self.close_connection = headers.get("Connection") == "close"

            do_GET = do_POST = do_DELETE = _do

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def say(self, status: int, content: Any = None, **headers: str) -> None:
        """Add an answer."""
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.answers.append((status, {name.replace("_", "-"): value for name, value in headers.items()}, body))

    def refuse(self, status: int, kind: str = "busy", **headers: str) -> None:
        """Add a refusal."""
        told = {"type": f"urn:self1e:{kind}", "title": "x", "status": status, "detail": "No.", "request_id": "r1"}
        self.say(status, told, **headers)


@pytest.fixture
def script() -> Iterator[Script]:
    script = Script()
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited, each time."""
    waits: list[float] = []
    monkeypatch.setattr("self1e.client.time.sleep", waits.append)
    return waits


def test_a_busy_service_is_asked_again_when_it_says(script: Script, waits: list[float]) -> None:
    script.refuse(429, Retry_After="7")
    script.refuse(503, "stopping", Retry_After="1000")
    script.refuse(429)
    script.refuse(429, Retry_After="Mon, 01 Jan 2001 00:00:00 GMT")  # is over
    script.say(200, ANSWER)
    result = Client(script.url, longest_wait=20).segment(IMAGE, "x")
    assert waits == [7, 20, 2.0, 0]
    assert result.mask().all()
    assert len({body for _, _, _, body in script.asked}) == 1


def test_a_service_that_stays_busy_is_given_up(script: Script, waits: list[float]) -> None:
    for _ in range(3):
        script.refuse(429, Retry_After="1")
    with pytest.raises(ServiceError, match=r"No\. \(status 429, request r1\)") as caught:
        Client(script.url, retries=2).segment(IMAGE, "x")
    assert (caught.value.status, caught.value.kind, caught.value.request_id) == (429, "busy", "r1")
    assert caught.value.retry_after == 1
    assert waits == [1, 1]
    assert len(script.asked) == 3


def turned() -> Image.Image:
    """A JPEG that says it lies on its side, as a camera writes it; opened, not yet decoded."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.effect_mandelbrot((40, 20), (-2, -1, 1, 1), 50).convert("RGB").save(file, "jpeg", exif=exif)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["CMYK", "F", "I;16", "I", "LAB", "HSV", "PA", "1", "RGBA", "turned"])
def test_a_picture_that_is_open_is_sent_as_the_model_would_see_it(script: Script, mode: str) -> None:
    picture = turned() if mode == "turned" else Image.new(mode, (5, 3))
    script.say(200, ANSWER)
    Client(script.url).segment(picture, "x")
    sent = script.asked[0][3]
    start = sent.index(b"\x89PNG")
    with Image.open(io.BytesIO(sent[start : sent.rindex(b"\r\n--")])) as arrived:
        assert np.array_equal(np.asarray(arrived), np.asarray(open_picture(picture).image))


@pytest.mark.parametrize("picture", ["a\0b.png", ".", Image.new("RGB", (0, 0))])
def test_a_picture_that_cannot_be_read_is_no_riddle(script: Script, picture: Any) -> None:
    with pytest.raises(PictureError):
        Client(script.url).segment(picture, "x")
    assert script.asked == []


def test_a_refusal_is_not_repeated(script: Script, waits: list[float]) -> None:
    errors = [{"loc": ["queries"], "msg": "is empty"}]
    script.say(422, {"type": "urn:self1e:request", "status": 422, "detail": "queries: is empty", "errors": errors})
    with pytest.raises(ServiceError, match=r"queries: is empty \(status 422\)") as caught:
        Client(script.url).segment(IMAGE, [])
    assert caught.value.errors == tuple(errors)
    assert (waits, len(script.asked)) == ([], 1)


def test_an_answer_of_something_in_between_is_told(script: Script) -> None:
    script.say(502, b"<html>bad gateway")
    with pytest.raises(ServiceError, match=r"502 Bad Gateway; the answer is not one of self1e's"):
        Client(script.url).models()


def test_a_request_says_who_asks_and_for_how_long(script: Script) -> None:
    script.say(200, {"models": [{"id": "nano"}], "limits": {"max_queries": 64}})
    client = Client(script.url + "/below/", key="0123456789abcdef", timeout=7)
    assert client.models().limits == {"max_queries": 64}
    _, path, headers, _ = script.asked[0]
    assert path == "/below/v1/models"
    assert headers["Authorization"] == "Bearer 0123456789abcdef"
    assert float(headers["X-Deadline-Seconds"]) == 7
    assert "0123456789abcdef" not in repr(client)


def test_a_connection_is_used_again_and_made_anew_when_it_is_gone(script: Script, waits: list[float]) -> None:
    client = Client(script.url)
    script.say(200, ANSWER)
    client.segment(IMAGE, "x")
    script.say(0)  # closed while it was idle, as far as the client can see
    script.say(200, ANSWER)
    assert client.segment(IMAGE, "x").areas.tolist() == [8]
    assert [body for *_, body in script.asked[1:]] == [script.asked[1][3]] * 2
    script.say(0)
    script.say(0)
    with pytest.raises(ServiceError, match="has closed the connection without an answer"):
        client.segment(IMAGE, "x")
    assert waits == []


def test_nobody_there_is_told_and_is_not_ready() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = Client(f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ServiceError, match=r"cannot be reached: .*Is self1e serve running there"):
            client.models()
        assert client.ready() is False


def test_a_silent_service_is_not_waited_for_without_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.3)
        start = time.monotonic()
        with pytest.raises(ServiceError, match=r"no answer within timeout=0\.3"):
            client.models()
        assert time.monotonic() - start < 60


def stream(*events: tuple[str, Any]) -> bytes:
    return b": still at work\n\n" + b"".join(
        f"event: {name}\ndata: {json.dumps(content)}\n\n".encode() for name, content in events
    )


def test_a_turn_gives_its_events(script: Script, waits: list[float]) -> None:
    script.say(201, {"id": "s/1"})
    script.refuse(429, Retry_After="3")
    empty = FOUND | {"not_there": True, "score": 0.25, "area": 0, "rle": {"size": [2, 4], "counts": "8"}}
    script.say(
        200, stream(("text", {"text": "It "}), ("news", {}), ("mask", FOUND), ("not_there", empty), ("done", DONE))
    )
    events = list(Client(script.url).chat(IMAGE).ask("Where?"))
    assert events[0] == Text("It ")
    first, second = events[1:3]
    assert isinstance(first, Mask)
    assert isinstance(second, Mask)
    assert (first.score, first.segmentation.areas.tolist()) == (0.5, [8])
    assert (second.score, second.segmentation.is_empty.tolist()) == (0.25, [True])
    assert events[3] == Done(**DONE)
    assert waits == [3]
    assert script.asked[-1][1] == "/v1/sessions/s%2F1/turns"
    assert not any(name in str(script.asked) for name in ("adapter", "seed", "top_p"))  # older services refuse them


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (stream(("text", {"text": "a"})), "has broken off"),
        (stream(("text", {"text": "a"}), ("problem", {"detail": "Late.", "status": 504})), r"Late\. \(status 504\)"),
    ],
    ids=["cut", "problem"],
)  # fmt: skip
def test_a_turn_that_ends_badly_says_so(script: Script, content: bytes, told: str) -> None:
    script.say(201, {"id": "s"})
    script.say(200, content)
    events = Client(script.url).chat(IMAGE).ask("Where?")
    assert next(events) == Text("a")
    with pytest.raises(ServiceError, match=told):
        next(events)


@pytest.mark.parametrize(
    "settings",
    [{"url": "localhost:8000"}, {"url": "ftp://x"}, {"timeout": 0}, {"retries": -1}, {"key": "clé"}, {"key": ""}],
)
def test_a_setting_that_cannot_work_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError):
        Client(**settings)


def test_a_picture_that_is_not_there_is_told() -> None:
    with pytest.raises(PictureError, match=r"no-such\.png: cannot be read"):
        Client().upload("no-such.png")


# ---------------------------------------------------------------------- the real service


KEY = "a-key-of-these-tests"


@pytest.fixture(scope="module")
def serve(nano: Any) -> Iterator[Callable[..., str]]:
    """Start the service on a free port: ``serve(max_queries=2)`` gives its address."""
    from self1e.serving.app import create_app
    from self1e.serving.server import Server
    from self1e.serving.settings import ServiceSettings

    running: list[tuple[Any, threading.Thread]] = []

    def start(model: Any = nano, **settings: Any) -> str:
        chosen = ServiceSettings(port=0, **settings)
        server = Server(create_app(model, chosen), chosen)
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(250)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def client(serve: Callable[..., str]) -> Client:
    client = Client(serve(api_keys=(KEY,), max_queries=3), key=KEY)
    assert client.ready()
    return client


def test_masks_are_those_of_the_model(client: Client, nano: Any, scene: Image.Image) -> None:
    queries = ["the red circle", "a zebra", 'the "blue" größte square']
    direct = nano.segment(scene, queries)
    image = client.upload(scene)
    assert (image.width, image.height) == scene.size
    for remote in (client.segment(image, queries), client.segment(scene, queries)):
        assert remote.queries == tuple(queries)
        assert np.array_equal(remote.masks, direct.masks)
        np.testing.assert_allclose(remote.scores, direct.scores, atol=1e-5)
        assert replace(remote, image=scene).overlay().size == scene.size
    client.forget(image)
    with pytest.raises(ServiceError) as caught:
        client.segment(image, queries)
    assert caught.value.status == 404


def test_options_arrive(client: Client, nano: Any, scene: Image.Image) -> None:
    options: dict[str, Any] = {"kind": "phrase", "threshold": -1.5, "reject": False}
    direct = nano.segment(scene, ["the circle"], **options).parts(min_area=20)
    file = io.BytesIO()
    scene.save(file, "png")
    remote = client.segment(file.getvalue(), "the circle", split=True, min_area=20, **options)
    assert remote.queries == direct.queries
    assert np.array_equal(remote.masks, direct.masks)


def test_maps_are_those_of_the_model(client: Client, nano: Any, scene: Image.Image) -> None:
    classes = ["circle", "square"]
    image = client.upload(scene)
    for background in (0.0, None):
        direct = nano.semantic(scene, classes, background=background)
        for remote in (
            client.semantic(image, classes, background=background),
            client.semantic(scene, classes, background=background),
        ):
            assert np.array_equal(remote.labels, direct.labels)
            assert (remote.classes, remote.background) == (direct.classes, background)
            assert np.array_equal(remote.palette, direct.palette)


def test_a_conversation_has_words_and_masks(client: Client, scene: Image.Image) -> None:
    conversation = client.chat(client.upload(scene))
    events = list(conversation.ask("the circle", mode="segment"))
    assert any(isinstance(event, Mask) and event.segmentation.size_wh == scene.size for event in events)
    assert isinstance(events[-1], Done)
    assert events[-1].decision == "segment"
    events = list(conversation.ask("What colour is it?", mode="text", max_new_tokens=4))
    done = events[-1]
    assert isinstance(done, Done)
    assert done.text == "".join(event.text for event in events if isinstance(event, Text))
    conversation.close()


def test_how_words_are_chosen_arrives(client: Client, nano: Any, scene: Image.Image) -> None:
    conversation = client.chat(client.upload(scene), mode="text", temperature=1.5, seed=7)
    direct = nano.session(scene, mode="text", temperature=1.5, seed=7)
    for options in ({}, {"temperature": 0.0}, {"top_p": 0.4, "seed": 9}):
        *_, remote = conversation.ask("What?", max_new_tokens=12, **options)
        *_, expected = direct.ask("What?", max_new_tokens=12, **options)
        assert isinstance(remote, Done)
        assert (remote.text, remote.adapter) == (expected.text, "on")
    assert client.models().models[0]["adapters"] == ["on"]
    with pytest.raises(ServiceError) as caught:
        next(conversation.ask("What?", adapter="off"))
    assert (caught.value.status, caught.value.kind) == (422, "adapter")


def test_refusals_of_the_service_are_errors_with_its_words(client: Client, scene: Image.Image) -> None:
    with pytest.raises(ServiceError, match="3") as caught:
        client.segment(scene, ["a"] * 4)
    assert caught.value.status == 422
    assert caught.value.request_id
    with pytest.raises(ServiceError, match="API key") as caught:
        Client(client.url, key="another-key-than-that").models()
    assert caught.value.status == 401
    with pytest.raises(ServiceError) as caught:
        client.upload(b"no picture")
    assert (caught.value.status, caught.value.kind) == (422, "picture")


def test_a_body_that_is_too_large_is_told_however_far_it_came(serve: Callable[..., str]) -> None:
    client = Client(serve(max_body_bytes=100_000))
    with pytest.raises(ServiceError, match="larger than") as caught:
        client.upload(bytes(30_000_000))
    assert caught.value.status == 413


def test_threads_share_a_client(client: Client, nano: Any, scene: Image.Image) -> None:
    queries = ["the red circle", "the square", "the triangle"]
    direct = [nano.segment(scene, query) for query in queries]
    image = client.upload(scene)
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.segment(image, queries[number % 3])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for number, result in found.items():
        assert np.array_equal(result.masks, direct[number % 3].masks)
    assert len(found) == 9
