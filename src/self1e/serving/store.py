"""Pictures that were uploaded once, encoded, within a budget of bytes; with the conversations about each.

What was not used for longest makes room for what comes. A conversation counts as what it may grow to, and goes with its
picture. Used from the event loop's thread only.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from PIL import Image

from self1e.serving.metrics import Metrics
from self1e.serving.problems import Refusal

BYTES_PER_PIXEL = 4
"""What Pillow holds of an RGB picture."""


@dataclass(eq=False)
class KeptSession:
    """A conversation."""

    id: str
    session: Any
    bytes: int
    is_busy: bool = False
    """A turn is being written."""


@dataclass(eq=False)
class KeptImage:
    """An encoded picture."""

    id: str
    encoded: Any
    picture_bytes: int
    used: float
    sessions: dict[str, KeptSession] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """With its conversations."""
        return self.picture_bytes + sum(one.bytes for one in self.sessions.values())


class Store:
    """Kept pictures, the least recently used first.

    Args:
        budget: In bytes.
        seconds: Until a picture that nobody uses is forgotten.
        metrics: Where it counts.
    """

    def __init__(self, budget: int, seconds: float, metrics: Metrics) -> None:
        self._budget, self._seconds = budget, seconds
        self._metrics = metrics
        self._images: OrderedDict[str, KeptImage] = OrderedDict()
        self._owners: dict[str, KeptImage] = {}

    def __len__(self) -> int:
        return len(self._images)

    @property
    def bytes(self) -> int:
        """What all of it takes."""
        return sum(one.bytes for one in self._images.values())

    def add(self, encoded: Any) -> KeptImage:
        """Keep a picture; forget others for it."""
        image = KeptImage(secrets.token_hex(16), encoded, encoded_bytes(encoded), time.monotonic())
        self._make_room(image.bytes)
        self._images[image.id] = image
        self._count()
        return image

    def get(self, image_id: str) -> KeptImage:
        """Find a picture; this is a use of it."""
        self.purge()
        image = self._images.get(image_id)
        if image is None:
            raise Refusal(404, "image", "There is no such picture, or no longer: upload it again.")
        image.used = time.monotonic()
        self._images.move_to_end(image_id)
        return image

    def expires_in(self, image: KeptImage) -> float:
        """Seconds until it is forgotten if nobody uses it."""
        return round(max(image.used + self._seconds - time.monotonic(), 0.0), 3)

    def remove(self, image_id: str) -> None:
        """Forget a picture and its conversations."""
        self._forget(self.get(image_id), "deleted")

    def add_session(self, image: KeptImage, session: Any) -> KeptSession:
        """Keep a conversation."""
        if image.id not in self._images:
            raise Refusal(404, "image", "The picture was forgotten meanwhile: upload it again.")
        kept = KeptSession(secrets.token_hex(16), session, session.max_bytes)
        self._images.move_to_end(image.id)
        self._make_room(kept.bytes, keep=image)
        image.sessions[kept.id] = kept
        self._owners[kept.id] = image
        self._count()
        return kept

    def get_session(self, session_id: str) -> tuple[KeptImage, KeptSession]:
        """Find a conversation and its picture; this is a use of both."""
        self.purge()
        image = self._owners.get(session_id)
        if image is None:
            raise Refusal(404, "session", "There is no such conversation, or no longer: begin a new one.")
        return self.get(image.id), image.sessions[session_id]

    def remove_session(self, session_id: str) -> None:
        """Forget a conversation."""
        image, _ = self.get_session(session_id)
        del image.sessions[session_id], self._owners[session_id]
        self._count()

    def purge(self) -> None:
        """Forget what nobody used for long."""
        limit = time.monotonic() - self._seconds
        for image in [one for one in self._images.values() if one.used <= limit]:
            self._forget(image, "expired")

    def clear(self) -> None:
        """Forget everything."""
        for image in list(self._images.values()):
            self._forget(image, "stopped")

    def _make_room(self, needed: int, keep: KeptImage | None = None) -> None:
        held = keep.bytes if keep is not None else 0
        if held + needed > self._budget:
            raise Refusal(
                413,
                "cache",
                f"Keeping this takes {held + needed:,} bytes, the service keeps {self._budget:,} of all pictures: "
                "use fewer tiles, a smaller picture, or the requests that keep nothing.",
            )
        self.purge()
        while self.bytes + needed > self._budget:
            self._forget(next(one for one in self._images.values() if one is not keep), "room")

    def _forget(self, image: KeptImage, reason: str) -> None:
        self._images.pop(image.id, None)
        for session_id in image.sessions:
            self._owners.pop(session_id, None)
        self._metrics.forgotten.labels(reason).inc()
        self._count()

    def _count(self) -> None:
        self._metrics.images.set(len(self._images))
        self._metrics.sessions.set(len(self._owners))
        self._metrics.cache_bytes.set(self.bytes)


def encoded_bytes(encoded: Any) -> int:
    """Memory of an encoded picture: its pixels, and every tensor once."""
    sizes: dict[int, int] = {}
    for part in _parts(encoded):
        if isinstance(part, Image.Image):
            sizes[id(part)] = BYTES_PER_PIXEL * part.width * part.height
        else:
            storage = part.untyped_storage()  # of a view, what it keeps alive
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def _parts(thing: Any) -> Iterator[Any]:
    """Yield the pictures and tensors in nested dataclasses and lists."""
    if isinstance(thing, Image.Image) or hasattr(thing, "untyped_storage"):
        yield thing
    elif is_dataclass(thing) and not isinstance(thing, type):
        for one in fields(thing):
            yield from _parts(getattr(thing, one.name))
    elif isinstance(thing, Iterable) and not isinstance(thing, str | bytes):
        for one in thing:
            yield from _parts(one)
