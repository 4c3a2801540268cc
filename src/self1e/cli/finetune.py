"""``self1e finetune``: go on training a model on one's own pictures."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.data import list_problems, save_picture, show_progress, table_of_splits
from self1e.cli.options import DeviceOption
from self1e.cli.training import DryRun, How, ReportTo, Resume, Settings, say_once
from self1e.errors import DatasetError, SettingError, did_you_mean
from self1e.machine import process_index

WARNINGS = ("empty-mask", "duplicate-query", "duplicate-picture")
"""Kinds of problems that are told and do not stop a run."""
_VALIDATION = ("val", "valid", "validation")


def finetune(
    data: Annotated[
        Path, typer.Option(help="Your data: a folder or file in any format of docs/how-to/your-own-data.md.")
    ],
    model: Annotated[
        str, typer.Option("--model", "-m", help="What to start from: nano, a folder, a hub name.")
    ] = "nano",
    out: Annotated[Path, typer.Option(help="Checkpoints, log, pictures, model.")] = Path("runs") / "finetune",
    val: Annotated[
        Path | None, typer.Option(help="Data to measure on [default: split val of --data, or held-out pictures].")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Times that each picture is shown.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, instead of --epochs.")] = None,
    settings: Settings = None,
    split: Annotated[
        str | None, typer.Option(help="Split to train on, where there are several [default: train].")
    ] = None,
    format: Annotated[str | None, typer.Option("--format", help="As for self1e data check.")] = None,
    pictures: Annotated[Path | None, typer.Option(help="As for self1e data check.")] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Kind of problem that is no problem here.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Do not look at every picture first.")] = False,
    resume: Resume = "auto",
    report_to: ReportTo = None,
    device: DeviceOption = "auto",
    dry_run: DryRun = False,
) -> None:
    """Fine-tune a model on your own pictures; run it again to go on where it stopped.

    The data is checked first. What is held out is chosen by seed, whole pictures at a time.
    """
    _check_options(ignore or [], epochs, steps)
    source = _open(data, val, split=split, format=format, pictures=pictures, ignore=ignore or [])
    # Before the slow part, so that a wrong setting or model does not cost a check of all pictures.
    recipe, training, validation = _plan(source, model, epochs, steps, settings or [])
    if not no_check and process_index() == 0:  # whose error ends the others too
        _check(source, ignore or [], out / "data-check.png", draw=not dry_run)
    from transformers.utils import logging

    from self1e.training.own_data import own_training_data

    logging.disable_progress_bar()  # one per saved file, between the lines of the log
    final = How(out, resume, report_to or [], device, dry_run).train(
        recipe, own_training_data(recipe, training, validation)
    )
    if final is not None and process_index() == 0:
        _tell(final, out, training)


@dataclass(frozen=True)
class _Source:
    """What the options name, recognised."""

    found: Any
    train: str
    val: str | None
    """A split of the same data."""
    other: Any = None
    """Data of its own to measure on."""
    other_split: str = ""
    ignore: frozenset[str] = frozenset(WARNINGS)
    """Kinds of problems for which an entry, or a region of a mask, is left out."""

    def open(self) -> tuple[Any, Any]:
        """Open what is trained on and, if it is said, what is measured."""
        from self1e.data.own.splitting import Pictures

        training = Pictures(_read(self.found, self.train, self.ignore))
        if self.other is not None:
            return training, Pictures(_read(self.other, self.other_split, self.ignore))
        return training, Pictures(_read(self.found, self.val, self.ignore)) if self.val else None

    def to_check(self) -> list[Any]:
        """Put what has to be looked at together, so that leaks are found; data of two formats stays apart."""
        splits = {name: self.found.splits[name] for name in (self.train, self.val) if name}
        found = replace(self.found, splits=splits)
        if self.other is None:
            return [found]
        file = self.other.splits[self.other_split]
        if file.resolve() == splits[self.train].resolve():
            say_once("--val is what is trained on: figures will say that the model learns, not what it has learned.")
            return [found]
        if self.other.format == self.found.format:
            return [replace(found, splits={**splits, "--val": file})]
        say_once(f"--val is {self.other.format} and --data {self.found.format}: pictures in both are not looked for.")
        return [found, replace(self.other, splits={"--val": file})]


def _check_options(ignore: Sequence[str], epochs: int | None, steps: int | None) -> None:
    from self1e.data.own.records import KINDS

    for kind in ignore:
        if kind not in KINDS:
            raise SettingError(f"--ignore {kind!r}.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
    if epochs is not None and steps is not None:
        raise SettingError(f"--epochs {epochs} and --steps {steps} say the same thing twice; leave one out.")
    for name, value in (("--epochs", epochs), ("--steps", steps)):
        if value is not None and value < 1:
            raise SettingError(f"{name} {value} must be at least 1.")


def _open(
    data: Path,
    val: Path | None,
    *,
    split: str | None,
    format: str | None,
    pictures: Path | None,
    ignore: Sequence[str],
) -> _Source:
    from self1e.data.own import recognise

    found = recognise(data, format=format, pictures=pictures)
    train = split or ("train" if "train" in found.splits else next(iter(found.splits)))
    if train not in found.splits:
        raise SettingError(f"--split {train!r}.{did_you_mean(train, found.splits)} Found: {', '.join(found.splits)}.")
    if split is None and train != "train" and len(found.splits) > 1:
        raise SettingError(f"{data} holds splits {', '.join(found.splits)}; say which one to train on: --split.")
    named = next((name for name in _VALIDATION if name in found.splits and name != train), None)
    if val is None:
        return _Source(found, train, named, ignore=frozenset((*WARNINGS, *ignore)))
    other = recognise(val, pictures=pictures)
    names = [name for name in _VALIDATION if name in other.splits] or list(other.splits)
    if len(names) > 1:
        raise SettingError(f"--val {val} holds splits {', '.join(names)}; name the file of one.")
    return _Source(found, train, None, other, names[0], frozenset((*WARNINGS, *ignore)))


def _read(found: Any, split: str, ignore: frozenset[str]) -> Any:
    from self1e.data.own import open_data

    # By its own file, so that a folder with several formats or splits is opened as it was recognised.
    return open_data(found.root, split=split, format=found.format, pictures=found.pictures, ignore=ignore)


def _plan(source: _Source, model: str, epochs: int | None, steps: int | None, settings: Sequence[str]) -> Any:
    """Choose defaults for this model and this data, then what the settings change."""
    from self1e.training.own_data import count_base
    from self1e.training.recipes import change
    from self1e.training.recipes.own import own

    everything, given = source.open()
    parameters = count_base(model)

    def make(count: int, measured_on: str) -> Any:
        recipe = own(model, parameters=parameters, pictures=count, steps=steps, epochs=epochs, measured_on=measured_on)
        return change(recipe, settings)

    if given is not None:
        return make(len(everything), "the validation pictures"), everything, given
    first = make(len(everything), "")
    if first.evaluation.on is None:  # --set evaluation.on=none
        return first, everything, ()
    share = first.data.held_out
    if share == 0:
        say_once(f"data.held_out=0: measured on the {len(everything)} training pictures themselves.")
        return make(len(everything), "the training pictures"), everything, everything
    if len(everything) < 2:
        raise SettingError(
            "One picture cannot be divided into training and held-out pictures; give --val DATA, or measure on it: "
            "--set data.held_out=0."
        )
    training, held_out = everything.hold_out(share, seed=first.seed)
    say_once(
        f"{len(held_out)} of {len(everything)} pictures are held out to measure on (seed {first.seed}); the others are "
        "trained on. --val DATA measures on other pictures."
    )
    return make(len(training), "held-out pictures"), training, held_out


def _check(source: _Source, ignore: Sequence[str], sheet: Path, *, draw: bool) -> None:
    """Look at every picture and mask; warn of what a run can live with, and refuse the rest."""
    from self1e.data.own.check import check_data

    reports = [
        check_data(found, splits=list(found.splits), ignore=ignore, progress=show_progress)
        for found in source.to_check()
    ]
    errors = 0
    for report in reports:
        table_of_splits({name: counts.summary() for name, counts in report.counts.items()})
        list_problems(report, every=False)
        errors += sum(problem.kind not in WARNINGS for problem in report.problems)
    drawn = reports[0].sheet()
    if draw and drawn is not None:
        save_picture(drawn, sheet)
        say_once(f"Contact sheet: {sheet}")
    if errors:
        root = source.found.root
        raise DatasetError(
            f"{errors} problem{'s' * (errors != 1)} in the data; nothing was trained. Mend them, or say which kind is "
            f"none here: --ignore KIND. `self1e data check {root} --all` lists every one."
        )


def _tell(final: Path, out: Path, training: Any) -> None:
    """Say what came of it, and the next command to type."""
    log = json.loads((out / "log.json").read_text("utf-8"))
    measured = [line for line in log if "eval_ciou" in line]
    best = out / "best" / "best.json"
    if measured:
        typer.echo(
            f"cIoU {measured[0]['eval_ciou']:.4f} at step {measured[0]['step']}, then "
            f"{measured[-1]['eval_ciou']:.4f} at step {measured[-1]['step']}; pictures: {out / 'samples'}"
        )
    if best.is_file():
        facts = json.loads(best.read_text("utf-8"))
        typer.echo(f"Best: {best.parent} (step {facts['step']}, cIoU {facts['eval_ciou']:.4f})")
    picture, words = training.first()
    typer.echo(f"The model is in {final}; try:")
    typer.echo(
        f"    self1e segment {shlex.quote(str(picture))} -q {shlex.quote(words)} --model {shlex.quote(str(final))}"
    )
