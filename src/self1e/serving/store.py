"""Pictures that were uploaded once, encoded, within a budget of bytes; with the conversations about each.

What was not used for longest makes room for what comes; while a turn of a conversation is on its way, its picture is
in use. A conversation counts as what it may grow to, and goes with its picture. Used from the event loop's thread only.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from typing import Any

from PIL import Image

from self1e.serving.metrics import Metrics
from self1e.serving.problems import Refusal, draining
from self1e.serving.worker import Job

BYTES_PER_PIXEL = 4
"""What Pillow holds of an RGB picture."""


@dataclass(eq=False)
class KeptSession:
    """A conversation."""

    id: str
    session: Any
    bytes: int
    turn: Job | None = None
    """What waits for the model or is being written."""

    @property
    def is_busy(self) -> bool:
        """True while it takes a turn; it takes one at a time."""
        return self.turn is not None

    def end(self, reason: Refusal) -> None:
        """Tell whoever waits for a turn why there will be no more of it, and let the model drop it."""
        turn = self.turn
        if turn is None:
            return
        turn.fail(reason)
        turn.cancel()
        self.session.cancel()  # some tokens may pass before a whole letter is there to be handed out


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

    @property
    def is_busy(self) -> bool:
        """True while a conversation about it takes a turn."""
        return any(one.is_busy for one in self.sessions.values())


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
        """Forget a conversation, and end the turn that it takes."""
        image, kept = self.get_session(session_id)
        del image.sessions[session_id], self._owners[session_id]
        kept.end(_ended("deleted"))
        self._count()

    def purge(self) -> None:
        """Forget what nobody used for long."""
        limit = time.monotonic() - self._seconds
        for image in [one for one in self._images.values() if one.used <= limit and not one.is_busy]:
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
            self._forget(
                min((one for one in self._images.values() if one is not keep), key=attrgetter("is_busy")), "room"
            )

    def _forget(self, image: KeptImage, reason: str) -> None:
        self._images.pop(image.id, None)
        for session_id, kept in image.sessions.items():
            self._owners.pop(session_id, None)
            kept.end(_ended(reason))
        image.sessions.clear()
        self._metrics.forgotten.labels(reason).inc()
        self._count()

    def _count(self) -> None:
        self._metrics.images.set(len(self._images))
        self._metrics.sessions.set(len(self._owners))
        self._metrics.cache_bytes.set(self.bytes)


def _ended(reason: str) -> Refusal:
    """Say to a turn that its conversation is no more."""
    if reason == "stopped":
        return draining()
    told = "forgotten to make room for others" if reason == "room" else "deleted"
    return Refusal(410, "session", f"The conversation was {told} while this turn was on its way: begin a new one.")


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
