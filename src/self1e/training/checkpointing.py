"""Checkpoints that are whole or not there.

    OUT/checkpoint-200/            whole: it took its name when everything was on the disk
        manifest.json              what it is of, and size and SHA-256 of each file
        model.safetensors, optimizer.pt, scheduler.pt, rng_state.pth, trainer_state.json, ...
    OUT/.checkpoint-300.partial/   being written; after a kill, removed at the next start
    OUT/.checkpoint-100.removed/   being removed; the same
    OUT/set-aside-checkpoint-300/  behind the point that a run went on from, or damaged; never read, delete it

A rename is the one step that makes a checkpoint, and the first step that removes one, so that a process may be killed
at any instant. Weights are safetensors; the state of optimiser, schedule and random numbers is what transformers'
`Trainer` writes with ``torch.save`` and reads with ``weights_only=True``: it cannot run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from self1e.errors import CheckpointError, OutputError, SettingError
from self1e.files import sync

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"checkpoint-(\d+)")
_LEFT = re.compile(r"\.checkpoint-\d+\.(partial|removed)")


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was taken after, as its name says it."""
    found = _NAME.fullmatch(checkpoint.name)
    if found is None:
        raise CheckpointError(f"{checkpoint}: expected a folder of the name checkpoint-STEP, as training writes it.")
    return int(found[1])


def checkpoints(folder: Path) -> list[Path]:
    """List what is named as a checkpoint, the oldest step first; whether it is whole, `check` says."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()), key=step_of)


def check_is_new(folder: Path) -> None:
    """Refuse to start a run where another has left checkpoints.

    Raises:
        SettingError: It has.
    """
    if found := checkpoints(folder):
        raise SettingError(f"{folder} holds {found[-1].name} of a run; resume it, or choose another folder.")


def last_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint; a damaged one is passed over with a warning.

    Args:
        folder: Of the run.

    Returns:
        The checkpoint, or None where there is not a single one.

    Raises:
        CheckpointError: There are some, and none of them is whole; or one is of a newer version of self1e.
    """
    problems = []
    for checkpoint in reversed(checkpoints(folder)):
        try:
            check(checkpoint)
        except NewerCheckpointError:
            raise
        except CheckpointError as error:
            logger.warning("%s Going back to the checkpoint before.", error)
            problems.append(str(error))
        else:
            return checkpoint
    if problems:
        raise CheckpointError(
            f"{folder} holds {len(problems)} checkpoint(s), and none is whole: {' '.join(problems)} "
            "Remove them to start anew, or choose another folder."
        )
    return None


class NewerCheckpointError(CheckpointError):
    """A checkpoint that a newer version of self1e has written."""


def check(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint is of, and compare every file with it.

    Returns:
        The manifest: ``step``, ``parameters``, ``optimizer``, ``global_batch``, ``processes``, ``versions``, ``files``.

    Raises:
        CheckpointError: It is damaged, was not written by this format, or lacks a file.
    """
    manifest = read_manifest(checkpoint)
    for name, known in manifest["files"].items():
        path = checkpoint / name
        size = path.stat().st_size if path.is_file() else None
        if size != known["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise CheckpointError(f"{checkpoint} is damaged: {name} {found}, expected {known['bytes']} bytes.")
    for name, known in manifest["files"].items():
        if _digest(checkpoint / name) != known["sha256"]:
            raise CheckpointError(f"{checkpoint} is damaged: the content of {name} has changed since it was written.")
    return manifest


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read what a checkpoint is of, without comparing its files."""
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{checkpoint} has no {MANIFEST}: it is not whole, or an older self1e has written it.")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        version, _ = int(manifest["format"]), manifest["files"].items()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{checkpoint} is damaged: {MANIFEST} cannot be read ({error!r}).") from error
    if version > FORMAT:
        raise NewerCheckpointError(
            f"{checkpoint} is of format {version}, and this self1e reads up to {FORMAT}; upgrade self1e to resume."
        )
    return manifest


def write_manifest(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Describe a folder whose files are complete: ``facts`` with size and SHA-256 of each file."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    known = {
        path.relative_to(checkpoint).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in files
    }
    text = json.dumps({"format": FORMAT, **facts, "files": known}, indent=1) + "\n"
    (checkpoint / MANIFEST).write_text(text, "utf-8")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_partial(folder: Path, step: int) -> Path:
    """Make the empty folder that a checkpoint is written into, under ``.../checkpoint-STEP``; the same on each call."""
    partial = partial_folder(folder, step)
    shutil.rmtree(partial, ignore_errors=True)
    (partial / f"checkpoint-{step}").mkdir(parents=True)
    return partial


def partial_folder(folder: Path, step: int) -> Path:
    """Name the folder that a checkpoint is written into; every process of a run names the same."""
    return folder / f".checkpoint-{step}.partial"


def publish(folder: Path, step: int, facts: dict[str, Any]) -> Path:
    """Bring what was written to the disk and give it its name, in one step.

    Args:
        folder: Of the run.
        step: Of the checkpoint, whose files are in `partial_folder`.
        facts: What it is of, for its manifest.
    """
    partial = partial_folder(folder, step)
    written, final = partial / f"checkpoint-{step}", folder / f"checkpoint-{step}"
    write_manifest(written, {"step": step, **facts})
    for path in [*written.rglob("*"), written]:
        sync(path)
    if final.exists():  # of the same step, from before the run went back
        remove(final)
    written.rename(final)
    sync(folder)
    partial.rmdir()
    return final


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint: first its name, so that no half of it is ever taken for one."""
    removed = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def rotate(folder: Path, most: int | None, kept: Iterable[Path] = ()) -> None:
    """Keep the newest checkpoints.

    Args:
        folder: Of the run.
        most: How many; None keeps all.
        kept: Stay as well, and count: the best one.
    """
    if not most:
        return
    found, protected = checkpoints(folder), {path.resolve() for path in kept}
    protected.update(path.resolve() for path in found[-1:])
    too_many = len(found) - most
    for path in found:
        if too_many > 0 and path.resolve() not in protected:
            remove(path)
            too_many -= 1


def clean(folder: Path) -> None:
    """Remove what a killed process has left. Nobody may be writing there."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if _LEFT.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, behind: int) -> None:
    """Rename the checkpoints behind a step that a run goes on from, so that they are never mixed with its own."""
    for checkpoint in checkpoints(folder):
        if step_of(checkpoint) > behind:
            aside = checkpoint.with_name(f"set-aside-{checkpoint.name}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
            logger.warning("The run goes on from step %d: %s is now %s.", behind, checkpoint, aside.name)


def check_space(folder: Path, needed: int) -> None:
    """Check that a checkpoint will fit.

    Args:
        folder: Exists.
        needed: Bytes.

    Raises:
        OutputError: It will not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(f"a checkpoint needs about {needed:,} bytes, and {free:,} are free")


def check_parameters(checkpoint: Path, manifest: dict[str, Any], parameters: dict[str, list[int]]) -> None:
    """Check that a checkpoint is of the model in training.

    Args:
        checkpoint: For the message.
        manifest: Of it.
        parameters: Names and shapes of the model's parameters.

    Raises:
        CheckpointError: Names or shapes differ.
    """
    known = manifest.get("parameters")
    if known is None or known == parameters:
        return
    differences = [
        *(f"{name} is not in the checkpoint" for name in parameters if name not in known),
        *(f"{name} is not in the model" for name in known if name not in parameters),
        *(
            f"{name} is {tuple(shape)} in the model and {tuple(known[name])} in the checkpoint"
            for name, shape in parameters.items()
            if name in known and known[name] != shape
        ),
    ]
    more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
    raise CheckpointError(
        f"{checkpoint} is of another model: {'; '.join(differences[:3])}{more}. "
        "Resume with the settings that it was trained with, or choose another folder."
    )
