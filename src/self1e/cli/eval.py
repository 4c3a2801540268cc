"""``self1e eval``: benchmarks, a row per sample, and tables beside the published numbers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import DeviceOption, DtypeOption, ModelOption, say
from self1e.errors import SettingError
from self1e.machine import process_index


def evaluate(
    benchmarks: Annotated[
        list[str] | None, typer.Argument(help="refcoco/val, ade20k-150/val, scenes/test, own:PATH ...")
    ] = None,
    suite: Annotated[list[str] | None, typer.Option(help="paper, res, gres, reason, ovs, vqa, nano.")] = None,
    model: ModelOption = "nano",
    data: Annotated[
        list[Path] | None, typer.Option(help="Folder that holds dataset/, ccp/ ...; several are tried in turn.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Rows and tables; run it again to go on where it stopped.")] = Path("eval"),
    answer: Annotated[
        str, typer.Option(help="tf: [SEG] is given, as published; gen: the model writes its answer; both.")
    ] = "tf",
    limit: Annotated[int | None, typer.Option(help="Pictures per benchmark; the tables then say partial.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Plain modules instead of folded weights.")] = False,
    vqa_adapter: Annotated[
        str, typer.Option("--vqa-adapter", help="on: questions asked of the model as trained; off: of its base.")
    ] = "on",
    base: Annotated[
        Path | None, typer.Option(help="Folder of the base model, for --vqa-adapter off; MODEL is then not merged.")
    ] = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    tables: Annotated[
        bool, typer.Option("--tables", help="Compute nothing: print the tables of the rows in --out.")
    ] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Keep the masks, and write report.html and report.md for people.")
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compute nothing: compare two --out folders, sample by sample."),
    ] = None,
) -> None:
    """Measure a model on BENCHMARKS, and print every table of the paper that they fill.

    On several devices: torchrun --nproc-per-node 8 -m self1e eval ...
    """
    from self1e.evaluation.tables import filled_tables, for_terminal, remarks, write_tables

    if compare is not None:
        if benchmarks or suite or tables or report:
            raise SettingError("--compare A B compares what lies in two folders; it takes no benchmarks, nor --tables.")
        _compare(*compare)
        return
    if not tables:
        _measure(
            *(benchmarks or [], suite or [], model, data or [], out, answer, limit, exact, vqa_adapter, base),
            *(device, dtype, report),
        )
        if process_index():
            return
    elif benchmarks or suite:
        raise SettingError("--tables prints what lies in --out; it takes no benchmarks.")
    results = write_tables(out)
    filled = filled_tables(results)
    for one in filled:
        if not one.table.is_ablation:
            _show_paper(one)
    _show(for_terminal(results))
    for line in remarks(results, filled):
        say(line)
    say(f"Tables: {out / 'tables.md'}, {out / 'tables.json'}")
    if report:
        from self1e.evaluation.report import write_report

        page, text = write_report(out, data or [])
        say(f"Report: {page} ({page.stat().st_size / 1e6:.1f} MB), {text}")


def _compare(first: Path, second: Path) -> None:
    from self1e.evaluation.compare import as_markdown, compare

    for folder in (first, second):
        if not folder.is_dir():
            raise SettingError(f"--compare {folder}: no such folder; give two folders that `self1e eval --out` wrote.")
    typer.echo(as_markdown(compare(first, second)), nl=False)


def _measure(
    benchmarks: list[str],
    suites: list[str],
    model: str,
    data: list[Path],
    out: Path,
    answer: str,
    limit: int | None,
    exact: bool,
    vqa_adapter: str,
    base: Path | None,
    device: str,
    dtype: str,
    save_masks: bool,
) -> None:
    from self1e.evaluation import runner
    from self1e.evaluation.benchmarks import ANSWERS, find_benchmark
    from self1e.evaluation.suites import find_suite
    from self1e.evaluation.vqa_adapter import check_adapter, load_for_eval, switched

    names = [*benchmarks, *(name for one in suites for name in find_suite(one))]
    if not names:
        raise SettingError("Nothing to measure: name benchmarks, or a suite with --suite.")
    if answer not in ANSWERS:
        raise SettingError(f"--answer {answer!r} is unknown; choose one of {', '.join(ANSWERS)}.")
    for folder in data:
        if not folder.is_dir():
            raise SettingError(f"--data {folder} is not a folder.")
    for name in names:
        find_benchmark(name)  # a typing error should not cost the loading of a model
    check_adapter(vqa_adapter, names)
    processes = runner.Processes.start()
    loaded = load_for_eval(model, base, device=_own_device(device, processes.count), dtype=dtype)
    with switched(loaded, vqa_adapter):
        jobs = runner.plan(
            *(loaded, names, data, out),
            answers=ANSWERS[answer],
            exact="plain" if exact else "auto",
            limit=limit,
            save_masks=save_masks,
        )
        if not processes.rank:
            from self1e.evaluation.report import provenance

            provenance.record(out, loaded, sys.argv[1:])
        for job in jobs:
            with _bar(f"{job.benchmark.name} {runner.SHORT[job.options.answer]}", quiet=processes.rank > 0) as progress:
                runner.evaluate(job, loaded, processes, progress)
    processes.stop()


def _own_device(device: str, count: int) -> str:
    """Give each process a device of its own, where there are several."""
    import os

    import torch

    if count > 1 and device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    return device


class _bar:
    """A progress bar that `runner.evaluate` tells its progress."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        from tqdm import tqdm

        self._bar: Any = tqdm(desc=title, unit="picture", disable=True if quiet else None)

    def __enter__(self) -> Any:
        return self._tell

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def _tell(self, name: str, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)


def _show(rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("benchmark", "answer", "protocol", "samples", "figures", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)


def _show_paper(filled: Any) -> None:
    """Show what was measured of a table of the paper, each number beside the method's published ones."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from self1e.evaluation.tables import paper_lines

    title = f"Table {filled.table.number}: {filled.table.title}"
    table = Table("", "published", "protocol", "measured", "samples", title=title, box=None, pad_edge=False)
    for line in paper_lines(filled):
        table.add_row(*map(escape, line))
    Console().print(table)
