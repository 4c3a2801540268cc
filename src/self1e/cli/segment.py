"""``self1e segment``: words and pictures in, files out."""

from __future__ import annotations

import glob
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from self1e.cli.options import NANO_KNOWS, DeviceOption, DtypeOption, ModelOption, load_quietly, say, summary
from self1e.errors import PictureError, Self1EError, SettingError
from self1e.machine import process_count, process_index
from self1e.processing.limits import MAX_BYTES, MAX_PIXELS, MAX_SECONDS

if TYPE_CHECKING:
    from self1e.inference.engines import Engine

_OUT = Path("self1e-output")


def segment(
    context: typer.Context,
    pictures: Annotated[
        list[str] | None,
        typer.Argument(metavar="PICTURE|FOLDER|GLOB", help="What to look at; may be left out with a table."),
    ] = None,
    query: Annotated[
        list[str] | None, typer.Option("--query", "-q", help='What to find: "the red cup". May be repeated.')
    ] = None,
    queries_file: Annotated[
        Path | None,
        typer.Option(
            help="Text with one query per line (without empty lines and those with #); or queries per picture: "
            "CSV with the header image,query, or JSON lines with image and query or queries."
        ),
    ] = None,
    model: ModelOption = "nano",
    out: Annotated[
        Path | None, typer.Option(help=f"Folder for the files; left out, {_OUT}, or with --json none are written.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="One or more of overlay,mask,cutout,indexed,json,polygons,rle,rle-uncompressed,coco,coco-results,"
            "yolo,label-studio,label-studio-polygons.",
        ),
    ] = "overlay",
    split: Annotated[bool, typer.Option("--split", help="One mask per connected piece, the largest first.")] = False,
    fill_holes: Annotated[bool, typer.Option("--fill-holes", help="Close what a mask's pieces enclose.")] = False,
    min_area: Annotated[int, typer.Option(help="Leave out pieces of fewer pixels.")] = 0,
    max_tiles: Annotated[
        int | None, typer.Option(help="Most tiles per picture, 1 to 12: more show small things better, and cost more.")
    ] = None,
    kind: Annotated[str, typer.Option(help="phrase, sentence, or auto to guess.")] = "auto",
    threshold: Annotated[float, typer.Option(help="Foreground is where the logit is above it.")] = 0.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Do pictures again that are finished.")] = False,
    update: Annotated[
        bool, typer.Option("--update", help="Do finished pictures again whose file, queries or settings have changed.")
    ] = False,
    max_pixels: Annotated[int, typer.Option(help="Largest picture, width times height; 0 for no limit.")] = MAX_PIXELS,
    max_bytes: Annotated[int, typer.Option(help="Largest file; 0 for no limit.")] = MAX_BYTES,
    max_seconds: Annotated[
        float, typer.Option(help="Most processor time to decode a picture; 0 for no limit.")
    ] = MAX_SECONDS,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine: Annotated[
        str, typer.Option(help="local, or ray: many machines. Under torchrun, its processes share the pictures.")
    ] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Ray's processes with a model each [default: one per GPU, or per 4 processors].")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per picture, and nothing else.")] = False,
) -> None:
    """Find in pictures what the words mean.

    A picture that cannot be read is reported and does not stop the others; the exit status is then 1. Several pictures
    get a manifest.jsonl in the folder of the files: the same command again skips what is finished.
    """
    from self1e.inference.engines import choose_engine
    from self1e.inference.parts import PartOptions
    from self1e.inference.tables import TABLE_SUFFIXES, read_table
    from self1e.processing.limits import PictureLimits

    arguments = pictures or []
    table = None
    if queries_file is not None and queries_file.suffix.lower() in TABLE_SUFFIXES:
        table, queries_file = read_table(queries_file, kind=kind), None
    if not arguments and table is None:
        raise typer.BadParameter("Missing argument 'PICTURE|FOLDER|GLOB': say what to look at.")
    queries = _queries(query or [], queries_file, needed=table is None)
    names = [name.strip() for name in formats.split(",") if name.strip()]
    _check(queries, kind, names, max_tiles, out)
    if overwrite and update:
        raise SettingError("--overwrite does all pictures again, --update only those that have changed: use one.")
    parts = PartOptions(split=split, fill_holes=fill_holes, min_area=min_area)
    limits = PictureLimits(max_pixels=max_pixels, max_bytes=max_bytes, max_seconds=max_seconds)
    single = len(arguments) == 1 and Path(arguments[0]).is_file() and table is None
    shared = engine != "local" or process_count() > 1
    if shared and (single or (as_json and out is None)):
        raise SettingError(
            "One picture, or --json without --out, is done by one process: leave out --engine and torchrun (and "
            "unset WORLD_SIZE), or name a folder of pictures and --out."
        )
    if process_count() > 1:
        from self1e.inference.engines.ranks import own_device

        device = own_device(device)
    elsewhere = choose_engine(engine, partial(_load_in_worker, model, device, dtype), workers)
    found, failures = _find(arguments)
    if process_index() == 0:
        for name, problem in failures:
            _report(name, problem, as_json)
    if arguments and not found:
        raise typer.Exit(1)
    _enable_heic()
    task = _Task(queries, table, names, kind, max_tiles, threshold, limits, as_json, parts)
    debug = bool(context.parent and context.parent.params.get("debug"))
    try:
        segmenter = load_quietly(model, device, dtype)
        if segmenter.name == "nano" and process_index() == 0:
            say(NANO_KNOWS)
        if single or (as_json and out is None):
            failed = _one_by_one(segmenter, task, found, out or (None if as_json else _OUT), debug)
        else:
            existing = "overwrite" if overwrite else "update" if update else "keep"
            given = [name for name in arguments if name not in dict(failures)]
            failed = _folder(segmenter, task, given, out or _OUT, existing, elsewhere)
    except KeyboardInterrupt:
        say("self1e: stopped")
        raise typer.Exit(130) from None
    if process_index() == 0 and (failed or failures):  # the others' status would make torchrun end this one
        raise typer.Exit(1)


@dataclass(frozen=True)
class _Task:
    """What is asked, of whatever picture."""

    queries: list[str]
    table: Any
    formats: list[str]
    kind: str
    max_tiles: int | None
    threshold: float
    limits: Any
    as_json: bool
    parts: Any


def _one_by_one(segmenter: Any, task: _Task, paths: Sequence[Path], folder: Path | None, debug: bool) -> bool:
    """Segment without a manifest: one picture, or none that is to be kept. Say whether one has failed."""
    from self1e.processing.pictures import open_picture

    failed = False
    own = task.table.queries if task.table else {}
    if own:  # with both, only pictures that are in both
        paths = [path for path in paths if Path(os.path.abspath(path)) in own] if paths else list(own)  # noqa: PTH100
    for path in _progress(paths):
        queries = list(dict.fromkeys([*task.queries, *own.get(Path(os.path.abspath(path)), ())]))  # noqa: PTH100
        try:
            started = time.perf_counter()
            opened = open_picture(path, **vars(task.limits))
            result = segmenter.segment(
                opened,
                queries,
                kind=task.kind,
                max_tiles=task.max_tiles,
                threshold=task.threshold,
                return_logits=not task.parts.is_idle,  # for the parts' scores
            )
            result = task.parts.apply(result)
            seconds = time.perf_counter() - started
            files = _write(result, folder, path.stem, task.formats)
        # Also what a full disk or an exhausted device raises: the next picture may be smaller.
        except (Self1EError, OSError, MemoryError, RuntimeError) as error:
            if debug:
                raise
            _report(str(path), _one_line(error), task.as_json)
            failed = True
        else:
            _show(path, result, [str(file) for file in files], task.as_json, seconds)
    return failed


def _folder(segmenter: Any, task: _Task, sources: list[str], out: Path, existing: Any, engine: Engine | None) -> bool:
    """Segment with a manifest, resumable. Say whether a picture has failed."""
    from tqdm import tqdm

    from self1e.inference.folder import segment_folder

    bars: list[Any] = []
    stop = threading.Event()

    def told(record: Any, result: Any, report: Any) -> None:
        if not bars:
            bars.append(tqdm(total=report.total, initial=report.kept, unit="picture", disable=None, leave=False))
        bars[0].update()
        if result is None:
            _report(record.source, record.error, task.as_json)
        else:
            _show(Path(record.source), result, [str(out / name) for name in record.files], task.as_json)

    with _stopping(stop):
        try:
            report = segment_folder(
                segmenter,
                sources or None,
                out,
                task.queries,
                table=task.table,
                formats=task.formats,
                kind=task.kind,  # type: ignore[arg-type]  # checked
                max_tiles=task.max_tiles,
                threshold=task.threshold,
                parts=task.parts,
                existing=existing,
                limits=task.limits,
                stop=stop,
                on_record=told,
                engine=engine,
            )
        except KeyboardInterrupt:
            say(f"self1e: stopped at once; the same command goes on after the last line of {out / 'manifest.jsonl'}")
            raise typer.Exit(130) from None
        finally:
            for bar in bars:
                bar.close()
    if process_index():
        return False
    if report.combined and not task.as_json:
        say(f"self1e: for all pictures: {', '.join(map(str, _few(report.combined)))}")
    if report.left_out:
        say(f"self1e: left out {report.left_out} pictures that self1e has drawn, or that the table does not name")
    if report.kept:
        say(f"self1e: {report.kept} of {report.total} were finished before; --overwrite does them again")
    if report.stopped:
        say(
            f"self1e: stopped; {report.kept + report.done} of {report.total} pictures are finished. "
            "The same command goes on where this one stopped."
        )
        raise typer.Exit(130)
    return bool(report.failed)


def _few(files: Sequence[Path]) -> list[Path]:
    """Leave out YOLO's label files: there is one per picture."""
    return [path for path in files if path.suffix != ".txt"]


@contextmanager
def _stopping(stop: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set ``stop`` and the second interrupt; SIGTERM, which batch systems send, does the same."""

    def ask(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Straight to the file: a handler may have interrupted a print, and prints do not nest.
        os.write(2, b"self1e: stopping after this picture; once more to stop at once\n")

    if threading.current_thread() is not threading.main_thread():  # only there Python delivers signals
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, ask) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _queries(given: Sequence[str], file: Path | None, *, needed: bool) -> list[str]:
    """Collect the queries, those of the command line first."""
    queries = list(given)
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingError(f"--queries-file {file}: cannot be read as UTF-8 text: {error}.") from error
        queries += [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not queries and needed:
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


def _load_in_worker(model: str, device: str, dtype: str) -> Any:
    """Load the model in a process of Ray's, which has to learn to read pictures of phones, too."""
    _enable_heic()
    return load_quietly(model, device, dtype)


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
        found.update(dict.fromkeys(matches))
    return list(found), failures


def _is_missing(argument: str) -> bool:
    try:
        return not glob.has_magic(argument) and not Path(argument).exists()
    except OSError:
        return False


def _write(result: Any, folder: Path | None, stem: str, formats: list[str]) -> list[Path]:
    if folder is None:
        return []
    from self1e.inference.export import write_outputs

    return write_outputs(result, folder, stem, formats)


def _progress(paths: Sequence[Path]) -> Any:
    """Go through the pictures, with a bar on stderr if a person is looking and there are several."""
    from tqdm import tqdm

    return tqdm(paths, unit="picture", disable=True if len(paths) < 2 else None, leave=False)


def _show(path: Path, result: Any, files: Sequence[str], as_json: bool, seconds: float | None = None) -> None:
    if as_json:
        from self1e.inference.export import entries

        line = {
            "picture": str(path),
            "size_wh": list(result.size_wh),
            "queries": entries(result),
            "files": list(files),
        }
        _line(json.dumps(line if seconds is None else line | {"seconds": round(seconds, 3)}))
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
