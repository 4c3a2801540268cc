"""Folder runs on a Ray cluster: ``self1e segment FOLDER --engine ray``.

Ray Data gives the pictures, some at a time, to workers that each hold a model. A worker that dies is started again
and its pictures are done again: files appear whole, and their content depends on the picture alone, so nobody can tell.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from self1e.errors import MissingDependencyError, OutputError, Self1EError
from self1e.inference.engines.share import Outcome, Plan, check_model, do_share, make_shards
from self1e.inference.folder import FolderReport, Job

_CPUS = 4  # threads of a worker without a GPU, if the cluster has as many


class RayEngine:
    """Workers on a Ray cluster: that of this process, of ``RAY_ADDRESS``, or else one on this machine.

    Args:
        load: Loads the model in a worker.
        workers: Processes that each hold a model; left out, one per GPU, or per four processors.

    Raises:
        MissingDependencyError: Ray is not installed.
    """

    def __init__(self, load: Callable[[], Any], *, workers: int | None = None) -> None:
        try:
            import ray.data  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingDependencyError(
                "engine='ray' needs Ray Data, which is not installed: pip install 'self1e[ray]'"
            ) from error
        self._load = load
        self._workers = workers

    def conduct(
        self,
        model: Any,
        settings: dict[str, Any],
        out: Path,
        stop: threading.Event,
        lead: Callable[[], FolderReport],
    ) -> FolderReport:
        """Lead: this process keeps the manifest."""
        return lead()

    def run(self, model: Any, plan: Plan, stop: threading.Event, tell: Callable[[Outcome], None]) -> bool:
        """Let the cluster do the pictures; stops after the shard in flight."""
        if not plan.jobs:
            return True
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        with _ray_quietly():
            try:
                for outcomes in self._outcomes(plan):
                    for outcome in outcomes:
                        tell(outcome)
                    if stop.is_set():
                        return False
            except RayError as error:
                told = " ".join(str(error).split())
                raise OutputError(
                    f"Ray has given up: {told[-300:]}. What was finished is recorded; run the same again."
                ) from error
        return True

    def _outcomes(self, plan: Plan) -> Iterator[list[Outcome]]:
        """Give the outcomes of one shard after the other, in the order of the pictures."""
        import ray.data  # pyright: ignore[reportMissingImports]

        resources: Any
        workers, resources = _size_workers(ray.cluster_resources(), self._workers)
        shards = make_shards(plan.jobs, workers)
        rows = [{"shard": pickle.dumps(_part(plan, shard))} for shard in shards]
        data = ray.data.from_items(rows, override_num_blocks=len(rows))
        worker: Any = _Worker  # a class is called once per actor, which the signature of map does not say
        done = data.map(
            worker,
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
            fn_constructor_args=(self._load, Path.cwd()),
            **resources,
        )
        for context in (data.context, done.context):
            context.execution_options.preserve_order = True
            context.enable_progress_bars = False
            context.print_on_execution_start = False
        for row in done.iter_rows():
            found = pickle.loads(row["outcomes"])
            if isinstance(found, str):
                raise OutputError(found)
            yield found


class _Worker:
    """Holds a model in a process of Ray's, and does one shard after the other."""

    def __init__(self, load: Callable[[], Any], folder: Path) -> None:
        self._load = load
        self._folder = folder
        self._model: Any = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a shard; what goes wrong with the whole run comes back as a message."""
        outcomes: list[Outcome] = []
        try:
            plan: Plan = pickle.loads(row["shard"])
            if self._model is None:
                self._model = self._start(plan)
            do_share(self._model, plan, plan.jobs, outcomes.append, threading.Event())
        except Self1EError as error:
            return {"outcomes": pickle.dumps(str(error))}
        return {"outcomes": pickle.dumps(outcomes)}

    def _start(self, plan: Plan) -> Any:
        try:
            os.chdir(self._folder)  # paths are as they were given, for the manifest's sake
        except OSError as error:
            raise OutputError(
                f"{self._folder}: a worker cannot enter it ({error.strerror}). All need the same folders under the "
                "same names, on a disk that they share."
            ) from error
        model = self._load()
        check_model(model, plan.settings)
        return model


def _part(plan: Plan, jobs: tuple[Job, ...]) -> Plan:
    """Return a plan of some of the pictures."""
    before = {job.name: plan.before[job.name] for job in jobs if job.name in plan.before}
    return replace(plan, jobs=jobs, before=before)


def _size_workers(cluster: Mapping[str, float], wanted: int | None) -> tuple[int, dict[str, float]]:
    """Say how many workers there are to be, and what each is given."""
    gpus, cpus = int(cluster.get("GPU", 0)), max(int(cluster.get("CPU", 1)), 1)
    if gpus:
        workers = wanted or gpus
        return workers, {"num_gpus": min(gpus / workers, 1.0)}
    workers = wanted or max(cpus // _CPUS, 1)
    return workers, {"num_cpus": max(cpus // workers, 1)}


@contextmanager
def _ray_quietly() -> Iterator[None]:
    """Join or start a cluster, unless this process has one, and leave it in the end."""
    import logging

    import ray  # pyright: ignore[reportMissingImports]

    logging.getLogger("ray.data").setLevel(logging.WARNING)
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if is_main else None
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    if before is not None:
        signal.signal(signal.SIGTERM, before)  # Ray would end the process where a run only has to stop
    try:
        yield
    finally:
        ray.shutdown()
