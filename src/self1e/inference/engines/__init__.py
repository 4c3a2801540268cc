"""Folder runs on several processes or machines: others do the work, one process keeps the manifest.

Shares are computed and their files written where the work is done; outcomes come back in the order of the pictures,
and only then the manifest gets its lines. So a run on many machines leaves what a run on one leaves: the same files,
the same lines in the same order, the same ids in the files for all pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from self1e.errors import SettingError, did_you_mean
from self1e.machine import process_count

if TYPE_CHECKING:
    from self1e.inference.engines.share import Outcome, Plan
    from self1e.inference.folder import FolderReport

ENGINES = ("local", "ray")
"""What a person can choose; processes that ``torchrun`` has started are noticed."""


class Engine(Protocol):
    """Does the pictures of a folder run somewhere else, or in several places."""

    def conduct(
        self,
        model: Any,
        settings: dict[str, Any],
        out: Path,
        stop: threading.Event,
        lead: Callable[[], FolderReport],
    ) -> FolderReport:
        """Call ``lead`` in the one process that keeps the manifest, or do a share of what that one plans."""
        ...

    def run(self, model: Any, plan: Plan, stop: threading.Event, tell: Callable[[Outcome], None]) -> bool:
        """Do the pictures of a plan, and tell of each in their order; False if it was stopped before the end."""
        ...


def choose_engine(name: str, load: Callable[[], Any], workers: int | None = None) -> Engine | None:
    """Make the engine for a name.

    Args:
        name: One of ``ENGINES``.
        load: Loads the model where the work is done; Ray sends it there.
        workers: Processes that each hold a model; left out, as many as the cluster has room for.

    Returns:
        None for this process alone.

    Raises:
        SettingError: There is no such engine, or it does not go with ``torchrun``, or with ``workers``.
        MissingDependencyError: Ray is not installed.
    """
    if name not in ENGINES:
        raise SettingError(f"engine={name!r} is unknown.{did_you_mean(name, ENGINES)} Known: {', '.join(ENGINES)}.")
    if workers is not None and (name != "ray" or workers < 1):
        raise SettingError(f"workers={workers} is for engine='ray', and at least 1; torchrun has --nproc-per-node.")
    if name == "ray":
        if process_count() > 1:
            raise SettingError("engine='ray' starts its own processes: call it without torchrun.")
        from self1e.inference.engines.ray_data import RayEngine

        return RayEngine(load, workers=workers)
    if process_count() > 1:
        from self1e.inference.engines.ranks import Ranks

        return Ranks.from_environment()
    return None
