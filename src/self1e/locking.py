"""One run per folder: a second one would remove, or write twice, what the first is writing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from self1e.errors import OutputError

LOCK = ".run.lock"


@contextmanager
def only_run(folder: Path, doing: str = "training") -> Iterator[None]:
    """Keep other runs out of a folder until the block, or this process, ends.

    The lock belongs to the process and is gone when it is killed, even if its workers live on for a moment. Windows
    and network disks without locks keep nobody out.

    Args:
        folder: Exists.
        doing: What an error says that the other run does.

    Raises:
        OutputError: Another run is there.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            # Not `flock`: that one is held by worker processes too, which outlive a killed run.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise OutputError(
                f"{folder}: another run is {doing} in this folder. Wait for it, stop it, or choose another --out."
            ) from error
        except OSError:  # a network disk without locks
            pass
        yield
    finally:
        os.close(descriptor)
