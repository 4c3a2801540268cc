"""Every endpoint gives what the direct call gives."""

from __future__ import annotations

import base64
import io
import json
import threading
from typing import Any

import numpy as np
import pytest
from PIL import Image

from self1e.inference.base_answers import load_with_base
from self1e.inference.exports.records import entries
from self1e.inference.session import Done, Mask, NotThere, Session, TextDelta
from self1e.serving import schemas
from self1e.structures import decode_rle

pytestmark = pytest.mark.usefixtures("one_thread")

QUERIES = ["the pentagons", "What is the largest?", "the green square"]  # a nano that finds none of them is broken


@pytest.fixture(scope="module")
def image(client, picture) -> dict[str, Any]:
    answer = client.post(schemas.IMAGES, files={"picture": ("scene.png", picture)})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/images/{answer.json()['id']}"
    return answer.json()


def same(results: list[dict[str, Any]], direct: Any) -> bool:
    """True if answers say what the direct call's result says, but for the last digits of scores."""
    expected = [{"not_there": one.pop("is_empty"), **one, "polygons": None, "png": None} for one in entries(direct)]
    assert [one["score"] for one in results] == pytest.approx([one["score"] for one in expected], abs=2e-6)
    return [one | {"score": 0} for one in results] == [one | {"score": 0} for one in expected]


def test_an_uploaded_picture_is_described(client, image, scene):
    assert (image["width"], image["height"], image["tiles"]) == (*scene.size, [1, 1])
    assert image["bytes"] > 4 * scene.width * scene.height
    assert 3590 < image["expires_in"] <= 3600
    changing = {"expires_in": 0, "bytes": 0}  # a conversation about it counts as well
    assert client.get(f"/v1/images/{image['id']}").json() | changing == image | changing


def test_queries_about_an_uploaded_picture_equal_the_direct_call(client, image, nano, scene):
    answer = client.post(f"/v1/images/{image['id']}/segment", json={"queries": QUERIES})
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert (content["model"], content["width"], content["height"]) == ("nano", *scene.size)
    assert same(content["results"], nano.segment(scene, QUERIES))
    assert any(not one["not_there"] for one in content["results"])


def test_polygons_and_pngs_are_the_mask(client, image):
    content = {"queries": QUERIES, "formats": ["rle", "polygons", "png"]}
    for one in client.post(f"/v1/images/{image['id']}/segment", json=content).json()["results"]:
        mask = decode_rle(one["rle"] | {"counts": one["rle"]["counts"].encode()})
        with Image.open(io.BytesIO(base64.b64decode(one["png"]))) as png:
            assert np.array_equal(np.asarray(png) == 255, mask)
        doubled = sum(area(ring["exterior"]) - sum(map(area, ring["holes"])) for ring in one["polygons"])
        assert doubled == 2 * one["area"] == 2 * mask.sum()


def area(ring: list[list[int]]) -> int:
    """Twice the area that a ring encloses."""
    x, y = np.array(ring).T
    return abs(int((x * np.roll(y, -1) - y * np.roll(x, -1)).sum()))


def test_no_format_gives_no_mask(client, image):
    content = {"queries": QUERIES[:1], "formats": []}
    one = client.post(f"/v1/images/{image['id']}/segment", json=content).json()["results"][0]
    assert one["rle"] is one["polygons"] is one["png"] is None
    assert set(one) >= {"score", "area", "box_xyxy", "not_there"}


@pytest.mark.parametrize("as_form", [True, False])
def test_one_shot_requests_equal_the_direct_call_and_keep_nothing(client, nano, scene, picture, as_form):
    before = len(client.app.state.service.store)
    options = {"threshold": 0.5, "kind": "phrase", "split": True}
    if as_form:
        data = {"queries": QUERIES, **{name: str(value) for name, value in options.items()}}
        answer = client.post(schemas.SEGMENT, files={"picture": ("x.txt", picture, "text/plain")}, data=data)
    else:
        encoded = "data:image/gif;base64," + base64.b64encode(picture).decode()  # its name and type are not believed
        answer = client.post(schemas.SEGMENT, json={"picture": encoded, "queries": QUERIES, **options})
    assert answer.status_code == 200, answer.text
    direct = nano.segment(scene, QUERIES, threshold=0.5, kind="phrase", return_logits=True).parts()
    assert same(answer.json()["results"], direct)
    assert len(client.app.state.service.store) == before


@pytest.mark.parametrize("kept", [True, False])
def test_a_semantic_map_equals_the_direct_call(client, image, nano, scene, picture, kept):
    classes = ["circle", "square", "star"]
    if kept:
        answer = client.post(f"/v1/images/{image['id']}/semantic", json={"classes": classes, "background": None})
    else:
        data = {"classes": classes, "background": "null"}
        answer = client.post(schemas.SEMANTIC, files={"picture": ("p", picture)}, data=data)
    assert answer.status_code == 200, answer.text
    content, direct = answer.json(), nano.semantic(scene, classes, background=None)
    with Image.open(io.BytesIO(base64.b64decode(content["png"]))) as png:
        assert np.array_equal(np.asarray(png), direct.labels)
    assert [one["name"] for one in content["classes"]] == classes
    assert [one["area"] for one in content["classes"]] == direct.areas.tolist()
    assert content["background"] is None


def test_parallel_requests_share_passes_and_equal_direct_calls(start, held, nano, scene, picture):
    client = start(held, batch_queries=8)
    image = client.post(schemas.IMAGES, files={"picture": ("p", picture)}).json()["id"]
    held.passes.clear()
    held.is_in.clear()
    held.go.clear()
    words = [[f"the {colour} circle"] for colour in ("red", "green", "blue", "yellow", "black", "white")]
    words.append([f"number {k}" for k in range(10)])
    answers: list[Any] = [None] * len(words)

    def ask(k: int) -> None:
        answers[k] = client.post(f"/v1/images/{image}/segment", json={"queries": words[k]})

    threads = [threading.Thread(target=ask, args=(k,)) for k in range(len(words))]
    threads[0].start()
    assert held.is_in.wait(200)
    for thread in threads[1:]:
        thread.start()
    service = client.service
    while len(service.worker._jobs) < len(words) - 1:
        threading.Event().wait(0.005)
    held.go.set()
    for thread in threads:
        thread.join(250)
    assert all(answer.status_code == 200 for answer in answers)
    for queries, answer in zip(words, answers, strict=True):
        assert same(answer.json()["results"], nano.segment(scene, queries))
    assert len(held.passes[0]) == 1
    assert max(map(len, held.passes)) > 1  # they waited together, and went together
    assert max(sum(map(len, one)) for one in held.passes) == 8
    assert sum(sum(map(len, one)) for one in held.passes) == 16


# ---------------------------------------------------------------------- conversations


def events(answer: Any) -> list[tuple[str, dict[str, Any]]]:
    """Read server-sent events."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for block in answer.text.split("\n\n")[:-1]:
        if not block.startswith(":"):
            name, data = block.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def test_a_conversation_equals_a_direct_one(client, image, nano, scene):
    begun = client.post(f"/v1/images/{image['id']}/sessions", json={"mode": "text"})
    assert begun.status_code == 201, begun.text
    session_id = begun.json()["id"]
    direct = Session(nano, scene, mode="text", max_tokens=begun.json()["max_tokens"], max_new_tokens=64)
    for turn in [{"text": "How many circles are there?"}, {"text": "the red circle", "mode": "segment"}]:
        got = events(client.post(f"/v1/sessions/{session_id}/turns", json=turn | {"max_new_tokens": 8}))
        expected = list(direct.ask(turn["text"], mode=turn.get("mode"), max_new_tokens=8))
        names = {TextDelta: "text", Mask: "mask", NotThere: "not_there", Done: "done"}
        assert [name for name, _ in got] == [names[type(event)] for event in expected]
        for (_, content), event in zip(got, expected, strict=True):
            if isinstance(event, TextDelta):
                assert content == {"text": event.text}
            elif isinstance(event, Done):
                assert content["text"] == event.text
                assert content["decision"] == event.decision
                assert content["known_tokens"] == event.known_tokens
                assert content["probability"] == pytest.approx(event.probability, abs=1e-5)
            else:
                assert content["rle"] == event.segmentation.to_coco_rle()[0]
                assert content["score"] == pytest.approx(event.score, abs=2e-6)
    said = client.get(f"/v1/sessions/{session_id}").json()
    assert (said["turns"], said["tokens"], said["image_id"]) == (2, direct.num_tokens, image["id"])
    assert client.delete(f"/v1/sessions/{session_id}").status_code == 204
    assert client.get(f"/v1/sessions/{session_id}").status_code == 404


def test_a_question_that_cannot_be_asked_is_refused_before_the_stream_begins(client, image):
    session_id = client.post(f"/v1/images/{image['id']}/sessions", json={}).json()["id"]
    answer = client.post(f"/v1/sessions/{session_id}/turns", json={"text": " "})
    assert answer.status_code == 422
    assert answer.headers["content-type"] == schemas.PROBLEM_TYPE
    answer = client.post(f"/v1/sessions/{session_id}/turns", json={"text": "the star", "mode": "segment"})
    assert events(answer)[-1][0] == "done"  # and it goes on


def test_drawn_words_equal_those_of_a_direct_conversation(client, image, nano, scene):
    begun = client.post(
        f"/v1/images/{image['id']}/sessions", json={"mode": "text", "temperature": 1.5, "seed": 7}
    ).json()
    settings = {"mode": "text", "max_tokens": begun["max_tokens"], "max_new_tokens": 64}
    direct = Session(nano, scene, temperature=1.5, seed=7, **settings)
    said = []
    for turn in ({}, {"top_p": 0.5}, {"temperature": 0}, {"seed": 8}):
        got = events(
            client.post(f"/v1/sessions/{begun['id']}/turns", json={"text": "What?", "max_new_tokens": 16} | turn)
        )
        *_, end = direct.ask("What?", max_new_tokens=16, **turn)
        assert got[-1][0] == "done"
        assert got[-1][1]["text"] == end.text
        said.append(end.text)
    assert len(set(said)) > 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": 1e9},
        {"top_p": 0},
        {"top_p": 0.5},
        {"seed": -1},
        {"seed": 2**63},
        {"seed": 0.5},
    ],
)
def test_ways_of_drawing_that_cannot_work_are_refused(client, image, wrong):
    at = f"/v1/images/{image['id']}/sessions"
    for answer in (
        client.post(at, json=wrong),
        client.post(f"/v1/sessions/{client.post(at, json={}).json()['id']}/turns", json={"text": "What?"} | wrong),
    ):
        assert answer.status_code == 422
        assert answer.headers["content-type"] == schemas.PROBLEM_TYPE


def test_the_base_is_not_asked_where_it_is_not_at_hand(client, image):
    assert client.get(schemas.MODELS).json()["models"][0]["adapters"] == ["on"]
    at = f"/v1/images/{image['id']}/sessions"
    begun = client.post(at, json={"mode": "text"}).json()["id"]
    for answer in (
        client.post(at, json={"adapter": "off"}),
        client.post(f"/v1/sessions/{begun}/turns", json={"text": "What?", "adapter": "off"}),
    ):
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:self1e:adapter")
        assert "/" not in answer.json()["detail"]  # no path of this machine


def test_words_of_the_base_equal_those_of_a_direct_conversation(start, trained_folder, base_folder, picture, scene):
    model = load_with_base(trained_folder, base_folder, device="cpu")
    client = start(model)
    assert client.get(schemas.MODELS).json()["models"][0]["adapters"] == ["on", "off"]
    image = client.post(schemas.IMAGES, files={"picture": ("scene.png", picture)}).json()
    begun = client.post(f"/v1/images/{image['id']}/sessions", json={"mode": "text", "adapter": "off"}).json()
    direct = Session(model, scene, mode="text", adapter="off", max_tokens=begun["max_tokens"])
    said = []
    for turn in ({}, {"mode": "segment"}, {"adapter": "on"}):
        got = events(
            client.post(f"/v1/sessions/{begun['id']}/turns", json={"text": "What?", "max_new_tokens": 8} | turn)
        )
        *_, end = direct.ask("What?", max_new_tokens=8, **turn)
        assert (got[-1][1]["text"], got[-1][1]["adapter"]) == (end.text, end.adapter)
        said.append((end.adapter, end.text))
    assert [adapter for adapter, _ in said] == ["off", "on", "on"]
    answer = client.post(f"/v1/sessions/{begun['id']}/turns", json={"text": "What?", "mode": "auto", "adapter": "off"})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:self1e:request")


# ---------------------------------------------------------------------- facts


def test_models_health_readiness_and_metrics(client, nano):
    content = client.get(schemas.MODELS).json()
    assert content["models"][0]["id"] == "nano"
    assert content["models"][0]["device"] == "cpu"
    assert content["limits"]["max_queries"] == 64
    assert client.get(schemas.HEALTH).json()["status"] == "ok"
    assert client.get(schemas.READY).json()["status"] == "ready"
    text = client.get(schemas.METRICS).text
    assert 'self1e_requests_total{method="GET",route="/ready",status="200"}' in text
    assert "self1e_cache_bytes" in text


def test_a_model_in_a_folder_is_named_without_it(start, held):
    held.name = "/home/someone/secret/my-model"
    assert start(held).get(schemas.MODELS).json()["models"][0]["id"] == "my-model"


def test_openapi_names_every_route_and_its_problems(client):
    document = client.get("/openapi.json").json()
    paths = {getattr(schemas, name) for name in dir(schemas) if name.isupper() and "/" in str(getattr(schemas, name))}
    assert set(document["paths"]) == paths - {schemas.PROBLEM_TYPE}
    for path in document["paths"].values():
        for operation in path.values():
            problems = operation["responses"]["422"]["content"]
            assert list(problems) == [schemas.PROBLEM_TYPE]
    assert "multipart/form-data" in document["paths"][schemas.SEGMENT]["post"]["requestBody"]["content"]
