"""Segment a folder of pictures: overlapped, resumable, with one manifest.

    report = segment_folder(model, "photos", "masks", ["the person"])

Three things happen at once: threads open the next pictures, the model works on one, a thread writes the last one's
files. What is open together is bounded (see ``_Memory``). Order is kept, and pictures go through the model one by one:
no mask depends, not even by rounding, on which other pictures a run has met, so a run that was stopped and resumed
gives the same files as one that was not, byte for byte.

A picture ``a/x.jpg`` below the folder gets ``OUT/a/x.jpg.mask0.png`` and the like: the whole name, so that neither
``b/x.jpg`` nor ``a/x.png`` is in the way. Files appear whole or not at all; when they are on the disk, the manifest
gets its line. A kill therefore loses the picture that is being written and the one that is being computed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from self1e.errors import OutputError, PictureError, Self1EError, SettingError
from self1e.files import remove_temporary
from self1e.inference.export import DRAWN, check_formats, write_outputs
from self1e.inference.exports.combined import check_label_names, write_combined
from self1e.inference.manifest import Draft, Manifest, Record
from self1e.inference.parts import PartOptions
from self1e.inference.tables import Table, read_table
from self1e.inference.weights import sampled_weights
from self1e.processing.limits import PictureLimits
from self1e.processing.pictures import OpenedPicture, list_pictures, open_picture
from self1e.processing.prompts import segmentation_question
from self1e.settings import check_batch, check_max_tiles
from self1e.structures import Segmentation

if TYPE_CHECKING:
    from self1e.inference.engines import Engine
    from self1e.inference.engines.share import Outcome

Existing = Literal["keep", "update", "overwrite"]

_READERS = 2  # threads that open pictures: one picture takes as long as a small model's pass
_AHEAD = 4  # pictures that wait for the model
_PIXELS_AHEAD = 2**26  # of all pictures that are open, unless a single one has more; 4 bytes each once opened
_SHOWN = 3  # pictures named in a message

_log = logging.getLogger(__name__)

# One picture's name, file or its length are at fault, not the disk.
_NAME_ERRORS = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


@dataclass
class FolderReport:
    """How far a run has come; what ``segment_folder`` returns in the end."""

    manifest: Path
    """Every picture's status, see ``self1e.inference.manifest``."""
    total: int
    """Pictures that were asked for."""
    kept: int = 0
    """Pictures that were finished before, and left as they are."""
    done: int = 0
    """Pictures that were segmented and written now."""
    failed: dict[str, str] = field(default_factory=dict)
    """Pictures that could not be read or segmented, and why."""
    left_out: int = 0
    """Pictures in the folders that self1e has drawn, or that the table does not name."""
    stopped: bool = False
    """It was asked to stop before the end."""
    combined: list[Path] = field(default_factory=list, compare=False)
    """Files for all pictures, see ``self1e.inference.exports.combined``; written when a run has come to its end."""

    @property
    def remaining(self) -> int:
        """Pictures that have not been tried."""
        return self.total - self.kept - self.done - len(self.failed)


OnRecord = Callable[[Record, Segmentation | None, FolderReport], None]


@dataclass(frozen=True)
class Job:
    """A picture that is to be segmented."""

    name: str
    path: Path
    queries: tuple[str, ...]


@dataclass(frozen=True)
class _Opened:
    job: Job
    stamp: tuple[int, int] | None
    picture: OpenedPicture | PictureError
    pixels: int
    """What ``_Memory`` is to be given back."""


def segment_folder(
    model: Any,
    source: str | Path | Sequence[str | Path] | None,
    out: str | Path,
    queries: str | Sequence[str] = (),
    *,
    table: str | Path | Table | None = None,
    formats: Sequence[str] = ("mask",),
    kind: Literal["phrase", "sentence", "auto"] = "auto",
    template: str | None = None,
    max_tiles: int | None = None,
    threshold: float = 0.0,
    batch_size: int | None = None,
    parts: PartOptions | None = None,
    existing: Existing = "keep",
    limits: PictureLimits | None = None,
    stop: threading.Event | None = None,
    on_record: OnRecord | None = None,
    engine: Engine | None = None,
) -> FolderReport:
    """Segment every picture of folders, and go on where an earlier run has stopped.

    A picture that cannot be read or segmented is recorded as failed, tried again by the next run, and stops nothing.
    KeyboardInterrupt loses the picture in flight; set ``stop`` to lose none.

    Args:
        model: A ``Self1E``.
        source: Folders (searched to any depth), patterns or files; None takes the pictures of ``table``.
        out: Folder for the files and the manifest; may lie inside ``source``.
        queries: Asked of every picture.
        table: Queries per picture, or the file that ``read_table`` reads them from; asked after ``queries``. With a
            ``source`` as well, only pictures that are in both.
        formats: See ``self1e.inference.export``.
        kind: See ``Self1E.segment``, like the next four.
        template: A question of your own.
        max_tiles: Most tiles, 1 to 12.
        threshold: A finite number.
        batch_size: Most queries at once. Left out it follows the free memory, and on a GPU other work there may then
            change masks by rounding.
        parts: What becomes of a mask's pieces: split, holes closed, small ones dropped; left out, nothing.
        existing: What to do about pictures that are finished. ``"keep"`` skips them, and is an error if one was
            made otherwise: from another file (by size and time), or with other queries, settings or weights.
            ``"update"`` does those again and skips the rest, ``"overwrite"`` does all again. Pictures whose files
            are gone are done again in any case.
        limits: What a picture may cost.
        stop: When it is set, the run finishes the picture in flight and returns.
        on_record: Called in this thread after each picture is recorded, with its masks if it is done.
        engine: Where the work is done, see ``self1e.inference.engines``; left out, in this process. Masks that come
            from elsewhere have no picture with them.

    Raises:
        SettingError: A setting cannot work, or finished pictures were made otherwise.
        PromptError: A query is empty, or nothing was asked.
        PictureError: There is no picture.
        OutputError: Nothing more can be written (the disk is full), or another run writes to ``out``.
    """
    out = Path(out)
    if existing not in ("keep", "update", "overwrite"):
        raise SettingError(f"existing={existing!r} is unknown; choose keep, update or overwrite.")
    check_batch(threshold=threshold, batch_size=batch_size)
    if max_tiles is not None:
        check_max_tiles(max_tiles)
    common = (queries,) if isinstance(queries, str) else tuple(queries)
    for words in common:
        segmentation_question(words, kind, template)
    asked = read_table(table, kind=kind, template=template) if isinstance(table, str | Path) else table
    settings = {
        "model": model.name,
        "weights": fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "formats": tuple(check_formats(formats)),
        "kind": kind,
        "template": template,
        "max_tiles": max_tiles,
        "threshold": threshold,
        "batch_size": batch_size,
    }
    if parts is not None and not parts.is_idle:  # otherwise no key: runs of before this setting go on
        settings["parts"] = asdict(parts)
    stop = stop or threading.Event()

    def lead() -> FolderReport:
        jobs, left_out = _plan(source, out, common, asked)
        if "yolo" in settings["formats"]:
            check_label_names([job.name for job in jobs])
        with Manifest(out) as manifest:
            if manifest.unreadable:
                _log.warning(
                    "%s: %d lines cannot be read; their pictures are done again", manifest.path, manifest.unreadable
                )
            todo = _unfinished(jobs, manifest, settings, existing)
            report = FolderReport(manifest.path, len(jobs), kept=len(jobs) - len(todo), left_out=left_out)
            run = Run(model, manifest, settings, report, stop, on_record)
            run.clean(todo)
            if engine is None:
                run.go(todo, limits or PictureLimits())
            else:
                run.go_elsewhere(engine, todo, limits or PictureLimits())
            if not report.stopped:
                report.combined = run.combine()
        return report

    return lead() if engine is None else engine.conduct(model, settings, out, stop, lead)


def fingerprint(model: Any) -> str:
    """Tell models apart by their numbers: a folder may be trained on, or moved, under its name.

    64 values of each tensor and the configuration decide: reading all would take longer than loading.
    """
    digest = hashlib.sha256()
    for name, shape, numbers in sampled_weights(model, 64):
        digest.update(f"{name} {shape}".encode() + numbers)
    processor = model.processor
    facts = [
        _lasting(model.model.config.to_dict()), processor.image_processor.tile_size, str(processor.template),
        str(processor.system_message), len(processor.tokenizer),
    ]  # fmt: skip
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _lasting(config: Any) -> Any:
    """Leave out of a configuration what depends on where and by which version it is loaded."""
    if isinstance(config, dict):
        passing = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "_attn_implementation"}
        return {str(name): _lasting(value) for name, value in config.items() if name not in passing}
    return config


# ---------------------------------------------------------------------- which pictures


def _plan(
    source: str | Path | Sequence[str | Path] | None, out: Path, common: tuple[str, ...], table: Table | None
) -> tuple[list[Job], int]:
    """List the pictures with their names and queries, and count those left out."""
    if source is None and table is None:
        raise SettingError("Neither source nor table: say which pictures to segment.")
    if not common and table is None:
        raise SettingError("No query: say what to find in every picture, or pass a table.")
    left_out = 0
    if source is None:
        assert table is not None
        paths, base = list(table.queries), Path(os.path.abspath(table.path.parent))  # noqa: PTH100
    else:
        sources = [source] if isinstance(source, str | Path) else list(source)
        paths, left_out = _listed(sources, out)
        base = _base(sources)
        if table is not None:
            known = [path for path in paths if Path(os.path.abspath(path)) in table.queries]  # noqa: PTH100
            left_out += len(paths) - len(known)
            paths = known
            if not paths:
                raise SettingError(f"{table.path}: names none of the pictures in {', '.join(map(str, sources))}.")
    own = table.queries if table else {}
    jobs = []
    for name, path in zip(_names(paths, base), paths, strict=True):
        asked = dict.fromkeys([*common, *own.get(Path(os.path.abspath(path)), ())])  # noqa: PTH100
        jobs.append(Job(name, path, tuple(asked)))
    return jobs, left_out


def _listed(sources: Sequence[str | Path], out: Path) -> tuple[list[Path], int]:
    """Expand to pictures, without what a run has drawn into the same folder or below it."""
    found: dict[Path, None] = {}
    left_out = 0
    below = Path(os.path.abspath(out))  # noqa: PTH100
    for source in sources:
        matches = list_pictures([source])
        if not Path(source).is_file():
            given = Path(os.path.abspath(source))  # noqa: PTH100
            kept = [
                path
                for path in matches
                if not DRAWN.search(path.name)
                and (given.is_relative_to(below) or not Path(os.path.abspath(path)).is_relative_to(below))  # noqa: PTH100
            ]
            left_out += len(matches) - len(kept)
            matches = kept
        found.update(dict.fromkeys(matches))
    if not found:
        raise PictureError(f"{', '.join(map(str, sources))}: holds no picture but those that self1e has drawn.")
    return list(found), left_out


def _base(sources: Sequence[str | Path]) -> Path | None:
    """Find the folder that names are relative to: the one given, else what all have in common."""
    roots = []
    for source in sources:
        parts = Path(os.path.abspath(source)).parts  # noqa: PTH100
        magic = [index for index, part in enumerate(parts) if has_magic(part)]
        if Path(source).exists():
            roots.append(Path(*parts) if Path(source).is_dir() else Path(*parts).parent)
        else:
            roots.append(Path(*parts[: magic[0]]) if magic else Path(*parts).parent)
    try:
        return Path(os.path.commonpath(roots))
    except ValueError:  # on different drives
        return None


def name_pictures(sources: Sequence[str | Path], paths: Sequence[Path]) -> list[str]:
    """Name the pictures of folders, patterns and files as ``segment_folder`` does."""
    return _names(paths, _base(sources))


def _names(paths: Sequence[Path], base: Path | None) -> list[str]:
    """Name pictures by their path below ``base``, those elsewhere by their whole path.

    No two share a name, on file systems that ignore case as well.
    """
    names = []
    for path in paths:
        whole = Path(os.path.abspath(path))  # noqa: PTH100
        if base is not None and whole.is_relative_to(base):
            parts: Sequence[str] = whole.relative_to(base).parts
        else:
            parts = [part.strip(":/\\") for part in whole.parts if part.strip(":/\\")]
        names.append("/".join(parts))
    counts = Counter(name.casefold() for name in names)
    for index, name in enumerate(names):
        if counts[name.casefold()] > 1:
            whole = os.fsencode(os.path.abspath(paths[index]))  # noqa: PTH100
            names[index] = f"{name}-{hashlib.sha256(whole).hexdigest()[:8]}"
    return names


def _unfinished(jobs: list[Job], manifest: Manifest, settings: dict[str, Any], existing: Existing) -> list[Job]:
    """Leave out what is finished, and refuse to write over what was made otherwise unless that is wanted."""
    if existing == "overwrite":
        return jobs
    todo, changed = [], {}
    for job in jobs:
        record = manifest.records.get(job.name)
        if record is None or record.status != "done":
            todo.append(job)
        elif differences := _differences(record, job, settings):
            changed[job.name] = differences
            todo.append(job)
        elif not all((manifest.path.parent / name).is_file() for name in record.files):
            todo.append(job)
    if changed and existing == "keep":
        shown = "; ".join(f"{name}: {', '.join(why)}" for name, why in list(changed.items())[:_SHOWN])
        more = f"; and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
        raise SettingError(
            f"{manifest.path}: {len(changed)} finished picture{'s were' if len(changed) > 1 else ' was'} made "
            f"otherwise ({shown}{more}). Choose another folder, or existing='update' (--update) to do these again, "
            "or existing='overwrite' (--overwrite) to do all again."
        )
    return todo


def _differences(record: Record, job: Job, settings: dict[str, Any]) -> list[str]:
    """Say what is not as it was when a picture was done."""
    found = []
    asked = tuple(entry.get("query") for entry in record.queries)
    if asked != job.queries:
        found.append(f"queries were {_short(asked)}, are {_short(job.queries)}")
    stamp = _stamp(job.path)
    if stamp is not None and stamp != record.stamp:
        found.append("its file has changed")
    # The weights tell which model it is; its name depends on where it lies.
    for name in (settings.keys() | record.settings.keys()) - {"model"}:
        # As JSON, in which the record was: a tuple is a list there.
        before, now = (json.dumps(values.get(name)) for values in (record.settings, settings))
        if before != now:
            found.append(f"{name} was {before}, is {now}")
    return sorted(found)


def _short(words: tuple[Any, ...]) -> str:
    told = ", ".join(repr(word) for word in words[:_SHOWN]) + (", ..." if len(words) > _SHOWN else "")
    return told or "none"


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


# ---------------------------------------------------------------------- the run


class Run:
    """One run over the pictures that are left."""

    def __init__(
        self,
        model: Any,
        manifest: Manifest | Draft,
        settings: dict[str, Any],
        report: FolderReport,
        stop: threading.Event,
        on_record: OnRecord | None,
    ) -> None:
        self._model = model
        self._manifest = manifest
        self._settings = settings
        self._report = report
        self._stop = stop
        self._on_record = on_record
        self._out = manifest.path.parent
        self._parts = PartOptions(**settings.get("parts", {}))

    def clean(self, todo: Sequence[Job]) -> None:
        """Remove half-written files of processes that were killed; nobody else may be writing."""
        for folder in {(self._out / job.name).parent for job in todo}:
            remove_temporary(folder)

    def go(self, todo: Sequence[Job], limits: PictureLimits) -> None:
        """Open, segment and write, all at once and each in order."""
        memory = _Memory()
        writing: Future[tuple[Record, Segmentation | None]] | None = None
        with ThreadPoolExecutor(1) as writer, closing(_open_ahead(todo, limits, memory)) as pictures:
            for opened in pictures:
                if self._stop.is_set():
                    self._report.stopped = True
                    break
                found = self._segment(opened)
                # One result waits at most: a kill loses it and the next.
                self._finish(writing)
                writing = writer.submit(self._write, opened, found, memory)
            self._finish(writing)

    def go_elsewhere(self, engine: Engine, todo: Sequence[Job], limits: PictureLimits) -> None:
        """Let others open, segment and write, and record it."""
        from self1e.inference.engines.share import Plan

        records = self._manifest.records
        before = {job.name: records[job.name] for job in todo if job.name in records}
        plan = Plan(self._out, self._settings, tuple(todo), before, limits)
        self._report.stopped = not engine.run(self._model, plan, self._stop, self._record)
        if not self._report.stopped:
            self.clean(todo)

    def _record(self, outcome: Outcome) -> None:
        """Add what another process has written to the manifest."""
        try:
            self._manifest.append(outcome.record)
        except OSError as error:
            raise self._full(error, outcome.record.picture) from error
        self._tell(outcome.record, outcome.result)

    def combine(self) -> list[Path]:
        """Write the files for all pictures that are recorded."""
        try:
            return write_combined(list(self._manifest.records.values()), self._out, self._settings["formats"])
        except OSError as error:
            raise OutputError(
                f"{self._out}: the files for all pictures cannot be written: {error.strerror or error}. Every picture "
                "has its own. Make room, then run the same again."
            ) from error

    def _segment(self, opened: _Opened) -> Segmentation | str:
        """Compute the masks, or say why there are none."""
        if isinstance(opened.picture, PictureError):
            return _told(opened.picture, opened.job)
        try:
            result = self._model.segment(
                opened.picture,
                opened.job.queries,
                kind=self._settings["kind"],
                template=self._settings["template"],
                max_tiles=self._settings["max_tiles"],
                threshold=self._settings["threshold"],
                batch_size=self._settings["batch_size"],
                return_logits=not self._parts.is_idle,  # for the parts' scores
            )
            return self._parts.apply(result)
        # Also what an exhausted device raises: the next picture may be smaller.
        except (Self1EError, RuntimeError, MemoryError) as error:
            return _told(error, opened.job)

    def _write(self, opened: _Opened, found: Segmentation | str, memory: _Memory) -> tuple[Record, Segmentation | None]:
        """Write the files, then the line of the manifest; in the writer's thread."""
        before = self._manifest.records.get(opened.job.name)
        try:
            if isinstance(found, Segmentation):
                try:
                    record = self._write_files(opened, found)
                except (Self1EError, MemoryError, RuntimeError) as error:
                    record = self._failed(opened, _told(error, opened.job), before)
                except OSError as error:
                    if error.errno not in _NAME_ERRORS:
                        raise
                    record = self._failed(opened, f"its files cannot be written: {error.strerror}", before)
            else:
                record = self._failed(opened, found, before)
            self._manifest.append(record)
        except OSError as error:
            raise self._full(error, opened.job.name) from error
        finally:
            memory.leave(opened.pixels)
        for name in set(before.files if before else ()) - set(record.files):  # of queries or formats that are no more
            (self._out / name).unlink(missing_ok=True)
        return record, found if isinstance(found, Segmentation) and record.status == "done" else None

    def _full(self, error: OSError, name: str) -> OutputError:
        return OutputError(
            f"{self._out}: cannot be written to any more: {error.strerror or error} (at {name}). What "
            "was finished before is recorded. Make room, then run the same again: it goes on where it stopped."
        )

    def _write_files(self, opened: _Opened, result: Segmentation) -> Record:
        target = self._out / opened.job.name
        files = write_outputs(result, target.parent, target.name, self._settings["formats"], sync=True)
        assert isinstance(opened.picture, OpenedPicture)
        return Record(
            picture=opened.job.name,
            status="done",
            source=str(opened.job.path),
            stamp=opened.stamp,
            settings=self._settings,
            queries=tuple(_answers(result)),
            size_wh=result.size_wh,
            notes=opened.picture.notes,
            files=tuple(path.relative_to(self._out).as_posix() for path in files),
        )

    def _failed(self, opened: _Opened, why: str, before: Record | None) -> Record:
        return Record(
            picture=opened.job.name,
            status="failed",
            source=str(opened.job.path),
            stamp=opened.stamp,
            settings=self._settings,
            queries=tuple({"query": query} for query in opened.job.queries),
            files=before.files if before else (),  # still there, of an earlier run
            error=why,
        )

    def _finish(self, writing: Future[tuple[Record, Segmentation | None]] | None) -> None:
        """Wait until a picture is written, and tell of it."""
        if writing is None:
            return
        self._tell(*writing.result())

    def _tell(self, record: Record, result: Segmentation | None) -> None:
        if record.status == "done":
            self._report.done += 1
        else:
            self._report.failed[record.picture] = record.error
        if self._on_record is not None:
            self._on_record(record, result, self._report)


def _answers(result: Segmentation) -> Iterator[dict[str, Any]]:
    """Say per query what came of it; of several parts the best score and the sum of their areas."""
    found: dict[str, list[tuple[float, int]]] = {}
    for query, score, area in zip(result.queries, result.scores, result.areas, strict=True):
        found.setdefault(query, []).append((round(float(score), 6), int(area)))
    for query, parts in found.items():
        yield {"query": query, "score": max(score for score, _ in parts), "area": sum(area for _, area in parts)}


def _told(error: BaseException, job: Job) -> str:
    """Say what went wrong in one line, without the name that stands beside it."""
    text = " ".join(str(error).split()).removeprefix(f"{job.path}: ")
    return text if isinstance(error, Self1EError) else f"{type(error).__name__}: {text[:300]}"


class _Memory:
    """Lets pictures in, in their order, as long as those that are open have few enough pixels together.

    In their order, or a later one could take the room that the next one needs, and both would wait for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._turn = 0
        self._held = 0
        self._closed = False

    def enter(self, turn: int, pixels: int) -> None:
        """Wait for the turn and for room; a picture larger than all room comes in alone."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or (turn == self._turn and self._fits(pixels)))
            if self._closed:
                raise PictureError("the run has ended")
            self._turn += 1
            self._held += pixels
            self._changed.notify_all()

    def leave(self, pixels: int) -> None:
        """Give the room back."""
        with self._changed:
            self._held -= pixels
            self._changed.notify_all()

    def close(self) -> None:
        """Send away all who wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, pixels: int) -> bool:
        return self._held == 0 or self._held + pixels <= _PIXELS_AHEAD


def _open_ahead(todo: Iterable[Job], limits: PictureLimits, memory: _Memory) -> Generator[_Opened, None, None]:
    """Open pictures in threads before they are asked for."""
    pool = ThreadPoolExecutor(_READERS)
    waiting: deque[Future[_Opened]] = deque()
    try:
        for turn, job in enumerate(todo):
            waiting.append(pool.submit(_open, turn, job, limits, memory))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        memory.close()
        pool.shutdown(cancel_futures=True)


def _open(turn: int, job: Job, limits: PictureLimits, memory: _Memory) -> _Opened:
    held: list[int] = []

    def admit(width: int, height: int) -> None:
        memory.enter(turn, width * height)
        held.append(width * height)

    stamp = _stamp(job.path)
    try:
        return _Opened(job, stamp, open_picture(job.path, admit=admit, **vars(limits)), sum(held))
    except PictureError as error:
        if held:
            memory.leave(held[0])
        else:
            memory.enter(turn, 0)
        return _Opened(job, stamp, error, 0)
