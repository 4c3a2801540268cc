"""``self1e chat``: scripts and pipes, what is printed, what is written, and how it fails."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from self1e.cli import chat as chat_module
from self1e.cli.main import main
from self1e.inference.session import Session

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def run(capsys, tiny_model_folder, tmp_path, pictures, monkeypatch):
    """Run the command beside ``picture.png``; returns status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    pictures[0].save("picture.png")

    def run(*arguments: object, piped: str | None = None) -> tuple[int, str, str]:
        if piped is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        given = ["chat", "picture.png", "--max-new-tokens", "4", "--model", str(tiny_model_folder)]
        with pytest.raises(SystemExit) as end:
            main([*given, *map(str, arguments), "--device", "cpu"])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_a_dialogue_from_a_script(run):
    Path("talk.txt").write_text(
        "# a comment\nWhat is it?\n\n/mask the red one\nAnd where?\n/mask blue\n/mode text\nBye.\n/quit\nno more\n"
    )
    status, out, err = run("--script", "talk.txt", "--out", "o")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("> ")] == [
        "> What is it?", "> /mask the red one", "> And where?", "> /mask blue", "> /mode text", "> Bye.", "> /quit",
    ]  # fmt: skip
    first = lines.index("> /mask the red one")
    assert lines[first + 1] == "[SEG]."
    assert lines[first + 2].startswith("  'the red one' ")
    assert lines[first + 2].endswith("-> " + str(Path("o/picture.1.overlay.png")))
    assert lines[first + 3].startswith("[segment, P([SEG]) 0.")
    assert lines[first + 3].endswith(", 2 tokens]")
    assert "mode: text" in lines
    assert "[text, P([SEG]) 0." in out
    with Image.open("o/picture.1.overlay.png") as overlay:
        assert overlay.size == (90, 60)
    assert sorted(path.name for path in Path("o").iterdir()) == ["picture.1.overlay.png", "picture.2.overlay.png"]


def test_a_pipe_is_a_script(run):
    status, out, _ = run("--mode", "segment", "--out", "o", piped="the red one\n/help\n")
    assert status == 0
    assert "> the red one\n[SEG].\n" in out
    assert "/mask WORDS" in out
    assert Path("o/picture.1.overlay.png").is_file()


def test_what_cannot_be_answered_is_reported_and_stops_nothing(run):
    piped = "/mask\n/paint it\n/mode loud\nvery long " + "words " * 6000 + "\n/mask red\n"
    status, _, err = run("--out", "o", piped=piped)
    assert status == 1
    told = err.splitlines()
    assert [line.startswith("self1e: ") for line in told] == [True] * 4
    assert "say what to find" in told[0]
    assert "/paint is no command" in told[1]
    assert "choose one of auto, segment, text" in told[2]
    assert "max_tokens=8192" in told[3]
    assert Path("o/picture.1.overlay.png").is_file()


def test_a_device_without_memory_ends_no_conversation(run, monkeypatch):
    whole = Session.ask

    def ask(self, words, **settings):
        if words == "too much":
            raise RuntimeError("CUDA out of memory.")
        return whole(self, words, **settings)

    monkeypatch.setattr(Session, "ask", ask)
    status, out, err = run("--out", "o", piped="too much\n/mask red\n")
    assert (status, err) == (1, "self1e: CUDA out of memory.\n")
    assert "[segment, P([SEG])" in out


def test_a_conversation_is_saved_and_resumed(run):
    status, out, _ = run("--out", "o", piped="/mask red\n/save\n/save other/talk.json\n")
    assert status == 0
    assert f"saved {Path('o/picture.session.json')}" in out
    saved = json.loads(Path("other/talk.json").read_text("utf-8"))
    assert [turn["question"] for turn in saved["turns"]] == ["red"]
    status, _, _ = run("--out", "o", "--resume", "o/picture.session.json", piped="/mask blue\n/save o/more.json\n")
    assert status == 0
    more = json.loads(Path("o/more.json").read_text("utf-8"))
    assert more["turns"][0] == saved["turns"][0]
    assert [turn["question"] for turn in more["turns"]] == ["red", "blue"]
    assert Path("o/picture.2.overlay.png").is_file()  # numbers go on, too


def test_settings_are_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(chat_module, "load_quietly", lambda *args: pytest.fail("loaded"))
    assert run("--mode", "loud")[0] == 2
    assert run("--script", "missing.txt")[0] == 2
    assert run("--resume", "talk.json", "--max-tiles", 2)[0] == 2


def test_a_missing_picture_ends_the_command(run):
    Path("picture.png").unlink()
    status, out, err = run(piped="What is it?\n")
    assert (status, out) == (1, "")
    assert "picture.png" in err


def test_a_person_is_asked_until_the_end_of_input(run, monkeypatch):
    typed = iter(["/mode segment", "nonsense: /mask", "/mask"])

    def type_in(prompt: str) -> str:
        asked.append(prompt)
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", type_in)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    status, out, err = run("--out", "o")
    assert status == 0  # a person sees what is wrong
    assert asked == ["[auto] > ", *["[segment] > "] * 3]
    assert "/mask: say what to find" in err
    assert "> /mode" not in out  # already on the screen


def test_ctrl_c_ends_an_answer_and_not_the_conversation(run, monkeypatch):
    from self1e.inference.session import Session

    ask = Session.ask

    def interrupted(self, words, **settings):
        events = ask(self, words, **settings)
        if words != "stop":
            yield from events
            return
        yield next(events)
        events.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "ask", interrupted)
    status, out, _ = run("--out", "o", "--mode", "text", piped="stop\nWhat?\n/save s.json\n")
    assert status == 0
    assert "[stopped]" in out
    turns = json.loads(Path("s.json").read_text("utf-8"))["turns"]
    assert turns[0]["stopped"] == "cancelled"
    assert [turn["question"] for turn in turns] == ["stop", "What?"]


def test_ctrl_c_while_the_model_computes_keeps_what_was_written(run, monkeypatch):
    from self1e.inference.text_cache import TextCache

    read, calls = TextCache._read, []

    def interrupted(self, new):
        calls.append(new)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(self, new)

    monkeypatch.setattr(TextCache, "_read", interrupted)
    status, out, _ = run("--out", "o", "--mode", "text", piped="What?\n/save s.json\nAnd?\n")
    assert status == 0
    assert "[stopped]" in out
    (turn,) = json.loads(Path("s.json").read_text("utf-8"))["turns"]
    assert (turn["stopped"], len(turn["answer_ids"])) == ("cancelled", 2)
    assert out.rstrip().endswith("]")  # and the next question was answered


def test_a_resumed_conversation_keeps_its_settings_unless_told(run):
    run("--out", "o", "--mode", "text", "--temperature", "0.8", "--seed", 5, piped="What?\n/save a.json\n")
    run("--out", "o", "--resume", "a.json", "--top-p", "0.9", piped="What?\n/save b.json\n")
    first, second = (json.loads(Path(name).read_text("utf-8"))["settings"] for name in ("a.json", "b.json"))
    assert (first["mode"], first["temperature"], first["top_p"], first["seed"]) == ("text", 0.8, 1.0, 5)
    assert second == first | {"top_p": 0.9}


def test_a_seed_gives_the_same_words_again(run):
    given = ("--out", "o", "--mode", "text", "--temperature", "2", "--max-new-tokens", "12")
    outs = [run(*given, "--seed", seed, piped="What?\n")[1] for seed in (3, 3, 4)]
    assert outs[0] == outs[1] != outs[2]


def test_commands_may_be_parted_by_any_white_space_and_named_badly(run):
    piped = (
        "/mask\tred\n/mode\u00a0text\n/save ~nobody-of-that-name/x.json\n/save a\0b\n/adapter\n/adapter off\nWhat?\n"
    )
    status, out, err = run("--out", "o", piped=piped)
    assert status == 1
    assert Path("o/picture.1.overlay.png").is_file()
    assert "mode: text" in out
    assert "adapter: on" in out
    told = err.splitlines()
    assert len(told) == 3
    assert told[0].startswith("self1e: /save ~nobody-of-that-name")
    assert told[1].startswith("self1e: /save a")
    assert "its adapters are merged into the weights" in told[2]
    assert out.rstrip().splitlines()[-1].startswith("[text")  # all of that has stopped nothing


def test_words_of_the_base_where_it_is_at_hand(run, trained_folder, base_folder):
    piped = "What is it?\n/mask red\n/adapter on\nWhat is it?\n/save s.json\n"
    common = ("--out", "o", "--mode", "text", "--model", trained_folder, "--base", base_folder)
    status, out, err = run(*common, "--adapter", "off", piped=piped)
    assert (status, err) == (0, "")
    assert "[text, base model, " in out
    assert "[segment, P([SEG]) 0." in out
    assert "[text, P([SEG]) 0." in out
    turns = json.loads(Path("s.json").read_text("utf-8"))["turns"]
    assert [turn["adapter"] for turn in turns] == ["off", "on", "on"]
    assert turns[0]["answer_ids"] != turns[2]["answer_ids"]


def test_what_the_base_needs_is_said_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(chat_module, "load_quietly", lambda *args: pytest.fail("loaded"))
    for given, told in [
        (("--adapter", "off"), "--base FOLDER"),
        (("--adapter", "half"), "choose on (as trained) or off"),
        (("--temperature", "-1"), "temperature=-1.0"),
        (("--top-p", "0.5"), "has no effect"),
        (("--seed", "-3"), "seed=-3"),
        (("--max-new-tokens", "0"), "max_new_tokens=0"),
    ]:
        status, _, err = run(*given, piped="What?\n")
        assert (status, told in err) == (2, True)


def test_bytes_that_are_no_letters_end_no_conversation(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"/mode text\ncaf\xe9?\nAnd?\n/save s.json\n")))
    status, _, err = run("--out", "o")
    assert (status, err) == (0, "")
    turns = json.loads(Path("s.json").read_text("utf-8"))["turns"]
    assert [turn["question"] for turn in turns] == ["caf\ufffd?", "And?"]
