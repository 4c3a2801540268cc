"""``self1e chat``: a conversation about one picture, in words and masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import (
    NANO_KNOWS,
    BaseOption,
    DeviceOption,
    DtypeOption,
    ModelOption,
    load_quietly,
    say,
    summary,
)
from self1e.errors import Self1EError, SettingError

_HELP = """\
words              ask, in the current mode
/mask WORDS        find something, whatever the mode: /mask the red one
/mode [MODE]       auto (the model decides), segment (always a mask), text (never one)
/adapter [on|off]  off: words (mode text) are the base model's; needs --base
/save [FILE]       write the conversation; self1e chat PICTURE --resume FILE goes on with it
/help              this
/quit              end"""


def chat(
    picture: Annotated[Path, typer.Argument(help="What to talk about.")],
    model: ModelOption = "nano",
    mode: Annotated[
        str | None, typer.Option(help="auto (if not said): the model decides; segment: always a mask; text: never.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for overlays and saved conversations.")] = Path("self1e-chat"),
    script: Annotated[
        Path | None, typer.Option(help="Text file with a line per turn or command, in place of the keyboard.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with a conversation that /save wrote, with its settings.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer; 256 if not said.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 (if not said): the likeliest words; above 0: drawn by probability.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="With a temperature: draw from the likeliest words of so much in all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With a temperature: the same answers in every run.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="on (if not said): as trained; off: words (mode text) are the base model's.")
    ] = None,
    base: BaseOption = None,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles, 1 to 12.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Talk about a picture; masks are written as overlays.

    Lines that begin with / are commands; /help lists them. Ctrl-C ends an answer, and at the prompt the conversation.
    From a script or a pipe, a line that cannot be answered is reported and stops nothing; the status is then 1.
    """
    from self1e.inference.session import Session

    if resume is not None and max_tiles is not None:
        raise SettingError("--max-tiles comes too late: with --resume the tiles are those of the saved conversation.")
    given = {"mode": mode, "max_new_tokens": max_new_tokens, "adapter": adapter}
    given |= {"temperature": temperature, "top_p": top_p, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    _check(given, base, is_new=resume is None)
    lines = _lines(script)
    loaded = load_quietly(model, device, dtype, base)
    if loaded.name == "nano":
        say(NANO_KNOWS)
    if resume is not None:
        session = Session.load(resume, loaded, picture=picture)
        session.change(**given)
    else:
        session = Session(loaded, picture, max_tiles=max_tiles, **given)
    if not _Talk(session, out, picture.stem).go(lines):
        raise typer.Exit(1)


def _check(given: dict[str, Any], base: Path | None, *, is_new: bool) -> None:
    """Refuse what cannot work before seconds go into loading a model."""
    from self1e.inference.choosing import Sampling
    from self1e.inference.session import check_adapter, check_count, check_mode

    check_mode(given.get("mode", "auto"))
    check_count("max_new_tokens", given.get("max_new_tokens", 1))
    if is_new:  # a resumed conversation may have a temperature of its own
        Sampling(**{name: given[name] for name in ("temperature", "top_p", "seed") if name in given})
    if check_adapter(given.get("adapter", "on")) == "off" and base is None:
        raise SettingError(
            "--adapter off: the base's words need its tensors: --model CHECKPOINT (of a training run, not merged) and "
            "--base FOLDER (of the model that it was trained from)."
        )


def _lines(script: Path | None) -> Iterator[str] | None:
    """Lines of a script or a pipe, or None if a person is typing."""
    if script is not None:
        try:
            text = script.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--script {script}: cannot be read as UTF-8 text: {error}.") from error
        return iter(text.splitlines())
    reconfigure = getattr(sys.stdin, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # a byte that is no letter ends no conversation
    return None if sys.stdin.isatty() else (line.rstrip("\n") for line in sys.stdin)


class _Talk:
    """A session at a terminal, or run from lines."""

    def __init__(self, session: Any, folder: Path, stem: str) -> None:
        self._session = session
        self._folder = folder
        self._stem = stem
        self._masks = sum(len(turn.results) for turn in session.turns)

    def go(self, lines: Iterator[str] | None) -> bool:
        """Take lines until they end; say whether all could be answered."""
        if lines is None:
            say("/help lists commands")
        is_well = True
        for line in self._typed() if lines is None else lines:
            words = line.strip()
            if not words or words.startswith("#"):
                continue
            if lines is not None:
                typer.echo(f"> {words}")
            if words in ("/quit", "/exit"):
                break
            try:
                self._obey(words)
            except BrokenPipeError:
                raise  # nobody reads on
            except (Self1EError, OSError, MemoryError, RuntimeError) as error:  # the last: a device without memory
                say(f"self1e: {' '.join(str(error).split()) or 'not enough memory'}")
                is_well = lines is None
        return is_well

    def _typed(self) -> Iterator[str]:
        while True:
            try:
                yield input(f"[{self._session.mode}] > ")
            except (EOFError, KeyboardInterrupt):
                typer.echo()
                return

    def _obey(self, words: str) -> None:
        command, rest = [*words.split(maxsplit=1), ""][:2]
        if not command.startswith("/"):
            self._ask(words, None)
        elif command == "/mask":
            if not rest:
                raise SettingError("/mask: say what to find, for example /mask the red one")
            self._ask(rest, "segment")
        elif command == "/mode":
            self._set("mode", rest)
        elif command == "/adapter":
            self._set("adapter", rest)
        elif command == "/save":
            self._save(rest)
        elif command == "/help":
            typer.echo(_HELP)
        else:
            raise SettingError(f"{command} is no command; /help lists them.")

    def _set(self, name: str, value: str) -> None:
        if value:
            self._session.change(**{name: value})
        typer.echo(f"{name}: {getattr(self._session, name)}")

    def _save(self, name: str) -> None:
        try:
            path = Path(name).expanduser() if name else self._folder / f"{self._stem}.session.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            saved = self._session.save(path)
        except (RuntimeError, ValueError) as error:  # the home of nobody, a name with a null byte
            raise SettingError(f"/save {name}: {error}") from error
        typer.echo(f"saved {saved}")

    def _ask(self, words: str, mode: str | None) -> None:
        """Show an answer as it is written; Ctrl-C ends it."""
        from self1e.inference.session import TextDelta

        events = self._session.ask(words, mode=mode)
        is_line_open = False
        try:
            for event in events:
                if isinstance(event, TextDelta):
                    typer.echo(event.text, nl=False)
                    is_line_open = True
                    continue
                if is_line_open:
                    typer.echo()
                    is_line_open = False
                self._show(event)
        except KeyboardInterrupt:
            typer.echo("\n[stopped]")
        finally:
            events.close()

    def _show(self, event: Any) -> None:
        from self1e.inference.export import write_outputs
        from self1e.inference.session import Done, NotThere

        if isinstance(event, Done):
            who = f"P([SEG]) {event.probability:.2f}" if event.adapter == "on" else "base model"
            told = f"[{event.decision}, {who}, {event.new_tokens} tokens"
            told += {"length": ", cut at the limit", "cancelled": ", stopped"}.get(event.stopped, "")
            forgotten = f", the {event.dropped_turns} oldest turns are out of view" if event.dropped_turns else ""
            typer.echo(f"{told}{forgotten}]")
            return
        result = event.segmentation
        width, height = result.size_wh
        self._masks += 1
        if isinstance(event, NotThere):
            typer.echo(f"  {summary(result.queries[0], 0, width * height, 0.0)}")
            return
        files = write_outputs(result, self._folder, f"{self._stem}.{self._masks}", ["overlay"])
        told = summary(result.queries[0], int(result.areas[0]), width * height, event.score)
        typer.echo(f"  {told} -> {files[0]}")
