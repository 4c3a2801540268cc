"""What a process does for a folder run whose manifest another one keeps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from self1e.errors import OutputError, SettingError
from self1e.inference.folder import FolderReport, Job, Run, fingerprint
from self1e.inference.manifest import NAME, Draft, Record
from self1e.processing.limits import PictureLimits
from self1e.structures import Segmentation

LARGEST_SHARD = 16  # pictures that are done again if a worker is lost

T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What is to be done, as the process with the manifest sends it to the others."""

    out: Path
    """Folder of the run; all processes see it."""
    settings: dict[str, Any]
    """See ``Record.settings``."""
    jobs: tuple[Job, ...]
    before: dict[str, Record]
    """What the manifest says about these pictures so far."""
    limits: PictureLimits


@dataclass(frozen=True)
class Outcome:
    """A picture whose files are written, or that has failed."""

    record: Record
    result: Segmentation | None
    """Without picture and logits: the masks alone travel."""


def do_share(
    model: Any, plan: Plan, jobs: Sequence[Job], tell: Callable[[Outcome], None], stop: threading.Event
) -> bool:
    """Segment some pictures of a plan and write their files.

    Args:
        model: A ``Self1E`` with the weights that the plan was made for.
        plan: Of the whole run.
        jobs: This process's share.
        tell: Called after each picture, in the order of ``jobs``.
        stop: When it is set, the picture in flight is finished.

    Returns:
        False if it was stopped before the end.
    """
    check_place(plan.out)
    draft = Draft(plan.out, {job.name: plan.before[job.name] for job in jobs if job.name in plan.before})

    def recorded(record: Record, result: Segmentation | None, report: FolderReport) -> None:
        tell(Outcome(record, None if result is None else replace(result, image=None, mask_logits=None)))

    report = FolderReport(draft.path, len(jobs))
    Run(model, draft, plan.settings, report, stop, recorded).go(jobs, plan.limits)
    return not report.stopped


def check_place(out: Path) -> None:
    """Refuse to write where the run's own process does not look."""
    if not (out / NAME).is_file():
        raise OutputError(
            f"{out / NAME}: is not to be seen from here ({Path.cwd()}). All processes of a run need the same folders "
            "under the same names, on a disk that they share."
        )


def check_model(model: Any, settings: dict[str, Any]) -> None:
    """Refuse a model that would give other masks than the one the run was planned with."""
    own = {"weights": fingerprint(model), "dtype": str(model.dtype).removeprefix("torch.")}
    for name, value in own.items():
        if value != settings[name]:
            raise SettingError(
                f"A process of this run has a model with {name} {value}, the one that started it {settings[name]}: "
                "give all the same files, and name the dtype (--dtype) where their devices differ."
            )


def make_shards(jobs: Sequence[T], workers: int) -> list[tuple[T, ...]]:
    """Cut the pictures into pieces that follow each other: several per worker, so that all end about together.

    Args:
        jobs: In the order of the run.
        workers: Processes that will take the pieces, one at a time each.

    Returns:
        Pieces of at most ``LARGEST_SHARD``; one after the other they are ``jobs``.
    """
    size = min(max(len(jobs) // (4 * workers), 1), LARGEST_SHARD)
    return [tuple(jobs[start : start + size]) for start in range(0, len(jobs), size)]
