"""What ``self1e train`` and ``self1e finetune`` share: options, and the way from a recipe to a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import say
from self1e.machine import process_index

Settings = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set optim.learning_rate=2e-5.")]
Resume = Annotated[
    str,
    typer.Option("--resume", help="auto: go on from the newest checkpoint in --out; never; or a folder checkpoint-N."),
]
ReportTo = Annotated[
    list[str] | None,
    typer.Option("--report-to", help="tensorboard, trackio or wandb, if installed; may be repeated."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, show settings, memory and time, and stop.")]


@dataclass(frozen=True)
class How:
    """How a run is started, whatever it trains."""

    out: Path
    resume: str
    report_to: Sequence[str]
    device: str
    dry_run: bool

    def train(self, recipe: Any, data: Any) -> Path | None:
        """Check everything, say what it takes, and run it on data that is open, or lies in a folder.

        Returns:
            The folder of the final model, None for a dry run.
        """
        from self1e.training.run import check_report_to, prepare, run

        check_report_to(self.report_to)
        plan = prepare(recipe, data=data, device=self.device)
        if not self.dry_run:
            say_once(plan.describe())
        elif process_index() == 0:
            list_settings(recipe)
            typer.echo(plan.describe())
        plan.check_memory()
        if self.dry_run:
            return None
        return run(
            recipe,
            data=plan.data,
            out=self.out,
            resume=self.resume,
            report_to=self.report_to,
            device=self.device,
            say=say_once,
            checked=plan,
        )


def say_once(message: str) -> None:
    """Write a line to stderr, of all processes of a run in the first alone."""
    if process_index() == 0:
        say(message)


def list_settings(recipe: Any) -> None:
    """Print every setting as ``--set`` takes it."""
    from self1e.training.recipes import flatten

    for name, value in flatten(recipe).items():
        typer.echo(f"{name}={','.join(value) if isinstance(value, list) else value}")
