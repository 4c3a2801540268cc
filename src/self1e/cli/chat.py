"""``self1e chat``: a conversation about one picture, in words and masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, DeviceOption, DtypeOption, ModelOption, load_quietly, say, summary
from self1e.errors import PictureError, PromptError, SettingError

_HELP = """\
words              ask, in the current mode
/mask WORDS        find something, whatever the mode: /mask the red one
/mode [MODE]       auto (the model decides), segment (always a mask), text (never one)
/save [FILE]       write the conversation; self1e chat PICTURE --resume FILE goes on with it
/help              this
/quit              end"""


def chat(
    picture: Annotated[Path, typer.Argument(help="What to talk about.")],
    model: ModelOption = "nano",
    mode: Annotated[str, typer.Option(help="auto: the model decides; segment: always a mask; text: never.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder for overlays and saved conversations.")] = Path("self1e-chat"),
    script: Annotated[
        Path | None, typer.Option(help="Text file with a line per turn or command, in place of the keyboard.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    max_tiles: Annotated[int | None, typer.Option(help="Most tiles, 1 to 12.")] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
) -> None:
    """Talk about a picture; masks are written as overlays.

    Lines that begin with / are commands; /help lists them. Ctrl-C ends an answer, and at the prompt the conversation.
    From a script or a pipe, a line that cannot be answered is reported and stops nothing; the status is then 1.
    """
    from self1e.inference.session import Session, check_mode

    check_mode(mode)
    if resume is not None and max_tiles is not None:
        raise SettingError("--max-tiles comes too late: with --resume the tiles are those of the saved conversation.")
    lines = _lines(script)
    loaded = load_quietly(model, device, dtype)
    if loaded.name == "nano":
        say(NANO_KNOWS)
    if resume is not None:
        session = Session.load(resume, loaded, picture=picture)
        session.mode, session.max_new_tokens = check_mode(mode), max_new_tokens
    else:
        session = Session(
            loaded,
            picture,
            mode=mode,  # pyright: ignore[reportArgumentType]  # checked
            max_new_tokens=max_new_tokens,
            max_tiles=max_tiles,
        )
    if not _Talk(session, out, picture.stem).go(lines):
        raise typer.Exit(1)


def _lines(script: Path | None) -> Iterator[str] | None:
    """Lines of a script or a pipe, or None if a person is typing."""
    if script is not None:
        try:
            text = script.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--script {script}: cannot be read as UTF-8 text: {error}.") from error
        return iter(text.splitlines())
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
            except (PictureError, PromptError, SettingError, OSError) as error:
                say(f"self1e: {' '.join(str(error).split())}")
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
        command, _, rest = words.partition(" ")
        rest = rest.strip()
        if not command.startswith("/"):
            self._ask(words, None)
        elif command == "/mask":
            if not rest:
                raise SettingError("/mask: say what to find, for example /mask the red one")
            self._ask(rest, "segment")
        elif command == "/mode":
            self._set_mode(rest)
        elif command == "/save":
            path = Path(rest).expanduser() if rest else self._folder / f"{self._stem}.session.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            typer.echo(f"saved {self._session.save(path)}")
        elif command == "/help":
            typer.echo(_HELP)
        else:
            raise SettingError(f"{command} is no command; /help lists them.")

    def _set_mode(self, name: str) -> None:
        from self1e.inference.session import check_mode

        if name:
            self._session.mode = check_mode(name)
        typer.echo(f"mode: {self._session.mode}")

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
            told = f"[{event.decision}, P([SEG]) {event.probability:.2f}, {event.new_tokens} tokens"
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
