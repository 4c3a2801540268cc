"""What is kept for each browser session: its picture, what was found in it, its conversation. All of it is bounded."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from self1e.errors import PictureError, PromptError
from self1e.processing.pictures import OpenedPicture, open_picture

if TYPE_CHECKING:
    from self1e.inference.segmenter import EncodedPicture
    from self1e.inference.semantic import SemanticMap
    from self1e.inference.session import Session
    from self1e.web.finding import Found
    from self1e.web.seeing import Sight
    from self1e.web.talking import Message

MAX_PIXELS = 50_000_000
"""Largest picture that the page takes."""
MAX_SECONDS = 20.0
"""Processor time that decoding one may take."""


@dataclass(eq=False)
class Workspace:
    """One browser session's things. They are replaced, never changed, so that a slow reader sees whole ones."""

    opened: OpenedPicture | None = None
    encoded: EncodedPicture | None = None
    found: Found | None = None
    classes: SemanticMap | None = None
    sight: Sight | None = None
    session: Session | None = None
    messages: tuple[Message, ...] = ()
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Held by whoever opens another picture."""
    _picture: str = ""
    _tiles: int | None = None

    def open(self, path: str | None) -> OpenedPicture:
        """Open a picture, unless it is the one at hand; another one clears the desk.

        Raises:
            PromptError: There is none.
            PictureError: It cannot be read; the message names the file without its folder.
        """
        if not path:
            raise PromptError("There is no picture yet: drop one, paste one, take one, or choose an example.")
        with self.lock:
            digest = _digest(path)
            if self.opened is None or digest != self._picture:
                self.clear()
                self.opened = _open(Path(path))
                self._picture = digest
            return self.opened

    def encode(self, model: Any, path: str | None, max_tiles: int | None = None) -> EncodedPicture:
        """Open a picture and run what does not depend on words, unless that is done."""
        with self.lock:
            opened = self.open(path)
            encoded = self.encoded
            if encoded is None or self._tiles != max_tiles:
                encoded = model.encode(opened, max_tiles=max_tiles)
                self.encoded, self._tiles = encoded, max_tiles
                self.session, self.messages = None, ()  # a conversation is about one encoding
            return encoded

    def clear(self) -> None:
        """Forget everything about the picture."""
        self.opened = self.encoded = self.found = self.classes = self.sight = self.session = None
        self.messages, self._picture = (), ""

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept, within a few percent."""
        kept = (self.opened, self.encoded, self.found, self.classes, self.sight, self.messages)
        session = self.session
        talk = 0 if session is None else session.num_bytes
        return talk + weigh((*kept, () if session is None else session.turns))


class Workspaces:
    """Workspaces by browser session; the one that was used longest ago goes first.

    Args:
        max_count: Most of them.
        max_bytes: Of all together. The newest stays in any case: one picture has a limit of its own.
    """

    def __init__(self, *, max_count: int = 64, max_bytes: int = 2**30) -> None:
        self.max_count, self.max_bytes = max_count, max_bytes
        self._kept: OrderedDict[str, Workspace] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, name: str | None) -> Workspace:
        """Return a session's workspace, an empty one if it is new or was dropped; nobody's is not kept."""
        if not name:
            return Workspace()
        with self._lock:
            workspace = self._kept.setdefault(name, Workspace())
            self._kept.move_to_end(name)
            return workspace

    def settle(self) -> None:
        """Drop the oldest until the rest is within bounds."""
        with self._lock:
            sizes = {name: workspace.num_bytes for name, workspace in self._kept.items()}
            while len(self._kept) > 1 and (len(self._kept) > self.max_count or sum(sizes.values()) > self.max_bytes):
                name, _ = self._kept.popitem(last=False)
                del sizes[name]

    def drop(self, name: str | None) -> None:
        """Forget a session whose page was closed."""
        with self._lock:
            self._kept.pop(name or "", None)

    def __len__(self) -> int:
        return len(self._kept)


def weigh(value: Any, seen: set[int] | None = None) -> int:
    """Sum the bytes of tensors, arrays, pictures and codes within nested dataclasses and containers, each once."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    if isinstance(value, bytes | str):
        return len(value)
    if hasattr(value, "element_size"):  # a tensor
        return value.numel() * value.element_size()
    if is_dataclass(value) and not isinstance(value, type):
        return sum(weigh(getattr(value, entry.name), seen) for entry in fields(value))
    if isinstance(value, dict):
        return sum(weigh(entry, seen) for entry in value.values())
    if isinstance(value, list | tuple):
        return sum(weigh(entry, seen) for entry in value)
    return 0


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PictureError(f"{Path(path).name}: cannot be read any more; choose the picture again.") from error


def _open(path: Path) -> OpenedPicture:
    try:
        opened = open_picture(path, max_pixels=MAX_PIXELS, max_seconds=MAX_SECONDS)
    except PictureError as error:
        # Where the server keeps uploads is nobody's business.
        raise PictureError(str(error).replace(str(path), path.name)) from error
    return replace(opened, source=path.name)
