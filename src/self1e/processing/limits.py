"""How much one picture may cost: pixels, bytes of its file, seconds of a processor. Each is a setting.

Memory follows from them. While a picture is decoded it takes at most ``peak_bytes`` beyond what the process holds
anyway, whatever the file claims to be: ``BYTES_PER_PIXEL`` for each of ``max_pixels`` (JPEG and PNG take 12, WebP 21,
JPEG 2000 with alpha 25), the file twice (it is read whole for some formats), and some small change. What stays
afterwards is 4 bytes per pixel.

Time needs a limit of its own. A JPEG of a megabyte may go over its pixels thousands of times, and a few decoders of
Pillow are written in Python. They read the file bit by bit, so that is where the clock is looked at.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import Any

from self1e.errors import PictureError, SettingError

MAX_PIXELS = 178_956_970
"""Where Pillow itself refuses a picture: half a gigabyte as RGB."""

MAX_BYTES = 2**30
"""One gigabyte: ``MAX_PIXELS`` as RGB with 16 bits per channel, uncompressed."""

MAX_SECONDS = 60.0
"""Several times what ``MAX_PIXELS`` take in JPEG 2000, the slowest format whose decoder is not written in Python."""

BYTES_PER_PIXEL = 32
"""Most memory per pixel while decoding and converting."""

_SMALL_CHANGE = 2**26  # tables of decoders, text and profiles in a file (Pillow caps them), one strip of a conversion


@dataclass(frozen=True, kw_only=True)
class PictureLimits:
    """What one picture may cost; None or 0 lifts a limit."""

    max_pixels: int | None = MAX_PIXELS
    """Width times height that is still decoded."""
    max_bytes: int | None = MAX_BYTES
    """Size of the file."""
    max_seconds: float | None = MAX_SECONDS
    """Processor time of decoding; waiting for a disk does not count."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value >= 0:  # also true for NaN
                raise SettingError(f"{name}={value}, expected a positive number, or None for no limit.")

    @property
    def peak_bytes(self) -> int | None:
        """Most memory that decoding one picture takes, or None if the limits do not bound it."""
        if not self.max_pixels or not self.max_bytes:
            return None
        return BYTES_PER_PIXEL * self.max_pixels + 2 * self.max_bytes + _SMALL_CHANGE

    def check_size(self, width: int, height: int, name: str) -> None:
        """Refuse a picture without pixels, or with too many."""
        if width < 1 or height < 1:
            raise PictureError(f"{name}: {width}x{height}: there is not one pixel in it.")
        if self.max_pixels and width * height > self.max_pixels:
            raise PictureError(
                f"{name}: {width}x{height} is {width * height:,} pixels, more than max_pixels={self.max_pixels:,}. "
                "Make the picture smaller, or raise the limit if you trust it."
            )

    def check_bytes(self, count: int, name: str, more: str = "") -> None:
        """Refuse a file that is too large.

        Args:
            count: Size of the file, or what is known of it.
            name: What the message calls it.
            more: Put before the count where only a part is known: ``"at least "``.
        """
        if self.max_bytes and count > self.max_bytes:
            raise PictureError(
                f"{name}: the file has {more}{count:,} bytes, more than max_bytes={self.max_bytes:,}. "
                "Save it compressed or smaller, or raise the limit if you trust it."
            )


class WatchedFile:
    """A binary file for one decoder, which ends in a PictureError when its time is over.

    Processor time of the thread that made it: a busy machine or a slow disk makes no picture bad.
    """

    def __init__(self, file: Any, name: str, limits: PictureLimits) -> None:
        self._file = file
        self._name = name
        self._seconds = limits.max_seconds
        self._end = time.thread_time() + limits.max_seconds if limits.max_seconds else None
        self._reads = 0

    def read(self, size: int = -1) -> bytes:
        """Read as the file does."""
        self._reads += 1
        # Decoders in Python read byte by byte: asking for the time would cost them more than the byte.
        if (self._reads % 256 == 0 or size != 1) and self._end is not None and time.thread_time() > self._end:
            raise PictureError(
                f"{self._name}: takes more than max_seconds={self._seconds:g} to decode. "
                "Save it as a plain JPEG or PNG, or raise the limit if you trust it."
            )
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def check_icon(file: Any, name: str, limits: PictureLimits) -> None:
    """Check the pictures inside an ICO file, which Pillow decodes before it tells a size.

    The directory gives each at most 256 x 256; the PNG or BMP that follows may be of any size.
    """
    file.seek(0)
    reserved, kind, count = struct.unpack("<HHH", file.read(6).ljust(6, b"\xff"))
    if (reserved, kind) != (0, 1):
        return
    directory = file.read(16 * count)
    for start in range(0, len(directory) - 15, 16):
        file.seek(int.from_bytes(directory[start + 12 : start + 16], "little"))
        head = file.read(24)
        if len(head) < 24:
            continue  # Pillow says what is wrong
        if head.startswith(b"\x89PNG"):
            width, height = struct.unpack(">II", head[16:24])
        else:
            width, height = (abs(side) for side in struct.unpack("<ii", head[4:12]))
            height = (height + 1) // 2  # its mask stands below it
        if width and height:
            limits.check_size(width, height, name)
