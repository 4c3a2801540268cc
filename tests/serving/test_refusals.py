"""What is refused, how, and that nothing is told that should not be."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import threading
import time
from typing import Any

import pytest
from PIL import Image

from self1e.serving import schemas
from self1e.serving.logs import LOGGER, JsonFormatter
from self1e.serving.problems import as_refusal

pytestmark = pytest.mark.usefixtures("one_thread")

KEY = "0123456789abcdef-one"
OTHER = "0123456789abcdef-two"


def is_problem(answer: Any, status: int, kind: str | None = None) -> bool:
    """True if an answer is a problem of this status; fails if it tells too much."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == schemas.PROBLEM_TYPE
    content = answer.json()
    assert content["status"] == status
    assert content["request_id"] == answer.headers[schemas.REQUEST_ID]
    assert content["detail"]
    assert content["title"]
    for leak in ("Traceback", 'File "', "site-packages", "/src/", "0x7f", "object at"):
        assert leak not in answer.text
    assert kind is None or content["type"] == f"urn:self1e:{kind}"
    return True


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/image", 404),
        ("GET", "/docs", 404),
        ("GET", "/v1/images/", 404),
        ("PUT", "/v1/images", 405),
        ("DELETE", "/v1/segment", 405),
        ("TRACE", "/health", 405),
        ("GET", "/v1/images/0123", 404),
        ("DELETE", "/v1/images/0123", 404),
        ("GET", "/v1/sessions/0123", 404),
        ("DELETE", "/v1/sessions/%00%ff", 404),
        ("POST", "/v1/segment", 415),
    ],
)
def test_routes_that_are_not_there(client, method, path, status):
    assert is_problem(client.request(method, path), status)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"queries": ["x"]}',
        b'{"picture": "AAAA"}',
        b'{"picture": "not base64!", "queries": ["x"]}',
        b'{"picture": "AAAA", "queries": ["x"]}',
        b'{"picture": "", "queries": ["x"]}',
        b'{"picture": 5, "queries": ["x"]}',
        b'{"picture": "AAAA", "url": "http://x.org/", "queries": ["x"]}',
        b'{"picture": "AAAA", "queries": []}',
        b'{"picture": "AAAA", "queries": [""]}',
        b'{"picture": "AAAA", "queries": "x"}',
        b'{"picture": "AAAA", "queries": ["x"], "threshold": NaN}',
        b'{"picture": "AAAA", "queries": ["x"], "threshold": 1e999}',
        b'{"picture": "AAAA", "queries": ["x"], "max_tiles": 13}',
        b'{"picture": "AAAA", "queries": ["x"], "formats": ["gif"]}',
        b'{"picture": "AAAA", "queries": ["x"], "unknown": 1}',
        b'{"picture": "AAAA", "queries": ["x"], "\\ud800": 1}',
        b'{"picture": "AAAA", "queries": ["\\ud800"]}',
        b'{"picture": "AAAA", "queries": ["x"], "min_area": ' + b"9" * 5000 + b"}",
        b"[" * 50_000,
        b"\xff\xfe",
    ],
)
def test_bodies_that_make_no_sense(client, content):
    headers = {"content-type": "application/json"}
    assert is_problem(client.post(schemas.SEGMENT, content=content, headers=headers), 422)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"queries": []}', b'{"queries": ["x"], "more": 1}', b"[" * 50_000])
def test_bodies_that_make_no_sense_about_a_kept_picture(client, content):
    answer = client.post("/v1/images/0/segment", content=content, headers={"content-type": "application/json"})
    assert is_problem(answer, answer.status_code)
    assert answer.status_code in (400, 422)


def test_forms_that_make_no_sense(client, picture):
    file = ("p.png", picture)
    for files, data in [
        ({"photo": file}, {"queries": ["x"]}),
        ({"picture": file}, {}),
        ({"picture": file}, {"queries": ["x"], "kind": ["phrase", "phrase"]}),
        ({"picture": file}, {"queries": ["x"], "threshold": "warm"}),
    ]:
        assert is_problem(client.post(schemas.SEGMENT, files=files, data=data), 422)
    assert is_problem(client.post(schemas.SEGMENT, files=[("picture", file), ("picture", file)]), 400)
    cut = b'--b\r\nContent-Disposition: form-data; name="picture"; filename="x"\r\n\r\nabc'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post(schemas.SEGMENT, content=cut, headers=headers)
    assert is_problem(answer, answer.status_code)
    assert 400 <= answer.status_code < 500
    assert is_problem(client.post(schemas.SEGMENT, content=cut, headers={"content-type": "multipart/form-data"}), 400)


def test_the_services_own_limits(start, picture):
    client = start(max_queries=2, max_letters=10, max_classes=2, max_tiles=2, max_new_tokens=8)
    image = client.post(schemas.IMAGES, files={"picture": ("p", picture)}).json()["id"]
    at = f"/v1/images/{image}"
    for path, content in [
        (f"{at}/segment", {"queries": ["a", "b", "c"]}),
        (f"{at}/segment", {"queries": ["a" * 11]}),
        (f"{at}/segment", {"queries": ["a"], "template": "{text}" + "x" * 10}),
        (f"{at}/semantic", {"classes": ["a", "b", "c"]}),
    ]:
        assert is_problem(client.post(path, json=content), 422, "limit")
    for content in ({"queries": ["a"], "template": "no place"}, {"queries": [" "]}):
        assert is_problem(client.post(f"{at}/segment", json=content), 422, "request")
    for classes in (["a", "a"], ["background"], [" "]):
        answer = client.post(f"{at}/semantic", json={"classes": classes})
        assert answer.status_code == 422
    encoded = base64.b64encode(picture).decode()
    answer = client.post(schemas.IMAGES, json={"picture": encoded, "max_tiles": 3})
    assert is_problem(answer, 422, "limit")
    session = client.post(f"{at}/sessions", json={}).json()["id"]
    answer = client.post(f"/v1/sessions/{session}/turns", json={"text": "a", "max_new_tokens": 9})
    assert is_problem(answer, 422, "limit")


def test_pictures_with_too_many_pixels(start):
    client = start(max_pixels=10_000)
    file = io.BytesIO()
    Image.new("L", (101, 100)).save(file, format="PNG")
    answer = client.post(schemas.IMAGES, files={"picture": ("p", file.getvalue())})
    assert is_problem(answer, 422, "picture")
    assert "101x100" in answer.json()["detail"]


def test_a_body_is_counted_while_it_comes(start):
    client = start(max_body_bytes=10_000, upload_bytes=10_000)
    sent = []

    def parts() -> Any:
        for _ in range(100):
            sent.append(1)
            yield b"x" * 1000

    headers = {"content-type": "application/json"}
    assert is_problem(client.post(schemas.SEGMENT, content=parts(), headers=headers), 413, "too-large")
    answer = client.post(schemas.SEGMENT, content=b"x", headers=headers | {"content-length": "10001"})
    assert is_problem(answer, 413, "too-large")
    assert client.service.metrics.registry.get_sample_value("self1e_upload_bytes") == 0  # nothing is held


# ---------------------------------------------------------------------- who may come in


def test_keys(start):
    client = start(api_keys=(KEY, OTHER))
    basic = base64.b64encode(f"me:{KEY}".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer {OTHER}"},
        {"X-API-Key": OTHER},
        {"Authorization": f"Basic {basic}"},
    ):
        assert client.get(schemas.MODELS, headers=headers).status_code == 200
    for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}, {"Authorization": b"Bearer \xff"}):
        answer = client.get(schemas.MODELS, headers=headers)
        assert is_problem(answer, 401, "key")
        assert "WWW-Authenticate" in answer.headers
    assert client.get(schemas.METRICS).status_code == 401
    assert client.get("/openapi.json").status_code == 401
    assert client.get("/nothing").status_code == 401
    assert client.get(schemas.HEALTH).status_code == client.get(schemas.READY).status_code == 200
    assert client.post(schemas.IMAGES, content=b"x" * 100).status_code == 401  # before the body is looked at


def test_without_keys_only_this_machines_names_are_served(client):
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get(schemas.HEALTH, headers={"host": host}).status_code == 200
    for host in ("evil.example", "127.0.0.1.evil.example", "[::2]", ""):
        assert is_problem(client.get(schemas.HEALTH, headers={"host": host}), 421, "host")


def test_web_pages_may_not_ask_unless_named(client, start):
    assert is_problem(client.get(schemas.HEALTH, headers={"origin": "https://evil.example"}), 403, "origin")
    assert is_problem(client.get(schemas.HEALTH, headers={"origin": "null"}), 403, "origin")
    assert client.get(schemas.HEALTH, headers={"origin": "http://127.0.0.1"}).status_code == 200  # our own page
    named = start(origins=["https://good.example"])
    answer = named.get(schemas.HEALTH, headers={"origin": "https://good.example"})
    assert answer.headers["access-control-allow-origin"] == "https://good.example"
    preflight = {"origin": "https://good.example", "access-control-request-method": "POST"}
    assert named.options(schemas.SEGMENT, headers=preflight).status_code == 200
    preflight["origin"] = "https://evil.example"
    assert named.options(schemas.SEGMENT, headers=preflight).status_code == 400
    assert is_problem(named.get(schemas.HEALTH, headers={"origin": "https://evil.example"}), 403)


def test_addresses_are_not_fetched_unless_switched_on(client):
    answer = client.post(schemas.IMAGES, json={"url": "http://127.0.0.1:1/"})
    assert is_problem(answer, 403, "url")


def test_addresses_inside_are_not_fetched(start):
    client = start(fetch_urls=True)
    for url in ("http://127.0.0.1/x.png", "http://169.254.169.254/latest", "file:///etc/passwd", "http://[::1]/"):
        assert is_problem(client.post(schemas.IMAGES, json={"url": url}), 422, "url")


# ---------------------------------------------------------------------- time and room


@contextlib.contextmanager
def asking(client: Any, path: str, content: Any, **options: Any) -> Any:
    """Ask in another thread; yields a list that the answer is put into."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(client.post(path, json=content, **options)))
    thread.start()
    yield answers
    thread.join(250)


def upload(client: Any, picture: bytes) -> str:
    answer = client.post(schemas.IMAGES, files={"picture": ("p", picture)})
    assert answer.status_code == 201, answer.text
    return f"/v1/images/{answer.json()['id']}/segment"


def test_one_request_too_many_is_told_when_to_come_again(start, held, picture):
    client = start(held, max_requests=1)
    path = upload(client, picture)
    held.is_in.clear()
    held.go.clear()
    with asking(client, path, {"queries": ["x"]}) as answers:
        assert held.is_in.wait(200)
        refused = client.post(path, json={"queries": ["y"]})
        assert is_problem(refused, 429, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        held.go.set()
    assert answers[0].status_code == 200
    assert client.post(path, json={"queries": ["y"]}).status_code == 200


def test_a_late_answer_is_504_and_waiting_work_is_dropped(start, held, picture):
    client = start(held)
    path = upload(client, picture)
    held.passes.clear()
    held.is_in.clear()
    held.go.clear()
    with asking(client, path, {"queries": ["x"]}):
        assert held.is_in.wait(200)
        late = client.post(path, json={"queries": ["y"]}, headers={schemas.DEADLINE: "0.05"})
        assert is_problem(late, 504, "deadline")
        held.go.set()
    assert client.post(path, json={"queries": ["z"]}).status_code == 200
    assert {word for one in held.passes for words in one for word in words} == {"x", "z"}
    assert is_problem(client.post(path, json={"queries": ["z"]}, headers={schemas.DEADLINE: "soon"}), 422)


def test_the_least_recently_used_picture_makes_room(start, picture):
    roomy = start()
    size = roomy.post(schemas.IMAGES, files={"picture": ("p", picture)}).json()["bytes"]
    client = start(cache_bytes=2 * size + 100)
    first, second = (upload(client, picture).removesuffix("/segment") for _ in range(2))
    assert client.get(first).status_code == 200  # a use
    third = upload(client, picture).removesuffix("/segment")
    assert [client.get(path).status_code for path in (first, second, third)] == [200, 404, 200]
    assert is_problem(client.post(f"{third}/sessions", json={}), 413, "cache")  # with a conversation it is too large
    assert client.delete(first).status_code == 204
    assert is_problem(client.get(first), 404, "image")
    tiny = start(cache_bytes=1000)
    assert is_problem(tiny.post(schemas.IMAGES, files={"picture": ("p", picture)}), 413, "cache")


def test_pictures_expire(start, picture):
    client = start(image_seconds=0.3)
    path = upload(client, picture).removesuffix("/segment")
    time.sleep(0.35)
    assert is_problem(client.get(path), 404, "image")


# ---------------------------------------------------------------------- what the log says


def test_failures_tell_nothing_and_the_log_holds_no_query(start, held, picture, caplog):
    client = start(held)
    path = upload(client, picture)

    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("the secret query in /home/someone/weights")

    held.segment_batch = fail
    with caplog.at_level(logging.INFO, LOGGER):
        answer = client.post(path, json={"queries": ["secret"]}, headers={schemas.REQUEST_ID: "mine-1"})
    assert is_problem(answer, 500, "internal")
    assert answer.json()["request_id"] == "mine-1"
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == LOGGER]
    lines = [line for line in lines if line["request_id"] == "mine-1"]  # the upload may be told late
    assert {line["level"] for line in lines} == {"error", "info"}
    told = lines[-1]
    assert (told["route"], told["status"], told["queries"]) == (schemas.IMAGE_SEGMENT, 500, 1)
    assert told["bytes_in"] > 0
    assert told["seconds"] > 0
    everything = json.dumps(lines)
    assert "secret" not in everything
    assert path.split("/")[3] not in everything
    assert "RuntimeError" in everything


def test_strange_request_ids_are_replaced(client):
    given = client.get(schemas.HEALTH, headers={schemas.REQUEST_ID: "x" * 65}).headers[schemas.REQUEST_ID]
    assert given != "x" * 65
    assert client.get(schemas.HEALTH, headers={schemas.REQUEST_ID: "a.b-c_1"}).headers[schemas.REQUEST_ID] == "a.b-c_1"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried /x"), RuntimeError("a bug /x")]
)
def test_memory_that_is_short_now_is_no_bug(error):
    refusal = as_refusal(error)
    is_bug = "bug" in str(error)
    assert (refusal.status_code, refusal.kind) == ((500, "internal") if is_bug else (429, "busy"))
    assert ("Retry-After" in (refusal.headers or {})) is not is_bug
    assert "/x" not in str(refusal.detail)
