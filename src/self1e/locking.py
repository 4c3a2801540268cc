"""One run per folder: a second one would remove, or write twice, what the first is writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from self1e.errors import OutputError

LOCK = ".run.lock"
_FAR = 2**40  # Windows locks bytes, and nobody may read those: one that no file has


@contextmanager
def only_run(folder: Path, doing: str = "training") -> Iterator[None]:
    """Keep other runs out of a folder until the block, or this process, ends.

    The lock belongs to the process and is gone when it is killed, even if its workers live on for a moment. A
    network disk without locks keeps nobody out.

    Args:
        folder: Exists.
        doing: What an error says that the other run does.

    Raises:
        OutputError: Another run is there.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            lock(descriptor, inherited=False)
        except (BlockingIOError, PermissionError) as error:
            raise OutputError(
                f"{folder}: another run is {doing} in this folder. Wait for it, stop it, or choose another --out."
            ) from error
        yield
    finally:
        os.close(descriptor)


def lock(descriptor: int, *, inherited: bool) -> None:
    """Lock an open file until it is closed. A network disk without locks keeps nobody out.

    Args:
        descriptor: Open for writing; on Windows its position is moved.
        inherited: Whether the lock belongs to the open file, which forked workers hold too and a second opening in the
            same process does not, or to this process.

    Raises:
        BlockingIOError, PermissionError: Somebody else has it.
    """
    try:
        if os.name == "nt":
            import msvcrt

            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            import fcntl

            (fcntl.flock if inherited else fcntl.lockf)(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise
    except OSError:
        return
