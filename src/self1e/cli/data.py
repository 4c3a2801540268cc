"""``self1e data``: check, count, show and prepare training data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import say
from self1e.errors import SettingError, did_you_mean

data = typer.Typer(
    help="Check, count, show and prepare training data.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_SHEET = Path("self1e-output") / "data-check.png"
_SHOWN = 10  # problems of one kind, on the screen

RootArgument = Annotated[Path, typer.Argument(metavar="ROOT", help="Folder or file of annotations.")]
FormatOption = Annotated[
    str | None,
    typer.Option("--format", help="json-lines, coco, coco-panoptic, indexed, label-studio [default: recognised]."),
]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder of the pictures, where it is not the format's usual one.")
]
SplitOption = Annotated[list[str] | None, typer.Option("--split", help="Only this split. May be repeated.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]


@data.command()
def check(
    root: RootArgument,
    format: FormatOption = None,
    pictures: PicturesOption = None,
    split: SplitOption = None,
    against: Annotated[
        Path | None, typer.Option(help="Folder of pictures that must not be in the data, e.g. a test set.")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(help="Leave out a kind of problem. May be repeated.")] = None,
    sheet: Annotated[Path, typer.Option(help="Where to draw the contact sheet.")] = _SHEET,
    no_sheet: Annotated[bool, typer.Option("--no-sheet", help="Draw none.")] = False,
    every: Annotated[bool, typer.Option("--all", help=f"List every problem, not {_SHOWN} of each kind.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find every problem of a data set in one run, and draw some of it.

    Exit status: 0 no problem, 1 problems, 2 the command was not understood.
    """
    from self1e.data.own.check import check_data
    from self1e.data.own.records import KINDS

    for kind in ignore or []:
        if kind not in KINDS:
            raise SettingError(f"--ignore {kind!r}.{did_you_mean(kind, KINDS)} Known: {', '.join(KINDS)}.")
    found = _find(root, format, pictures, split)
    if against is not None and not against.is_dir():
        raise SettingError(f"--against {against} is not a folder; name the folder of the test pictures.")
    report = check_data(found, splits=split, against=against, ignore=ignore or [], progress=show_progress)
    drawn = None if no_sheet else report.sheet()
    if drawn is not None:
        save_picture(drawn, sheet)
    if as_json:
        typer.echo(json.dumps(report.to_json() | {"sheet": None if drawn is None else str(sheet)}))
    else:
        typer.echo(f"{root}: {report.format}")
        table_of_splits({name: counts.summary() for name, counts in report.counts.items()})
        list_problems(report, every)
        if drawn is not None:
            typer.echo(f"Contact sheet: {sheet}")
    if not report.is_clean:
        raise typer.Exit(1)


@data.command()
def stats(
    root: RootArgument,
    format: FormatOption = None,
    pictures: PicturesOption = None,
    split: SplitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count pictures, queries, sizes and words; what is broken is left out, and counted by `check`."""
    from self1e.data.own.check import check_data

    report = check_data(_find(root, format, pictures, split), splits=split, progress=show_progress)
    summaries = {name: counts.summary() for name, counts in report.counts.items()}
    if as_json:
        typer.echo(json.dumps({"root": str(root), "format": report.format, "splits": summaries}))
        return
    typer.echo(f"{root}: {report.format}")
    table_of_splits(summaries)
    for name, summary in summaries.items():
        typer.echo(f"\n{name}")
        for what, (width, height) in summary["sizes_wh"].items():
            typer.echo(f"  {what + ' picture':24}{width} x {height}")
        if summary["mask_share_quartiles"]:
            shares = " ".join(f"{100 * share:.3g}%" for share in summary["mask_share_quartiles"])
            typer.echo(f"  {'mask share, quartiles':24}{shares}")
        typer.echo(f"  {'words per query':24}{summary['words_per_query']}")
        typer.echo(f"  {'different queries':24}{summary['different_queries']}")
        for text, count in list(summary["most_frequent"].items())[:_SHOWN]:
            typer.echo(f"  {count:>8}  {text}")
    if report.problems:
        say(f"self1e: {len(report.problems)} problems left out; see: self1e data check {root}")


@data.command()
def example(
    folder: Annotated[Path, typer.Argument(help="The folder to make; must not exist, or be empty.")],
    pictures: Annotated[int, typer.Option(help="How many.")] = 20,
) -> None:
    """Write a small data set to try the commands on: drawn pictures with words and masks."""
    from self1e.data.own.example import write_example

    file = write_example(folder, pictures=pictures)
    typer.echo(f"{file}: {pictures} pictures; try: self1e data check {folder}")


@data.command()
def show(
    root: RootArgument,
    index: Annotated[list[int] | None, typer.Option("--index", "-i", help="Which sample. May be repeated.")] = None,
    format: FormatOption = None,
    pictures: PicturesOption = None,
    split: Annotated[str | None, typer.Option(help="Which split, where there are several.")] = None,
    out: Annotated[Path, typer.Option(help="Where to draw them.")] = Path("self1e-output") / "data-show.png",
) -> None:
    """Draw samples as training sees them: the picture, and every query with its mask."""
    from self1e.data.own import open_data
    from self1e.data.scenes.sheet import contact_sheet

    samples = open_data(root, split=split, format=format, pictures=_folder(pictures))
    chosen = index or [0]
    for number in chosen:
        if not 0 <= number < len(samples):
            raise SettingError(f"--index {number}: {root} has samples 0 to {len(samples) - 1}.")
    taken = [samples[number] for number in chosen]
    for number, sample in zip(chosen, taken, strict=True):
        typer.echo(f"{number} {sample.source} {sample.image.width}x{sample.image.height}")
        for target in sample.targets:
            share = f"{100 * target.mask.mean():.2f}%" if target.mask.any() else "not there"
            typer.echo(f"  {target.text!r} {share} ({target.kind}{', ' + target.tag if target.tag else ''})")
    save_picture(contact_sheet(taken), out)
    typer.echo(f"Drawn: {out}")


def _find(root: Path, format: str | None, pictures: Path | None, splits: Sequence[str] | None) -> Any:
    from self1e.data.own import recognise

    if not root.exists():
        raise SettingError(f"{root}: no such file or folder; name the annotations, or the folder that holds them.")
    found = recognise(root, format=format, pictures=_folder(pictures))
    for name in splits or []:
        if name not in found.splits:
            raise SettingError(f"--split {name!r}.{did_you_mean(name, found.splits)} Found: {', '.join(found.splits)}.")
    return found


def _folder(pictures: Path | None) -> Path | None:
    if pictures is not None and not pictures.is_dir():
        raise SettingError(f"--pictures {pictures} is not a folder; name the one that holds the pictures.")
    return pictures


def show_progress(things: Iterable[Any], length: int) -> Iterable[Any]:
    """Show a bar on stderr if a person is looking."""
    from tqdm import tqdm

    return tqdm(things, total=length, unit="picture", disable=True if length < 20 else None, leave=False)


def save_picture(image: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, format="PNG")


def table_of_splits(summaries: dict[str, dict[str, Any]]) -> None:
    width = max(len(name) for name in summaries) + 2
    columns = ("records", "pictures", "queries", "absent")
    typer.echo("  " + "split".ljust(width) + "".join(f"{column:>10}" for column in columns))
    for name, summary in summaries.items():
        typer.echo("  " + name.ljust(width) + "".join(f"{summary[column]:>10}" for column in columns))


def list_problems(report: Any, every: bool) -> None:
    from self1e.data.own.records import KINDS

    kinds = report.count_kinds()
    if not kinds:
        typer.echo("No problem found.")
        return
    typer.echo(f"{len(report.problems)} problem{'s' * (len(report.problems) != 1)}")
    for kind, count in kinds.items():
        typer.echo(f"\n{kind}: {count} ({KINDS[kind]})")
        listed = [problem for problem in report.problems if problem.kind == kind]
        for problem in listed if every else listed[:_SHOWN]:
            typer.echo(f"  {' '.join(str(problem).split())}")
        if not every and count > _SHOWN:
            typer.echo(f"  and {count - _SHOWN} more: --all lists them")


@data.command()
def prepare(
    name: Annotated[str | None, typer.Argument(help="Which data set; left out, all are listed.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder of all data sets, in the published layout.")] = None,
    downloads: Annotated[Path | None, typer.Option(help="Where the archives lie [default: ROOT].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say where a public data set comes from; unpack and verify what you downloaded of it.

    Nothing is downloaded. Exit status: 0 complete, 1 something is missing or differs, 2 not understood.
    """
    from self1e.data.prepare import find_source
    from self1e.data.prepare import prepare as run
    from self1e.data.sources import SOURCES

    if name is None:
        width = max(map(len, SOURCES)) + 2
        for source in SOURCES.values():
            typer.echo(f"{source.name.ljust(width)}{source.title}")
        return
    source = find_source(name)
    if root is None:
        _describe(source)
        return
    for folder, option in ((root, "--root"), (downloads, "--downloads")):
        if folder is not None and not folder.is_dir():
            raise SettingError(f"{option} {folder} is not a folder; make it first.")
    results = run(name, root, downloads, progress=_members)
    if as_json:
        typer.echo(json.dumps([result.to_json() for result in results]))
    else:
        for result in results:
            _tell(result, downloads or root)
    if not all(result.is_complete for result in results):
        raise typer.Exit(1)


def _members(things: Iterable[Any], count: int | None) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(things, total=count, unit="file", disable=None, leave=False)


def _describe(source: Any) -> None:
    typer.echo(f"{source.name}: {source.title}\n  page     {source.page}\n  licence  {source.licence}")
    for archive in source.archives:
        typer.echo(f"  archive  {archive.name} -> ROOT/{archive.into}/")
    for expected in source.expected:
        typer.echo(f"  expects  {_told(expected)}")
    if source.needs:
        typer.echo(f"  needs    {', '.join(source.needs)}")
    if source.note:
        typer.echo(f"  note     {source.note}")
    typer.echo(f"Download from the page, then: self1e data prepare {source.name} --root DIR")


def _told(expected: Any) -> str:
    path = f"ROOT/{'../' if expected.path.startswith('data/') else ''}{expected.path}"
    if expected.unit == "file":
        return path
    count = "an unknown number of" if expected.count is None else f"{expected.count:,}"
    what = f"{expected.suffix} files" if expected.unit == "files" else f"{expected.key or 'records'}"
    return f"{path}: {count} {what}"


def _tell(result: Any, downloads: Path) -> None:
    source = result.source
    typer.echo(f"{source.name}: {'complete' if result.is_complete else 'not complete'}")
    for one in result.unpacked:
        typer.echo(f"  unpacked  {one.archive}: {one.files:,} files, {one.new:,} of them now")
    for one in result.checked:
        found = "" if one.found is None else f", found {one.found:,}"
        typer.echo(f"  {one.state:<10}{_told(one.expected)}{found}")
    if not result.is_complete:
        for archive in result.absent:
            typer.echo(f"  download  {archive} into {downloads}")
        typer.echo(f"  page      {source.page}\n  licence   {source.licence}")
        if source.note:
            typer.echo(f"  note      {source.note}")
