"""``self1e segment``: words and pictures in, files out."""

from __future__ import annotations

import glob
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, DeviceOption, DtypeOption, ModelOption, load_quietly, say, summary
from self1e.errors import PictureError, Self1EError, SettingError

_OURS = re.compile(r"\.(overlay|mask\d+)\.png$", re.IGNORECASE)
_OUT = Path("self1e-output")


def segment(
    context: typer.Context,
    pictures: Annotated[list[str], typer.Argument(metavar="PICTURE|FOLDER|GLOB", help="What to look at.")],
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help='What to find: "the red cup". May be repeated.')
    ] = None,
    queries_file: Annotated[
        Path | None, typer.Option(help="File with one query per line; empty lines and lines with # are left out.")
    ] = None,
    model: ModelOption = "nano",
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for the files; left out, {_OUT}, or with --json none are written.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", "-f", help="One or more of overlay,mask,coco,polygons,json.")
    ] = "overlay",
    max_tiles: Annotated[
        int | None, typer.Option(help="Most tiles per picture, 1 to 12: more show small things better, and cost more.")
    ] = None,
    kind: Annotated[str, typer.Option(help="phrase, sentence, or auto to guess.")] = "auto",
    threshold: Annotated[float, typer.Option(help="Foreground is where the logit is above it.")] = 0.0,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per picture, and nothing else.")] = False,
) -> None:
    """Find in pictures what the words mean.

    A picture that cannot be read is reported and does not stop the others; the exit status is then 1.
    """
    queries = _queries(query or [], queries_file)
    names = [name.strip() for name in formats.split(",") if name.strip()]
    _check(queries, kind, names, max_tiles, out)
    found, failures = _find(pictures)
    for name, problem in failures:
        _report(name, problem, as_json)
    if not found:
        raise typer.Exit(1)
    _enable_heic()
    debug = bool(context.parent and context.parent.params.get("debug"))
    segmenter = load_quietly(model, device, dtype)
    if segmenter.name == "nano":
        say(NANO_KNOWS)
    folder = out or (None if as_json else _OUT)
    failed = bool(failures)
    for path, stem in _progress(found, file_stems(found)):
        try:
            started = time.perf_counter()
            result = segmenter.segment(path, queries, kind=kind, max_tiles=max_tiles, threshold=threshold)
            seconds = time.perf_counter() - started
            files = _write(result, folder, stem, names)
        # Also what a full disk or an exhausted device raises: the next picture may be smaller.
        except (Self1EError, OSError, MemoryError, RuntimeError) as error:
            if debug:
                raise
            _report(str(path), _one_line(error), as_json)
            failed = True
        else:
            _show(path, result, files, seconds, as_json)
    if failed:
        raise typer.Exit(1)


def _queries(given: Sequence[str], file: Path | None) -> list[str]:
    """Collect the queries, those of the command line first."""
    queries = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--queries-file {file}: cannot be read as UTF-8 text: {error}.") from error
        queries += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not queries:
        raise SettingError('No query: say what to find with -q "the red cup", or name a --queries-file.')
    return queries


def _check(queries: list[str], kind: str, formats: list[str], max_tiles: int | None, out: Path | None) -> None:
    """Refuse what cannot work before a model is loaded, which takes a while."""
    from self1e.inference.export import check_formats
    from self1e.processing.prompts import segmentation_question

    for words in queries:
        segmentation_question(words, kind)  # type: ignore[arg-type]  # says so if it is not one
    check_formats(formats)
    if max_tiles is not None and not 1 <= max_tiles <= 12:
        raise SettingError(f"--max-tiles {max_tiles} must be from 1 to 12.")
    if out is not None and out.exists() and not out.is_dir():
        raise SettingError(f"--out {out}: is a file; expected a folder, which is made if it is not there.")


def _enable_heic() -> None:
    """Let Pillow read what phones write, where pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener  # type: ignore[import-not-found]
    except ImportError:
        return
    register_heif_opener()


def _find(arguments: Sequence[str]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Expand the arguments to pictures, each once, and say which arguments give none."""
    from self1e.processing.pictures import list_pictures

    found: dict[Path, None] = {}
    failures: list[tuple[str, str]] = []
    for argument in arguments:
        try:
            matches = list_pictures([argument])
        except (PictureError, OSError) as error:  # OSError: a name too long, a folder that may not be entered
            failures.append((argument, "no such file or folder" if _is_missing(argument) else str(error)))
            continue
        if not Path(argument).is_file():
            # A second run on the same folder should not segment what the first one drew.
            kept = [path for path in matches if not _OURS.search(path.name)]
            if len(kept) < len(matches):
                say(f"self1e: {argument}: left out {len(matches) - len(kept)} pictures that self1e has drawn")
            matches = kept
        found.update(dict.fromkeys(matches))
    return list(found), failures


def _is_missing(argument: str) -> bool:
    try:
        return not glob.has_magic(argument) and not Path(argument).exists()
    except OSError:
        return False


def file_stems(paths: Sequence[Path]) -> list[str]:
    """Name the outputs of each picture: its own name, with more of its path where two would share it.

    No two pictures share a name, on file systems that ignore case as well.
    """
    counts: dict[str, int] = {}
    for path in paths:
        counts[path.stem.casefold()] = counts.get(path.stem.casefold(), 0) + 1
    taken: set[str] = set()
    stems = []
    for path in paths:
        stem = path.stem
        if counts[stem.casefold()] > 1:
            stem = "-".join([*[path.absolute().parent.name], stem, path.suffix.lstrip(".")]).strip("-")
        if stem.lower().endswith((".coco", ".polygons")):
            stem = stem.replace(".", "-")  # its STEM.json would be another picture's STEM.coco.json
        number, unique = 2, stem
        while unique.casefold() in taken:
            unique, number = f"{stem}-{number}", number + 1
        taken.add(unique.casefold())
        stems.append(unique)
    return stems


def _write(result: Any, folder: Path | None, stem: str, formats: list[str]) -> list[Path]:
    if folder is None:
        return []
    from self1e.inference.export import write_outputs

    return write_outputs(result, folder, stem, formats)


def _progress(paths: Sequence[Path], stems: Sequence[str]) -> Any:
    """Go through the pictures, with a bar on stderr if a person is looking and there are several."""
    from tqdm import tqdm

    pairs = list(zip(paths, stems, strict=True))
    return tqdm(pairs, unit="picture", disable=True if len(pairs) < 2 else None, leave=False)


def _show(path: Path, result: Any, files: Sequence[Path], seconds: float, as_json: bool) -> None:
    if as_json:
        from self1e.inference.export import entries

        _line(
            json.dumps(
                {
                    "picture": str(path),
                    "size_wh": list(result.size_wh),
                    "queries": entries(result),
                    "files": [str(file) for file in files],
                    "seconds": round(seconds, 3),
                }
            )
        )
        return
    width, height = result.size_wh
    told = [
        summary(query, int(area), width * height, float(score))
        for query, area, score in zip(result.queries, result.areas, result.scores, strict=True)
    ]
    more = [f"{len(told) - 3} more"] if len(told) > 3 else []
    where = f"{files[0]}" + (f" and {len(files) - 1} more" if len(files) > 1 else "")
    _line(f"{path}: {', '.join(told[:3] + more)} -> {where}")


def _report(name: str, problem: str, as_json: bool) -> None:
    """Say on stderr that a picture failed; programs get their line as well."""
    problem = problem.removeprefix(f"{name}: ")
    with _cleared():
        say(f"self1e: {name}: {problem}")
    if as_json:
        _line(json.dumps({"picture": name, "error": problem}))


def _line(text: str) -> None:
    with _cleared():
        typer.echo(text)


def _cleared() -> Any:
    """Take the progress bar out of the way of a line."""
    from tqdm import tqdm

    return tqdm.external_write_mode()


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Self1EError) else f"{type(error).__name__}: {text[:300]}"
