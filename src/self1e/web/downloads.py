"""Results as one file to take home: the file itself, or a ZIP of several."""

from __future__ import annotations

import io
import json
import re
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from self1e.inference.export import FORMATS, as_json, check_formats

if TYPE_CHECKING:
    from self1e.inference.semantic import SemanticMap
    from self1e.inference.session import Session
    from self1e.structures import Segmentation

_LONGEST_STEM = 80
_THEN = (1980, 1, 1, 0, 0, 0)  # the same result gives the same file


def masks_file(result: Segmentation, formats: Sequence[str]) -> tuple[str, bytes]:
    """Write a result in some formats of ``self1e.inference.export``; name and content.

    Raises:
        SettingError: No format, or an unknown one.
    """
    stem = stem_of(result.source)
    files = [(f"{stem}.{ending}", data) for name in check_formats(formats) for ending, data in FORMATS[name](result)]
    return packed(stem, files)


def map_file(found: SemanticMap) -> tuple[str, bytes]:
    """Write what ``self1e semantic`` writes."""
    stem = stem_of(found.source)
    with tempfile.TemporaryDirectory() as folder:
        files = [(path.name, path.read_bytes()) for path in found.save(folder, stem)]
    return packed(f"{stem}.semantic", files)


def conversation_file(session: Session) -> tuple[str, bytes]:
    """Write a conversation as ``self1e chat PICTURE --resume`` reads it, without a path of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        content = json.loads(session.save(Path(folder) / "conversation.json").read_bytes())
    content["picture"]["path"] = None  # of an upload; another file of its name may lie where the server was started
    return "conversation.json", as_json(content)


def packed(stem: str, files: Iterable[tuple[str, bytes]]) -> tuple[str, bytes]:
    """Return the only file, or a ZIP of all."""
    files = list(files)
    if len(files) == 1:
        return files[0]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name, _THEN), data, zipfile.ZIP_DEFLATED)
    return f"{stem}.zip", buffer.getvalue()


def stem_of(source: str) -> str:
    """Make a file name that every system takes of whatever the picture was called."""
    stem = re.sub(r"[^\w.-]+", "_", Path(source).stem).strip("._")
    return stem[:_LONGEST_STEM] or "picture"
