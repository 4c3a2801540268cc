"""Writing files whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from self1e.errors import SettingError

_TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp")


def remove_temporary(folder: Path) -> None:
    """Remove what a process that was killed while writing has left in a folder. Nobody may be writing there."""
    if folder.is_dir():
        for path in folder.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink(missing_ok=True)


def atomic_write(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path``: other processes see the old file or the new one, never a part."""
    return atomic_write_all([(path, content)])[0]


def atomic_write_all(files: Iterable[tuple[Path, bytes]], *, sync: bool = False) -> list[Path]:
    """Write several files, each whole or not at all, and none before all could be written.

    Each goes to a temporary file in its own folder (a rename across disks would be a copy), and only when all
    are written do they take their names. If ``files`` or a write fails, the temporary ones are removed.

    Args:
        files: Paths and contents; a generator is consumed one file at a time.
        sync: Wait until the contents are on the disk before they take their names: a name that is there after a
            power cut then stands for a whole file.

    Returns:
        The paths, in order.
    """
    written: list[tuple[Path, Path]] = []
    try:
        for path, content in files:
            temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")  # short: `path.name` may be as long as names can be
            written.append((temporary, path))
            with temporary.open("xb") as file:  # not mkstemp, which makes files that only their owner can read
                file.write(content)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        for temporary, path in written:
            temporary.replace(path)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
    return [path for _, path in written]


def check_is_new(path: Path) -> None:
    """Raise a SettingError if there is anything but an empty folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingError(f"{path}: exists and is not an empty folder; choose another name, or remove it.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name whole, or not at all.

    Yields a temporary folder beside it (a rename across disks would be a copy). When the block ends, its files are
    on the disk before it takes its name, so that not even a power cut leaves half of it. If the block fails, it is
    removed; after a kill it stays, as ``.NAME.XXXXXXXX.partial``, and may be deleted.

    Args:
        path: Does not exist, or is an empty folder.

    Raises:
        SettingError: Something is there already.
    """
    check_is_new(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    temporary.mkdir()
    try:
        yield temporary
        for found in [*temporary.rglob("*"), temporary]:
            sync(found)
        if path.is_dir():  # empty, but Windows would not rename onto it
            path.rmdir()
        temporary.rename(path)
        sync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def replace_folder(final: Path, write: Callable[[Path], object]) -> None:
    """Write a folder anew: what has the name is complete at any instant; after a kill see `restore_folder`."""
    written, before = final.with_name(f".{final.name}-new"), final.with_name(f".{final.name}-before")
    shutil.rmtree(written, ignore_errors=True)
    with new_folder(written) as folder:
        write(folder)
    shutil.rmtree(before, ignore_errors=True)
    if final.is_dir():
        final.rename(before)
    written.rename(final)
    shutil.rmtree(before, ignore_errors=True)


def restore_folder(final: Path) -> None:
    """Bring back what `replace_folder` has replaced where a process was killed between two renames; tidy up."""
    before = final.with_name(f".{final.name}-before")
    if before.is_dir() and not final.is_dir():
        before.rename(final)
    for pattern in (f".{final.name}-*", f"..{final.name}-*.partial"):
        for left in final.parent.glob(pattern):
            shutil.rmtree(left, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file or a folder's entries to the disk; Windows syncs no folders, and needs a file open for writing."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
