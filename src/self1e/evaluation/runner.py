"""Run benchmarks: share pictures out over processes, write a row per sample, go on where a run was stopped.

``OUT/<benchmark>/<tf | gen>/rows-00000.jsonl`` holds the rows of process 0, and so on. Each picture belongs to one
process by its number, so every sample comes exactly once, however many processes there are. A row leaves the process
before the next picture is begun: a run that is killed loses one picture, and the same command goes on after it, with
any number of processes.

Each picture is measured alone. So its rows do not depend on its neighbours or on the number of processes; on several
processors they may on the number of threads, as every sum of floats does.
"""

from __future__ import annotations

import hashlib
import logging
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from self1e.errors import DatasetError, Self1EError, SettingError
from self1e.evaluation.benchmarks import Answer, Benchmark, Opened, Options, find_benchmark
from self1e.evaluation.dump import RowWriter, read_rows
from self1e.evaluation.metrics.rows import Row
from self1e.evaluation.protocols import Run
from self1e.inference.weights import sampled_weights
from self1e.locking import only_run
from self1e.machine import process_count, process_index

_log = logging.getLogger(__name__)
_SAMPLED = 4096  # numbers of each tensor that go into a model's fingerprint
SHORT: dict[Answer, str] = {"teacher-forced": "tf", "generated": "gen"}
"""Names of the folders of both ways to ask."""

Progress = Callable[[str, int, int], None]
"""Is told a benchmark's name, pictures done and pictures in all, of this process."""


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is: ``torchrun`` says it in the environment."""

    rank: int = 0
    count: int = 1

    @classmethod
    def start(cls) -> Processes:
        """Read the environment, and meet the others if there are any."""
        rank, count = process_index(), process_count()
        if count > 1:
            import torch.distributed as dist

            # The slowest may be hours behind the fastest.
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        return cls(rank, count)

    def wait(self) -> None:
        """Wait until all are here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    def stop(self) -> None:
        """Leave the others."""
        if self.count > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One benchmark, opened, asked in one way."""

    benchmark: Benchmark
    opened: Opened
    options: Options
    run: Run
    folder: Path
    limit: int | None = None

    @property
    def indices(self) -> range:
        """Pictures to measure."""
        count = len(self.opened.units)
        return range(count if self.limit is None else min(self.limit, count))


def plan(
    model: Any,
    names: Sequence[str],
    data: Sequence[Path],
    out: Path,
    *,
    answers: Sequence[Answer] = ("teacher-forced",),
    exact: Any = "auto",
    limit: int | None = None,
    save_masks: bool = False,
) -> list[Job]:
    """Open every benchmark and look at what was measured before; nothing is computed.

    Args:
        model: From ``self1e.load``.
        names: See ``find_benchmark``.
        data: Folders in which data are looked for, in turn.
        out: Where rows go.
        answers: How to ask; a benchmark that can be asked in one way only is asked in that.
        exact: See ``Self1E.segment``.
        limit: Pictures of each benchmark, the first ones; None for all.
        save_masks: Whether rows hold the predicted masks, for `self1e.evaluation.report`.

    Raises:
        SettingError: A name is unknown, or the limit is below 1.
        DatasetError: Data are missing or damaged, or ``out`` holds rows of another run: all problems in one message.
    """
    if limit is not None and limit < 1:
        raise SettingError(f"limit={limit} must be at least 1 picture.")
    benchmarks = [find_benchmark(name) for name in dict.fromkeys(names)]
    name = model_name(model, exact)
    jobs: list[Job] = []
    problems: list[str] = []
    whole: list[str] = []
    for benchmark in benchmarks:
        try:
            opened = open_benchmark(benchmark, data)
        except Self1EError as error:
            told = str(error)
            problems.append(told if told.startswith(benchmark.name) else f"{benchmark.name}: {told}")
            continue
        before = len(problems)
        problems += [f"{benchmark.name}: {problem}" for problem in opened.problems]
        asked: list[Answer] = [one for one in answers if one in benchmark.answers]
        for answer in asked or benchmark.answers:
            options = Options(answer=answer, exact=exact, save_masks=save_masks)
            job = Job(
                benchmark=benchmark,
                opened=opened,
                options=options,
                run=describe(benchmark, opened, options, name, model.no_target_threshold),
                folder=out / folder_name(benchmark.name) / SHORT[answer],
                limit=limit,
            )
            problems += _problems_of_rows(job)
            jobs.append(job)
        if len(problems) == before:
            whole.append(benchmark.name)
    if problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        rest = f"\nTo measure what is there, name it: self1e eval {shlex.join(whole)} ..." if whole else ""
        told = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise DatasetError(f"{told}; nothing was run:\n{listed}{rest}")
    return jobs


def open_benchmark(benchmark: Benchmark, data: Sequence[Path]) -> Opened:
    """Open a benchmark in the first folder that holds it."""
    first: Self1EError | None = None
    for folder in data or [None]:
        try:
            return benchmark.open(folder)
        except DatasetError as error:
            first = first or error
    assert first is not None
    raise first


def describe(
    benchmark: Benchmark, opened: Opened, options: Options, model: str, no_target_threshold: float | None
) -> Run:
    """Say what is measured: a number without it is not comparable."""
    explicit = benchmark.explicit_protocols
    said = ["generated"] if explicit and options.answer == "generated" else []
    if explicit and no_target_threshold is not None:
        said.append(f"score < {no_target_threshold:.6g}")
    return Run(
        model=model,
        protocol=(explicit if said else benchmark.protocols)[0],
        dataset=benchmark.name,
        annotations=opened.annotations,
        prompt=benchmark.prompt,
        answer=options.answer,
        rejection=" or ".join(said) or "none",
    )


def evaluate(job: Job, model: Any, processes: Processes | None = None, progress: Progress | None = None) -> Path:
    """Measure this process's share of a benchmark, but for what was measured before.

    A picture that cannot be read, or on which the model fails, gets rows of wrong answers with the error.

    Returns:
        The file of this process's rows.

    Raises:
        OutputError: Another run is measuring into the same folder.
    """
    here = processes or Processes()
    job.folder.mkdir(parents=True, exist_ok=True)
    # Two commands at once would write every sample twice.
    with only_run(job.folder, "measuring") if not here.rank else nullcontext():
        return _evaluate(job, model, here, progress)


def _evaluate(job: Job, model: Any, here: Processes, progress: Progress | None) -> Path:
    path = job.folder / f"rows-{here.rank:05d}.jsonl"
    before = _measured(job)
    here.wait()  # all have looked before anybody writes
    mine = [index for index in job.indices if index % here.count == here.rank]
    with RowWriter(path, job.run) as writer:
        for done, index in enumerate(mine):
            if progress is not None:
                progress(job.benchmark.name, done, len(mine))
            if index in before.complete:
                continue
            rows = measure(job, model, index)
            for row in rows:
                if row["id"] not in before.ids:
                    writer.write(row | {"unit": index, "unit_rows": len(rows), "units": len(job.opened.units)})
    if progress is not None:
        progress(job.benchmark.name, len(mine), len(mine))
    here.wait()
    return path


def measure(job: Job, model: Any, index: int) -> list[Row]:
    """Make the rows of one picture, right or wrong."""
    try:
        return job.benchmark.measure(model, job.opened.units[index], job.options)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        _log.warning("%s, picture %d failed and counts as wrong: %s", job.benchmark.name, index, what)
        return [row | {"error": what} for row in job.benchmark.failed(job.opened, index)]


@dataclass(frozen=True)
class _Before:
    ids: frozenset[str]
    complete: frozenset[int]
    """Pictures all of whose rows are there."""


def _measured(job: Job) -> _Before:
    ids: set[str] = set()
    lacking: dict[int, int] = {}
    for path in row_files(job.folder):
        if not path.read_bytes().count(b"\n"):
            continue  # killed while the first line was written
        _, rows = read_rows(path, job.run)
        ids |= {row["id"] for row in rows}
        for row in rows:
            unit: Any = row["unit"]
            lacking[unit] = lacking.get(unit, int(row["unit_rows"])) - 1
    return _Before(frozenset(ids), frozenset(unit for unit, count in lacking.items() if not count))


def _problems_of_rows(job: Job) -> list[str]:
    try:
        _measured(job)
    except Self1EError as error:
        return [f"{job.benchmark.name}: {error}"]
    return []


def row_files(folder: Path) -> list[Path]:
    """List the files of rows of one run."""
    return sorted(folder.glob("rows-*.jsonl"))


def all_rows(job: Job) -> list[Row]:
    """Read what every process of a run has measured."""
    return [row for path in row_files(job.folder) for row in read_rows(path, job.run)[1]]


def folder_name(benchmark: str) -> str:
    """Make a folder's name of a benchmark's: ``refcoco/val`` becomes ``refcoco-val``."""
    short = re.sub(r"[^\w.+-]+", "-", benchmark).strip("-")
    if len(short) <= 80 and not benchmark.startswith("own:"):
        return short
    return f"{short[:20]}{short[-40:]}-{hashlib.sha256(benchmark.encode()).hexdigest()[:8]}"


def model_name(model: Any, exact: str = "auto") -> str:
    """Name a model so that other weights have another name: with a fingerprint of the weights, type, and path.

    Of each tensor some thousand numbers are read: training changes them all, and reading all of 8B takes minutes.
    """
    digest = hashlib.sha256()
    for name, shape, numbers in sampled_weights(model, _SAMPLED):
        digest.update(f"{name}{shape}".encode() + numbers)
    shown = Path(model.name).name if Path(model.name).is_dir() else model.name
    way = "" if exact == "auto" else f", {exact}"
    return f"{shown}@{digest.hexdigest()[:12]} ({str(model.dtype).removeprefix('torch.')}{way})"
