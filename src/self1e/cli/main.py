"""The command ``self1e``: one file per command, wired here.

Exit status: 0 all is well; 1 something failed (a picture, a model, this machine); 2 the command was not
understood; 130 stopped with Ctrl-C. Only typer and the standard library are imported above; a command imports what it
needs when it runs, so that ``--help`` comes at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from self1e.cli.calibrate import calibrate
from self1e.cli.chat import chat
from self1e.cli.convert import convert
from self1e.cli.data import data
from self1e.cli.demo import demo
from self1e.cli.doctor import doctor
from self1e.cli.eval import evaluate
from self1e.cli.figure import figure
from self1e.cli.finetune import finetune
from self1e.cli.info import info
from self1e.cli.merge import merge
from self1e.cli.segment import segment
from self1e.cli.semantic import semantic
from self1e.cli.serve import serve
from self1e.cli.train import train
from self1e.errors import PromptError, Self1EError, SettingError


class _Group(TyperGroup):
    """Tells errors that self1e raises on purpose in one line; with ``--debug``, where they come from."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Self1EError as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(f"self1e: {_as_told(str(error))}", err=True)
            raise typer.Exit(2 if isinstance(error, SettingError | PromptError) else 1) from error
        except BrokenPipeError:
            raise
        except OSError as error:  # a folder that cannot be made, a disk that is full
            if ctx.params.get("debug"):
                raise
            typer.echo(f"self1e: {error}", err=True)
            raise typer.Exit(1) from error


def _as_told(message: str) -> str:
    """Keep the lines of a list of problems; whatever else has lines becomes one."""
    lines = [" ".join(line.split()) for line in message.splitlines()]
    return ("\n" if any(line.startswith("- ") for line in lines) else " ").join(line for line in lines if line)


app = typer.Typer(
    name="self1e",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_TALKATIVE = ("torchao", "torch.utils._pytree")
"""Loggers that tell of kernels for other devices whenever transformers is imported beside torchao."""


def _show_version(wanted: bool) -> None:
    if wanted:
        version()
        raise typer.Exit


@app.callback()
def self1e(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Ask a vision-language model for a thing, get its mask."""


def version() -> None:
    """Show the version."""
    from self1e import __version__

    typer.echo(f"self1e {__version__}")


for command in (segment, semantic, chat, serve, demo, train, finetune, merge, calibrate, info, convert, doctor):
    app.command()(command)
app.command()(version)
app.command("eval")(evaluate)
app.add_typer(data, name="data")
app.add_typer(figure, name="figure")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; leaves with ``SystemExit``."""
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter of a file's name or a query is no reason to stop.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    app(arguments, prog_name="self1e")


if __name__ == "__main__":
    main()
