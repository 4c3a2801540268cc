"""Unpack archives that came from somewhere: nothing lands outside the folder, nothing is half written, no bomb.

Each file is written under a temporary name and takes its own name when it is whole, so a run that was stopped goes
on at the file where it stopped. A marker beside the data says that an archive is done; it holds while the archive is
unchanged, or gone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from self1e.errors import DatasetError
from self1e.files import atomic_write

MARKERS = ".self1e-unpacked"
"""Folder of the markers, within the folder that is unpacked to."""

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
MAX_BYTES = 200 * 2**30
"""Most that one archive may unpack to: no public set's archive is larger."""
MAX_FILES = 2_000_000

_CHUNK = 1 << 20
_DRIVE = re.compile(r"[A-Za-z]:")

Progress = Callable[[Iterable[Any], int | None], Iterable[Any]]


@dataclass(frozen=True)
class Unpacked:
    """What became of one archive."""

    archive: str
    files: int
    bytes: int
    new: int
    """Files written in this run; the others were there."""


@dataclass(frozen=True)
class _Member:
    """One file of an archive."""

    name: str
    size: int
    is_file: bool
    """Neither folder nor link nor anything else."""
    is_folder: bool
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    folder: Path,
    *,
    strip: str = "",
    max_bytes: int = MAX_BYTES,
    max_files: int = MAX_FILES,
    progress: Progress = lambda things, _: things,
) -> Unpacked:
    """Unpack a zip or tar file.

    Args:
        archive: The file.
        folder: Where to; made if it is not there. What is in it stays, except files that the archive replaces.
        strip: Leading folders that are left out, e.g. ``ADEChallengeData2016``; files outside of it are skipped.
        max_bytes: Most bytes in all; neither the sizes that the archive claims nor what it really holds may be more.
        max_files: Most files.
        progress: Is told the members, and their number where it is known.

    Returns:
        How many files and bytes it holds, also if all was done before.

    Raises:
        DatasetError: It is damaged, too large, or holds a path or link that leads out; what was unpacked until then
            stays, each file whole.
    """
    done = read_marker(archive, folder)
    if done is not None:
        return done
    folder.mkdir(parents=True, exist_ok=True)
    files = total = new = 0
    with _reading(archive), _members(archive) as (members, count):
        for member in progress(members, count):
            if member.is_folder:
                _safe_parts(member.name, archive)
                continue
            path = _target(member, archive, folder, strip)
            if path is None:
                continue
            files, total = files + 1, total + member.size
            if files > max_files or total > max_bytes:
                raise DatasetError(
                    f"{archive}: unpacks to more than {max_files:,} files or {max_bytes:,} bytes; expected less. "
                    "Is it the right archive?"
                )
            new += _write(member, path, archive)
    marker = {"archive": archive.name, "files": files, "bytes": total, **_identity(archive)}
    marker_path = _marker_path(archive, folder)
    marker_path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(marker_path, json.dumps(marker).encode())
    return Unpacked(archive.name, files, total, new)


def read_marker(archive: Path, folder: Path) -> Unpacked | None:
    """Say what was unpacked before; None if nothing was, or the archive has changed since."""
    try:
        marker = json.loads(_marker_path(archive, folder).read_text("utf-8"))
        known = {"size": marker["size"], "modified": marker["modified"]}
        unpacked = Unpacked(str(marker["archive"]), int(marker["files"]), int(marker["bytes"]), 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return unpacked if not archive.is_file() or known == _identity(archive) else None


def is_archive(path: Path) -> bool:
    """Say whether a file is one by its name."""
    return path.name.lower().endswith(SUFFIXES)


def _marker_path(archive: Path, folder: Path) -> Path:
    return folder / MARKERS / f"{archive.name}.json"


def _identity(archive: Path) -> dict[str, int]:
    status = archive.stat()
    return {"size": status.st_size, "modified": status.st_mtime_ns}


def _target(member: _Member, archive: Path, folder: Path, strip: str) -> Path | None:
    """Say where a member goes; None if it is left out."""
    parts = _safe_parts(member.name, archive)
    if not member.is_file:
        raise DatasetError(
            f"{archive}: {member.name!r} is a link or a device; expected files and folders only. "
            "Unpack it yourself if you trust it."
        )
    leading = PurePosixPath(strip).parts
    if parts[: len(leading)] != leading or len(parts) == len(leading) or parts[0] == "__MACOSX":
        return None
    return folder.joinpath(*parts[len(leading) :])


def _safe_parts(name: str, archive: Path) -> tuple[str, ...]:
    """Split a member's name, and refuse one that leads out of the folder on any system."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    wrong = [part for part in parts if part == ".." or "\0" in part or _DRIVE.match(part)]
    if not parts or parts[0] == "/" or wrong:
        raise DatasetError(
            f"{archive}: {name!r:.200} leads out of the folder; expected relative paths without '..'. "
            "The archive is not what it should be: download it again from the official page."
        )
    return parts


def _write(member: _Member, path: Path, archive: Path) -> bool:
    """Write one file whole; False if it is there already."""
    try:
        if path.stat().st_size == member.size and path.is_file():
            return False
    except FileNotFoundError:
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same name in every run, so that one that was stopped leaves nothing behind; short, whatever the name is.
    part = path.with_name(f".{hashlib.sha256(path.name.encode('utf-8', 'replace')).hexdigest()[:16]}.part")
    left = member.size
    try:
        with member.open() as source, part.open("wb") as target:
            while chunk := source.read(_CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                target.write(chunk)
        if left:
            raise DatasetError(
                f"{archive}: {member.name!r} holds {'more' if left < 0 else 'fewer'} than the {member.size:,} bytes "
                "that it claims. Download the archive again."
            )
        part.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            free = shutil.disk_usage(path.parent).free
            raise DatasetError(
                f"{path}: the disk is full ({free:,} bytes left). Make room and run it again."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)
    return True


@contextmanager
def _members(archive: Path) -> Iterator[tuple[Iterator[_Member], int | None]]:
    """Open an archive; yields its members, and their number where it is known beforehand."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            entries = file.infolist()
            yield (_zip_member(file, entry) for entry in entries), len(entries)
    else:
        with tarfile.open(archive) as file:
            yield (_tar_member(file, entry) for entry in file), None


def _zip_member(file: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(entry.external_attr >> 16)
    is_folder = entry.is_dir()
    return _Member(
        name=entry.filename,
        size=entry.file_size,
        is_file=not is_folder and mode in (0, stat.S_IFREG),
        is_folder=is_folder,
        open=lambda: file.open(entry),
    )


def _tar_member(file: tarfile.TarFile, entry: tarfile.TarInfo) -> _Member:
    def extract() -> IO[bytes]:
        content = file.extractfile(entry)
        assert content is not None  # a regular file
        return content

    return _Member(name=entry.name, size=entry.size, is_file=entry.isreg(), is_folder=entry.isdir(), open=extract)


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into a DatasetError."""
    try:
        yield
    except (DatasetError, FileNotFoundError):
        raise
    # What compressors raise for damage: OSError without a number is one of them.
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        told = str(error).partition("\n")[0].rstrip(".:") or type(error).__name__  # tarfile lists what it tried
        raise DatasetError(
            f"{archive}: cannot be unpacked: {told}; expected a whole zip or tar file. Download it again."
        ) from error


_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,  # encrypted
    NotImplementedError,
    ValueError,
    OverflowError,
)
