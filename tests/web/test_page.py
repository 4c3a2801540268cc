"""The page itself: it builds, it answers, it says what is wrong, it asks nobody outside. No browser."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from self1e.errors import MissingDependencyError, SettingError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other packages, while they are imported
    pytest.importorskip("gradio", reason="gradio is not installed: pip install 'self1e[demo]'")
    from fastapi.testclient import TestClient

from self1e.inference.session import Session
from self1e.web.examples import PORTRAIT
from self1e.web.page import application, build, serve

pytestmark = pytest.mark.usefixtures("one_thread")

Call = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def client(tiny_model: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # gradio's and starlette's own
        with TestClient(application(tiny_model), base_url="http://127.0.0.1:7860") as client:
            yield client


def calling(client: Any) -> Call:
    """Press a button in a browser session: what the page's outputs become."""

    def pressed(name: str, *data: Any, session: str = "me") -> list[Any]:
        event = client.post(f"/gradio_api/call/{name}", json={"data": list(data), "session_hash": session})
        assert event.status_code == 200, event.text
        lines = client.get(f"/gradio_api/call/{name}/{event.json()['event_id']}").text
        told = re.findall(r"event: (\w+)\ndata: (.*)\n", lines)
        assert told[-1][0] == "complete", lines[-500:]
        return json.loads(told[-1][1]) or json.loads(told[-2][1])

    return pressed


def uploading(client: Any) -> Callable[[str, bytes], dict[str, Any]]:
    """Give the page a file, as a browser does."""

    def uploaded(name: str, data: bytes) -> dict[str, Any]:
        [path] = client.post("/gradio_api/upload", files={"files": (name, data)}).json()
        return {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}

    return uploaded


@pytest.fixture(scope="module")
def call(client: Any) -> Call:
    return calling(client)


@pytest.fixture(scope="module")
def upload(client: Any) -> Callable[[str, bytes], dict[str, Any]]:
    return uploading(client)


@pytest.fixture(scope="module")
def picture(upload: Any) -> dict[str, Any]:
    return upload("astronaut.jpg", PORTRAIT.read_bytes())


def find(call: Call, picture: Any, queries: str = "a cup\na dog", threshold: float = -6, **more: Any) -> list[Any]:
    return call("find", picture, queries, "auto", 1, threshold, 0.5, **more)


def chat(call: Call, picture: Any, words: str, mode: str, *options: Any, **more: Any) -> list[Any]:
    return call("chat", picture, words, mode, 1, *(options or ("on", 0, 1, None)), **more)


def fetched(client: Any, file: Any) -> bytes:
    file = file.get("value", file)  # what is told anew with other properties comes as an update
    return client.get(f"/gradio_api/file={file['path']}").content


def test_the_page_comes_and_loads_nothing_from_outside(client):
    page = client.get("/").text
    assert "SELF1E" in page
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']([^\"']+)", page)
    assert loaded
    assert not [address for address in loaded if "//" in address]
    css = client.get("/theme.css").text
    assert not re.findall(r"https?://(?!www\.w3\.org/)|@import", css)  # names of XML, which nobody asks for
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert "Model: <b>" in json.dumps(config)


def test_two_queries_become_two_layers_with_score_and_area(call, client, picture):
    status, result, layers, table, _ = find(call, picture)
    assert status == ""
    assert fetched(client, result)[:4] == b"RIFF"  # WebP
    assert [choice[0] for choice in layers["choices"]] == ["a cup", "a dog"]
    assert table.count("<tr>") == 3
    assert "px</small>" in table


def test_the_threshold_changes_masks_without_the_model(call, picture, tiny_model, monkeypatch):
    _, before, _, table, _ = find(call, picture)
    monkeypatch.setattr(type(tiny_model), "mask_logits", None)
    monkeypatch.setattr(type(tiny_model), "encode", None)
    status, stricter, told = call("threshold", 6, ["0", "1"], 0.5)
    assert status == ""
    assert told != table
    assert json.dumps(stricter) != json.dumps(before)


def test_layers_and_opacity_draw_anew(call, picture):
    find(call, picture)
    images = [call("layers", layers, opacity)[1] for layers, opacity in [(["0"], 0.5), ([], 0.5), (["0"], 1)]]
    assert len({json.dumps(image) for image in images}) == 3


def test_sliders_before_anything_was_found_do_nothing(call):
    assert call("threshold", 1, [], 0.5, session="new")[0] == ""
    assert call("layers", [], 0.5, session="new")[0] == ""
    assert call("map_opacity", 0.5, session="new")[0] == ""
    assert call("layer", 1, session="new")[0] == ""


def test_masks_can_be_taken_home(call, client, picture):
    find(call, picture)
    status, file = call("download", ["coco", "mask"])
    assert "astronaut.zip is ready" in status
    with zipfile.ZipFile(io.BytesIO(fetched(client, file))) as archive:
        assert archive.namelist() == ["astronaut.coco.json", "astronaut.mask0.png", "astronaut.mask1.png"]
    status, file = call("download", ["json"])
    assert json.loads(fetched(client, file))["source"] == "astronaut.jpg"
    assert "role='alert'" in call("download", [])[0]
    assert "find something first" in call("download", ["json"], session="new")[0]


def test_a_map_has_a_row_per_class_and_a_file(call, client, picture):
    status, result, table, _ = call("map", picture, "sky, cup", True, 1, 0.5)
    assert status == ""
    assert result
    assert table.count("scope='row'") == 2
    assert call("map_opacity", 1.0)[1] != result
    assert "astronaut.semantic.zip is ready" in call("map_download")[0]
    assert "make one first" in call("map_download", session="new")[0]


def test_a_conversation_has_masks_inline_and_can_be_saved(call, client, picture):
    status, talk, _ = chat(call, picture, "the cup", "segment")
    assert "You asked for a mask" in status
    assert [message["role"] for message in talk][:2] == ["user", "assistant"]
    assert "[SEG]" in json.dumps(talk)
    _, talk, _ = chat(call, picture, "and the dog", "segment")
    assert sum(message["role"] == "user" for message in talk) == 2
    status, file = call("chat_download")
    assert "conversation.json is ready" in status
    assert fetched(client, file)
    assert call("new_chat")[1] == []
    assert "send a message first" in call("chat_download")[0]
    assert "role='alert'" in chat(call, picture, "  ", "auto")[0]


def test_a_saved_conversation_names_no_place_of_this_machine(call, client, picture, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "astronaut.jpg").write_bytes(PORTRAIT.read_bytes())  # not the one that was uploaded, but called like it
    chat(call, picture, "the cup", "segment", session="saving")
    saved = tmp_path / "conversation.json"
    saved.write_bytes(fetched(client, call("chat_download", session="saving")[1]))
    assert json.loads(saved.read_bytes())["picture"]["path"] is None
    assert str(tmp_path) not in saved.read_text("utf-8")
    [turn] = Session.load(saved, tiny_model, picture=PORTRAIT).turns
    assert turn.question == "the cup"


def test_words_are_drawn_as_the_options_say(call, picture):
    def said(name: str, *options: Any) -> str:
        return json.dumps(chat(call, picture, "What?", "text", *options, session=name)[1])

    greedy = said("greedy")
    drawn = said("drawn", "on", 1.5, 0.9, 7)
    assert drawn != greedy
    assert said("again", "on", 1.5, 0.9, 7) == drawn
    assert said("another", "on", 1.5, 0.9, 8) != drawn
    assert said("cold", "on", 0, 0.3, 7) == greedy  # what is switched off has no effect


def test_the_options_that_have_an_effect_are_switched_on(call):
    def switched(*options: Any) -> list[bool]:
        return [update["interactive"] for update in call("chat_options", *options)]

    assert switched("text", 0) == [False, False, False]  # this model's base is not at hand
    assert switched("auto", 0.5) == [False, True, True]


def test_the_base_that_is_not_at_hand_is_not_asked(client, call, picture):
    status, *_ = chat(call, picture, "What?", "text", "off", 0, 1, None, session="no base")
    assert "role='alert'" in status
    assert "The base model&#x27;s tensors are not at hand" in status
    assert "/" not in status.replace("</p>", "")  # no path of this machine
    [radio] = [one for one in client.get("/config").json()["components"] if one["props"].get("elem_id") == "adapter"]
    assert radio["props"]["interactive"] is False
    assert "not at hand" in radio["props"]["info"]


def test_the_base_answers_where_it_is_at_hand(trained_folder, base_folder):
    from self1e.inference.base_answers import load_with_base

    model = load_with_base(trained_folder, base_folder, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with TestClient(application(model), base_url="http://127.0.0.1:7860") as client:
            call = calling(client)
            # Files lie where their content says, and go with the application that took them: not those of the others.
            picture = uploading(client)("astronaut.jpg", PORTRAIT.read_bytes() + b"again")
            assert [update["interactive"] for update in call("chat_options", "text", 0)] == [True, False, False]
            assert [update["interactive"] for update in call("chat_options", "auto", 0)] == [False, False, False]
            status, talk, _ = chat(call, picture, "What?", "text", "off", 0, 1, None)
            assert "from the base model" in status
            expected = model.session(PORTRAIT, max_tiles=1, max_new_tokens=128)
            *_, done = expected.ask("What?", mode="text", adapter="off")
            assert "".join(talk[-1]["content"][0]["text"].split()) == "".join(done.text.split())  # gradio turns tabs
            assert "its own probability" in chat(call, picture, "What?", "text")[0]
            assert "You asked for a mask" in chat(call, picture, "the cup", "segment", "off", 0, 1, None)[0]


@pytest.fixture
def writing(tiny_model: Any) -> tuple[Any, Any, Any, Iterator[Any]]:
    """What happens on a click, a browser's session, what is kept for it, and an answer that is being written."""
    from self1e.web.layout import _Acts
    from self1e.web.workspace import Workspaces

    acts: Any = _Acts(tiny_model, Workspaces())
    request = SimpleNamespace(session_hash="me")
    written = acts.chat(str(PORTRAIT), "What?", "text", 1, "on", 0, 1, None, request)
    for _ in range(3):
        next(written)
    return acts, request, acts._workspaces.of("me"), written


def test_whoever_closes_the_page_ends_the_answer(writing):
    acts, request, space, written = writing
    acts.leave(request)
    list(written)
    assert 0 < len(space.session.turns[0].answer_ids) < 128
    assert acts._workspaces.of("me") is not space


def test_a_new_conversation_ends_the_answer_that_is_being_written(writing):
    acts, request, space, written = writing
    old = space.session
    assert acts.new_chat(request)[1] == []
    assert list(written) == []  # nothing comes back into the page that was cleared
    assert (space.session, space.messages) == (None, ())
    assert 0 < len(old.turns[0].answer_ids) < 128
    *_, last = acts.chat(str(PORTRAIT), "And?", "segment", 1, "on", 0, 1, None, request)
    assert "You asked for a mask" in last[0]


def test_stopping_when_nothing_is_written_is_no_error(call):
    call("stop")


def test_it_shows_how_it_sees(call, picture, tiny_model):
    status, stages, attention = call("see", picture, "the cup", 0)
    assert "of its attention to the picture" in status
    assert len(stages) >= 3
    assert call("layer", 1)[1] != attention


@pytest.mark.parametrize(
    ("name", "content"),
    [("bad.png", b"no picture at all"), ("cut.jpg", PORTRAIT.read_bytes()[:200]), ("empty.png", b"")],
)
def test_a_bad_picture_is_a_message_everywhere(call, upload, name, content):
    bad = upload(name, content)
    for status in (
        call("picture", bad)[0],
        find(call, bad)[0],
        call("map", bad, "sky", False, 1, 0.5)[0],
        chat(call, bad, "what?", "auto")[0],
        call("see", bad, "cup", 0)[0],
    ):
        assert status.startswith("<p class='s1-problem' role='alert'>" + name.partition(".")[0])
        assert "Traceback" not in status
        assert "/tmp" not in status


def test_what_is_missing_is_said(call, picture):
    assert "no picture yet" in find(call, None)[0]
    assert "one thing per line" in find(call, picture, "")[0]
    assert "Name the classes" in call("map", picture, "", False, 1, 0.5)[0]
    assert "look for" in call("see", picture, "", 0)[0]


def test_a_failure_inside_is_said_in_a_line_and_logged(call, picture, tiny_model, monkeypatch, caplog):
    def fail(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("secret /path")

    monkeypatch.setattr(type(tiny_model), "mask_logits", fail)
    status = find(call, picture)[0]
    assert "Something failed inside (RuntimeError)" in status
    assert "secret" not in status
    assert "secret" in caplog.text
    monkeypatch.setattr(
        type(tiny_model), "mask_logits", lambda *a, **b: (_ for _ in ()).throw(RuntimeError("CUDA out of memory"))
    )
    assert "not enough memory" in find(call, picture)[0]


def test_another_picture_clears_the_page(call, picture):
    find(call, picture, session="clearing")
    about, *rest = call("picture", None, session="clearing")
    assert "No picture yet" in about
    assert len(rest) == 15
    assert "find something first" in call("download", ["json"], session="clearing")[0]


def test_sessions_do_not_see_each_other(call, picture):
    find(call, picture, session="mine")
    assert "find something first" in call("download", ["json"], session="yours")[0]


@pytest.mark.parametrize("path", [str(Path(__file__).resolve()), "/etc/passwd", "http://127.0.0.1:9/x.png"])
def test_neither_files_of_the_server_nor_addresses_are_taken(client, path):
    if path.startswith("/"):
        assert client.get(f"/gradio_api/file={path}").status_code in (403, 404)
    data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, "x", "auto", 1, 0, 0.5]
    event = client.post("/gradio_api/call/find", json={"data": data}).json()["event_id"]
    assert "event: error" in client.get(f"/gradio_api/call/find/{event}").text


def test_an_example_fills_every_part_of_the_page(call):
    picture, queries, classes, question, query = call("example", 0, session="examples")
    assert "the person" in queries
    assert all((classes, question, query))
    assert "512 x 512 pixels" in call("picture", picture, session="examples")[0]
    picture["meta"] = {"_type": "gradio.FileData"}
    assert find(call, picture, session="examples")[0] == ""


def test_bounds_are_checked(tiny_model):
    with pytest.raises(SettingError, match="max_waiting=0"):
        build(tiny_model, max_waiting=0)


def test_the_queue_is_bounded(client):
    assert client.app.routes[-1].app.get_blocks()._queue.max_size == 32


def test_a_port_that_is_taken_is_said(tiny_model):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SettingError, match="--port 0"):
        serve(tiny_model, port=taken.getsockname()[1])


def test_without_gradio_it_says_what_to_install(tiny_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'self1e\[demo\]'"):
        build(tiny_model)


def test_the_page_can_be_a_part_of_another_application(tiny_model):
    from fastapi import FastAPI

    from self1e.web.page import mount

    app = FastAPI()
    app.get("/health")(lambda: "well")
    with TestClient(mount(app, tiny_model, path="/web"), base_url="http://127.0.0.1") as client:
        assert client.get("/health").json() == "well"
        assert "SELF1E" in client.get("/web/").text
