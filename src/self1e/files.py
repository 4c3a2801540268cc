"""Writing files whole or not at all."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path


def atomic_write(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path``: other processes see the old file or the new one, never a part."""
    return atomic_write_all([(path, content)])[0]


def atomic_write_all(files: Iterable[tuple[Path, bytes]]) -> list[Path]:
    """Write several files, each whole or not at all, and none before all could be written.

    Each goes to a temporary file in its own folder (a rename across disks would be a copy), and only when all
    are written do they take their names. If ``files`` or a write fails, the temporary ones are removed.

    Args:
        files: Paths and contents; a generator is consumed one file at a time.

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
        for temporary, path in written:
            temporary.replace(path)
    finally:
        for temporary, _ in written:
            temporary.unlink(missing_ok=True)
    return [path for _, path in written]
