"""Checks of settings that several layers take; nothing heavy is imported here."""

from __future__ import annotations

import math
from numbers import Integral

from self1e.errors import SettingError

MAX_TILES = 12
"""Most tiles per picture; InternVL was trained with up to 12."""


def check_max_tiles(max_tiles: object) -> int:
    """Return the number of tiles, or raise a SettingError."""
    if isinstance(max_tiles, bool) or not isinstance(max_tiles, Integral) or not 1 <= int(max_tiles) <= MAX_TILES:
        raise SettingError(
            f"max_tiles={max_tiles!r} must be a whole number from 1 to {MAX_TILES}; "
            "the published setting is 1, and 4 to 6 show small things better."
        )
    return int(max_tiles)


def check_batch(*, threshold: float, batch_size: int | None) -> None:
    """Raise a SettingError if these, as ``Self1E.segment`` takes them, cannot work."""
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise SettingError(f"batch_size={batch_size!r} must be at least 1, or None to choose.")
    if not math.isfinite(threshold):
        raise SettingError(f"threshold={threshold!r} must be a finite number; 0 is the published one.")
